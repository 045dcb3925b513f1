"""Writes small real pictures and videos whose content says which they are."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable, Sequence
from fractions import Fraction
from pathlib import Path

import numpy as np
from PIL import Image

from vlmbatch.core import UInt8Array

BLOCK = 16
COLUMNS, ROWS = 6, 3
WIDTH, HEIGHT = COLUMNS * BLOCK, ROWS * BLOCK
"""Size of the frames of ``write_video``; 18 blocks hold a number up to 2 ** 17 and a mark that says
which way is up.
"""


def picture(width: int = 40, height: int = 30, seed: int = 0) -> UInt8Array:
    """A picture of noise, uint8, (H, W, 3)."""
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)


def write_picture(path: Path, width: int = 40, height: int = 30, seed: int = 0) -> Path:
    """Writes ``picture``; the extension says the format."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(picture(width, height, seed)).save(path)
    return path


def write_huge_png(path: Path, edge: int = 40_000) -> Path:
    """Writes a small PNG file whose header promises edge x edge pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return (
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        )

    header = struct.pack(">IIBBBBB", edge, edge, 8, 2, 0, 0, 0)
    path.write_bytes(
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(bytes(100_000)))
        + chunk(b"IEND", b"")
    )
    return path


def numbered(number: int) -> UInt8Array:
    """A frame that shows its number in black and white blocks, uint8, (48, 96, 3). The first block
    is always white, the last always black.
    """
    bits = [1, *(number >> bit & 1 for bit in range(ROWS * COLUMNS - 2)), 0]
    blocks = np.array(bits, np.uint8).reshape(ROWS, COLUMNS) * 200 + 30
    return np.repeat(np.kron(blocks, np.ones((BLOCK, BLOCK), np.uint8))[..., None], 3, 2)


def number_of(pixels: UInt8Array) -> int:
    """The number that a frame shows, from its pixels, uint8, (48, 96, 3).

    Raises:
        AssertionError: It is not such a frame, or not upright.
    """
    assert pixels.shape == (HEIGHT, WIDTH, 3)
    bright = pixels.reshape(ROWS, BLOCK, COLUMNS, BLOCK, 3).mean((1, 3, 4)) > 130
    first, *bits, last = bright.ravel().tolist()
    assert (first, last) == (True, False), "not upright"
    return sum(int(bit) << place for place, bit in enumerate(bits))


def write_video(
    path: Path,
    count: int = 30,
    *,
    fps: int = 10,
    pts: Sequence[int] | None = None,
    time_base: Fraction | None = None,
    codec: str = "libx264",
    key_every: int = 12,
    b_frames: int = 2,
    rotation: int | None = None,
    hflip: bool = False,
    audio_from_seconds: float | None = None,
    audio_seconds: float = 1.0,
    aspect: Fraction | None = None,
    draw: Callable[[int], UInt8Array] = numbered,
    encoder: dict[str, str] | None = None,
    options: dict[str, str] | None = None,
) -> Path:
    """Writes a video of ``numbered`` frames.

    Args:
        path: Where; the extension says the container.
        count: How many frames.
        fps: Frames a second.
        pts: Presentation time of each frame in ``time_base``, instead of one every 1/fps seconds.
        time_base: Unit of ``pts``.
        codec: The encoder.
        key_every: Frames from one key frame to the next.
        b_frames: Frames between those that are not reordered.
        rotation: Degrees of the display matrix, counter-clockwise; None for no matrix.
        hflip: Whether the display matrix mirrors.
        audio_from_seconds: Where a sound track begins; None for no sound.
        audio_seconds: How long it is.
        aspect: Width of a pixel over its height; None states none.
        draw: Gives the frame of a number, uint8, (48, 96, 3).
        encoder: Options for the encoder, beside those that this sets.
        options: For the container.
    """
    import av

    path.parent.mkdir(parents=True, exist_ok=True)
    unit = time_base or Fraction(1, fps)
    with av.open(str(path), "w", options=options or {}) as container:
        stream = container.add_stream(codec, rate=fps)
        stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, "yuv420p"
        stream.codec_context.time_base = unit
        stream.codec_context.gop_size = key_every
        stream.codec_context.max_b_frames = b_frames
        stream.codec_context.thread_count = 1
        if codec == "libx264":
            stream.codec_context.options = {
                "preset": "ultrafast",
                "bf": str(b_frames),
                "crf": "18",
                "sc_threshold": "0",
            }
        if encoder is not None:
            stream.codec_context.options = {**stream.codec_context.options, **encoder}
        if aspect is not None:
            stream.codec_context.sample_aspect_ratio = aspect
        if rotation is not None:
            stream.set_display_rotation(rotation, hflip=hflip)
        sound = container.add_stream("aac", rate=8000) if audio_from_seconds is not None else None
        container.start_encoding()
        for number in range(count):
            frame = av.VideoFrame.from_ndarray(draw(number), format="rgb24")
            frame.pts = number if pts is None else pts[number]
            frame.time_base = unit
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
        if sound is not None:
            silence = av.AudioFrame.from_ndarray(
                np.zeros((1, round(8000 * audio_seconds)), np.float32),
                format="fltp",
                layout="mono",
            )
            silence.sample_rate, silence.pts, silence.time_base = (
                8000,
                int((audio_from_seconds or 0) * 8000),
                Fraction(1, 8000),
            )
            container.mux(sound.encode(silence))
            container.mux(sound.encode(None))
    return path


def write_sound(path: Path) -> Path:
    """Writes a file with a sound track and no picture."""
    import av

    with av.open(str(path), "w") as container:
        stream = container.add_stream("aac", rate=8000)
        silence = av.AudioFrame.from_ndarray(
            np.zeros((1, 8000), np.float32), format="fltp", layout="mono"
        )
        silence.sample_rate = 8000
        container.mux(stream.encode(silence))
        container.mux(stream.encode(None))
    return path
