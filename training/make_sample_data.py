"""Draws sample_data/: pictures, scans and clips of known content, and one damaged file.

python -m training.make_sample_data sample_data
"""

from __future__ import annotations

import argparse
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from PIL import Image

from training.scenes import (
    BACKGROUNDS,
    Scene,
    Shape,
    moving_clip,
    page_scene,
    shape_scene,
    text_scene,
)

PALE, GREY, CREAM, DARK, BLUE = (
    BACKGROUNDS[0],
    BACKGROUNDS[2],
    BACKGROUNDS[5],
    BACKGROUNDS[4],
    BACKGROUNDS[6],
)
EXIF_ORIENTATION = 0x0112


def _one(
    kind: str,
    color: str,
    x: float,
    y: float,
    size: tuple[int, int],
    background: tuple[int, int, int],
    radius: float = 0.15,
) -> Scene:
    return shape_scene(
        [Shape(kind, color, x * size[0], y * size[1], radius * min(size), 5)],
        "above",
        size,
        background,
    )


def _row(
    looks: list[tuple[str, str]],
    size: tuple[int, int],
    background: tuple[int, int, int],
    radius: float = 0.18,
) -> Scene:
    step = size[0] / len(looks)
    shapes = [
        Shape(
            kind,
            color,
            step * (i + 0.5),
            size[1] * (0.48 + 0.04 * (i % 2)),
            radius * min(size),
            4 * i,
        )
        for i, (color, kind) in enumerate(looks)
    ]
    return shape_scene(shapes, "to the left of", size, background)


def _column(
    looks: list[tuple[str, str]],
    size: tuple[int, int],
    background: tuple[int, int, int],
    radius: float = 0.16,
) -> Scene:
    step = size[1] / len(looks)
    shapes = [
        Shape(
            kind,
            color,
            size[0] * (0.5 + 0.03 * (i % 2)),
            step * (i + 0.5),
            radius * min(size),
            6 * i,
        )
        for i, (color, kind) in enumerate(looks)
    ]
    return shape_scene(shapes, "above", size, background)


def pictures() -> dict[str, Scene]:
    """The pictures of shapes by file name."""
    return {
        "circle.png": _one("circle", "red", 0.5, 0.5, (256, 256), PALE, 0.3),
        "corner-star.png": _one("star", "yellow", 0.83, 0.17, (320, 320), DARK),
        "left-triangle.jpg": _one("triangle", "green", 0.17, 0.5, (400, 300), CREAM),
        "small-square.png": _one("square", "purple", 0.5, 0.83, (96, 96), GREY),
        "circle-and-square.png": _row(
            [("red", "circle"), ("blue", "square")], (480, 320), PALE, 0.22
        ),
        "star-and-triangle.jpg": _row(
            [("white", "star"), ("orange", "triangle")], (320, 200), DARK, 0.25
        ),
        "stack-of-two.png": _column(
            [("black", "square"), ("green", "circle")], (240, 320), BLUE, 0.22
        ),
        "stack-of-three.png": _column(
            [("purple", "triangle"), ("red", "square"), ("blue", "star")], (360, 480), CREAM
        ),
        "row-of-three.jpg": _row(
            [("green", "star"), ("yellow", "circle"), ("purple", "square")], (640, 400), GREY, 0.2
        ),
        "large.jpg": _row([("blue", "triangle"), ("black", "circle")], (1024, 768), PALE, 0.2),
    }


def phone_picture() -> tuple[Scene, Image.Image]:
    """A scene and its picture as a phone stores it: turned, with the orientation in its EXIF."""
    scene = shape_scene(
        [Shape("square", "orange", 90, 160, 50, 3), Shape("star", "blue", 310, 150, 55, 8)],
        "to the left of",
        (400, 300),
        PALE,
    )
    return scene, Image.fromarray(scene.pixels).transpose(Image.Transpose.ROTATE_90)


def scans() -> dict[str, Scene]:
    """The pictures of words and numbers by file name."""
    return {
        "word.png": text_scene("PAPER", (400, 200)),
        "number.png": text_scene("2047", (320, 200), CREAM),
        "sign.jpg": text_scene("EXIT", (512, 320), (35, 150, 60), (247, 247, 247), fill=0.7),
        "index.png": text_scene("INDEX", (600, 400), PALE, (40, 75, 215), fill=0.7),
        "page.png": page_scene(["NO", "12", "CAT", "7"], (2, 2), (384, 384)),
    }


CLIPS = {
    "ball.mp4": ("circle", "red", "right", (320, 240), PALE),
    "lift.mp4": ("square", "blue", "up", (240, 240), CREAM),
}
CLIP_SECONDS = 6
CLIP_RATE = 8


def write_clip(
    path: Path,
    kind: str,
    color: str,
    direction: str,
    size: tuple[int, int],
    background: tuple[int, int, int],
) -> str:
    """Writes a clip of H.264 in MP4 and gives its caption."""
    times = [i / CLIP_RATE for i in range(CLIP_SECONDS * CLIP_RATE)]
    clip = moving_clip(
        kind,
        color,
        direction,
        size,
        times,
        CLIP_SECONDS,
        np.random.default_rng(4),
        background,
        (0.0, 1.0),
    )
    with av.open(str(path), "w") as container:
        stream = container.add_stream(
            "libx264", rate=CLIP_RATE, options={"crf": "18", "preset": "medium"}
        )
        stream.width, stream.height, stream.pix_fmt = *size, "yuv420p"
        stream.time_base = Fraction(1, CLIP_RATE)
        for pixels in clip.frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        container.mux(stream.encode())
    return clip.caption


def write_all(folder: Path) -> None:
    """Writes the whole folder but its README."""
    for name in ("images", "scans", "clips", "damaged"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    rows = []
    for name, scene in pictures().items():
        Image.fromarray(scene.pixels).save(folder / "images" / name, quality=92)
        rows.append((f"images/{name}", scene.caption))
    scene, turned = phone_picture()
    exif = Image.Exif()
    exif[EXIF_ORIENTATION] = 6
    turned.save(folder / "images" / "phone.jpg", quality=92, exif=exif)
    rows.append(("images/phone.jpg", scene.caption))
    cut_out = np.dstack(
        [
            pictures()["circle.png"].pixels,
            255 * (pictures()["circle.png"].labels > 0).astype(np.uint8),
        ]
    )
    Image.fromarray(cut_out).save(folder / "images" / "transparent.png")
    rows.append(("images/transparent.png", "A red circle."))
    for name, scene in scans().items():
        Image.fromarray(scene.pixels).save(folder / "scans" / name, quality=92)
        rows.append((f"scans/{name}", scene.text))
    for name, settings in CLIPS.items():
        rows.append((f"clips/{name}", write_clip(folder / "clips" / name, *settings)))
    whole = (folder / "images" / "large.jpg").read_bytes()
    (folder / "damaged" / "cut-off.jpg").write_bytes(whole[: len(whole) // 3])
    (folder / "content.csv").write_text(
        "file,content\n" + "".join(f"{name},{content}\n" for name, content in sorted(rows)),
        encoding="utf-8",
    )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    write_all(parser.parse_args().folder)
