"""One good file of every kind that is read, small, to be damaged."""

from __future__ import annotations

import gzip
import io
import json
import zipfile
from collections.abc import Callable

import cv2
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from tests.bundles import tar_bytes
from tests.media import picture, write_video
from vlmbatch.read.pictures.decode import FORMATS

SIZE = (48, 40)


def _picture(mode: str = "RGB", seed: int = 0) -> Image.Image:
    # Half of it is flat, so that run lengths and dictionaries have something to do.
    pixels = picture(*SIZE, seed)
    pixels[SIZE[1] // 2 :] = 90
    return Image.fromarray(pixels).convert(mode)


def _saved(form: str, mode: str = "RGB", count: int = 1, **options: object) -> bytes:
    held = io.BytesIO()
    first, *rest = [_picture(mode, seed) for seed in range(count)]
    if rest:
        options |= {"save_all": True, "append_images": rest}
    first.save(held, form, **options)
    return held.getvalue()


def _video(name: str, codec: str) -> Callable[[], bytes]:
    def make() -> bytes:
        import tempfile
        from pathlib import Path

        with tempfile.TemporaryDirectory() as folder:
            return write_video(Path(folder) / name, 24, codec=codec).read_bytes()

    return make


def _exif() -> bytes:
    exif = Image.Exif()
    exif[0x0112] = 6
    exif[0x010E] = "what it shows"
    return exif.tobytes()


def _deep_jpeg2000() -> bytes:
    pixels = np.asarray(_picture()).astype(np.uint16) * 257
    return cv2.imencode(".jp2", np.pad(pixels, ((0, 40), (0, 40), (0, 0))))[1].tobytes()


def _zip(method: int) -> bytes:
    held = io.BytesIO()
    with zipfile.ZipFile(held, "w", method) as archive:
        for number in range(4):
            archive.writestr(f"{number}.png", _saved("PNG"))
    return held.getvalue()


def _tar() -> bytes:
    return tar_bytes({f"{number}.png": _saved("PNG") for number in range(4)})


def _parquet() -> bytes:
    held = io.BytesIO()
    rows = [{"bytes": _saved("PNG"), "path": f"{number}.png"} for number in range(4)]
    pq.write_table(pa.table({"image": rows, "number": list(range(4))}), held, row_group_size=2)
    return held.getvalue()


NAMES = ["0.png", "1.png", "2.png", "3.png"]

IMAGES: dict[str, Callable[[], bytes]] = {
    "baseline.jpg": lambda: _saved("JPEG", exif=_exif()),
    "progressive.jpg": lambda: _saved("JPEG", progressive=True, quality=90),
    "cmyk.jpg": lambda: _saved("JPEG", "CMYK"),
    "rgb.png": lambda: _saved("PNG"),
    "palette.png": lambda: _saved("PNG", "P", transparency=3),
    "grey16.png": lambda: _saved("PNG", "I;16"),
    "clear16.png": lambda: _saved("PNG", "I;16", transparency=90),
    "float.tiff": lambda: _saved("TIFF", "F"),
    "grey32.tiff": lambda: _saved("TIFF", "I", compression="tiff_lzw"),
    "deep.jp2": _deep_jpeg2000,
    "animated.gif": lambda: _saved("GIF", "P", 3),
    "lossy.webp": lambda: _saved("WEBP"),
    "animated.webp": lambda: _saved("WEBP", "RGBA", 3, lossless=True),
    "rgb.bmp": lambda: _saved("BMP"),
    "palette.bmp": lambda: _saved("BMP", "P"),
    "raw.tiff": lambda: _saved("TIFF", count=3),
    "lzw.tiff": lambda: _saved("TIFF", count=2, compression="tiff_lzw"),
    "jpeg.tiff": lambda: _saved("TIFF", compression="jpeg"),
    "fax.tiff": lambda: _saved("TIFF", "1", compression="group4"),
    "deflate.tiff": lambda: _saved("TIFF", compression="tiff_adobe_deflate"),
    "sizes.ico": lambda: _saved("ICO", sizes=[(16, 16), (32, 32)]),
    "bitmap.ico": lambda: _saved("ICO", sizes=[(16, 16)], bitmap_format="bmp"),
    "wavelet.jp2": lambda: _saved("JPEG2000"),
    "plain.ppm": lambda: _saved("PPM"),
    "packed.tga": lambda: _saved("TGA", compression="tga_rle"),
    "page.pdf": lambda: _saved("PDF", count=2),
    **({"still.avif": lambda: _saved("AVIF")} if "AVIF" in FORMATS else {}),
    **({"phone.heic": lambda: _saved("HEIF")} if "HEIF" in FORMATS else {}),
}
VIDEOS: dict[str, Callable[[], bytes]] = {
    "h264.mp4": _video("a.mp4", "libx264"),
    "h264.mkv": _video("a.mkv", "libx264"),
    "vp9.webm": _video("a.webm", "libvpx-vp9"),
    "mpeg4.avi": _video("a.avi", "mpeg4"),
    "h264.ts": _video("a.ts", "libx264"),
    "mpeg4.mov": _video("a.mov", "mpeg4"),
    "mpeg2.mpg": _video("a.mpg", "mpeg2video"),
}
ARCHIVES: dict[str, Callable[[], bytes]] = {
    "stored.zip": lambda: _zip(zipfile.ZIP_STORED),
    "deflated.zip": lambda: _zip(zipfile.ZIP_DEFLATED),
    "plain.tar": _tar,
    "packed.tar.gz": lambda: gzip.compress(_tar(), mtime=0),
}
MANIFESTS: dict[str, Callable[[], bytes]] = {
    "list.txt": lambda: "\n".join([*NAMES, ""]).encode(),
    "table.csv": lambda: "\n".join(
        ["path,number", *(f"{name},{number}" for number, name in enumerate(NAMES)), ""]
    ).encode(),
    "lines.jsonl": lambda: "\n".join(
        [*(json.dumps({"path": name, "number": number}) for number, name in enumerate(NAMES)), ""]
    ).encode(),
    "held.parquet": _parquet,
}
"""Their paths are those of pictures that stand beside them."""

SPECIMENS = {**IMAGES, **VIDEOS, **ARCHIVES, **MANIFESTS}


def beside() -> dict[str, bytes]:
    """The pictures that manifests name."""
    return {name: _saved("PNG") for name in NAMES}
