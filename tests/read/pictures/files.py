"""Writes picture files in modes and depths that Pillow does not write."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt


def write_png(
    path: Path,
    samples: npt.NDArray[np.integer],
    depth: int,
    *,
    transparent: Sequence[int] | bytes | None = None,
    palette: bytes = b"",
) -> Path:
    """Writes a PNG file of any depth.

    Args:
        path: The file.
        samples: (H, W): greys, or indices of ``palette``; (H, W, C): colours.
        depth: Bits a sample.
        transparent: The transparent colour, or a palette's alphas.
        palette: RGB.
    """
    height, width = samples.shape[:2]
    bits = samples.astype(">u2").reshape(height, -1, 1) >> np.arange(depth - 1, -1, -1) & 1
    rows = np.packbits(bits.reshape(height, -1).astype(np.uint8), axis=1)
    kind = 3 if palette else {1: 0, 2: 4, 3: 2, 4: 6}[samples.size // (height * width)]
    chunks = {b"IHDR": struct.pack(">IIBBBBB", width, height, depth, kind, 0, 0, 0)}
    if palette:
        chunks[b"PLTE"] = palette
    if transparent is not None:
        is_alphas = isinstance(transparent, bytes)
        chunks[b"tRNS"] = (
            bytes(transparent) if is_alphas else np.array(transparent, ">u2").tobytes()
        )
    chunks[b"IDAT"] = zlib.compress(b"".join(b"\0" + row.tobytes() for row in rows))
    chunks[b"IEND"] = b""
    path.write_bytes(
        b"\x89PNG\r\n\x1a\n"
        + b"".join(
            struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
            for name, data in chunks.items()
        )
    )
    return path


def packed_12_bits(greys: npt.NDArray[np.integer]) -> bytes:
    """Pairs of 12-bit greys in three bytes each, as TIFF stores them."""
    first, second = greys.reshape(-1, 2).astype(np.uint16).T
    three = np.stack([first >> 4, (first & 15) << 4 | second >> 8, second & 255], axis=1)
    return three.astype(np.uint8).tobytes()


def write_tiff(
    path: Path,
    width: int,
    height: int,
    planes: Sequence[bytes],
    *,
    bits: int,
    order: str = "<",
    samples: int = 1,
    sample_format: int = 1,
    photometric: int = 1,
    tags: dict[int, Sequence[int]] | None = None,
) -> Path:
    """Writes an uncompressed TIFF file of one strip, or of one a plane.

    Args:
        path: The file.
        width: In pixels.
        height: In pixels.
        planes: The strips.
        bits: Of a sample.
        order: ``<`` or ``>``.
        samples: Of a pixel.
        sample_format: 1 unsigned, 2 signed, 3 float.
        photometric: 0 white is zero, 1 black is zero, 2 RGB, 3 palette.
        tags: Others, of type SHORT.
    """
    starts = np.cumsum([8, *map(len, planes)]).tolist()
    shorts = {
        258: [bits] * samples,
        259: [1],
        262: [photometric],
        277: [samples],
        284: [2 if len(planes) > 1 else 1],
        339: [sample_format] * samples,
        **(tags or {}),
    }
    longs = {256: [width], 257: [height], 273: starts[:-1], 278: [height], 279: map(len, planes)}
    entries = {tag: (3, "H", list(values)) for tag, values in shorts.items()}
    entries |= {tag: (4, "I", list(values)) for tag, values in longs.items()}
    table, held = struct.pack(f"{order}H", len(entries)), b""
    after = starts[-1] + 2 + 12 * len(entries) + 4
    for tag, (kind, letter, values) in sorted(entries.items()):
        raw = struct.pack(f"{order}{len(values)}{letter}", *values)
        table += struct.pack(f"{order}HHI", tag, kind, len(values))
        if len(raw) <= 4:
            table += raw.ljust(4, b"\0")
        else:
            table += struct.pack(f"{order}I", after + len(held))
            held += raw
    head = (b"II" if order == "<" else b"MM") + struct.pack(f"{order}HI", 42, starts[-1])
    path.write_bytes(head + b"".join(planes) + table + bytes(4) + held)
    return path


def write_bmp(path: Path, bgra: npt.NDArray[np.uint8]) -> Path:
    """Writes a BMP file of 32 bits with a V4 header that declares alpha; uint8, (H, W, 4)."""
    height, width = bgra.shape[:2]
    masks = struct.pack("<IIII", 0xFF0000, 0xFF00, 0xFF, 0xFF000000)
    fields = (108, width, -height, 1, 32, 3, bgra.nbytes, 2835, 2835, 0, 0)
    header = (struct.pack("<IiiHHIIiiII", *fields) + masks).ljust(108, b"\0")
    path.write_bytes(
        b"BM" + struct.pack("<IHHI", 122 + bgra.nbytes, 0, 0, 122) + header + bgra.tobytes()
    )
    return path


def write_gif(
    path: Path,
    screen: tuple[int, int],
    frames: Sequence[tuple[tuple[int, int, int, int], int, int]],
) -> Path:
    """Writes an animation of flat rectangles without transparency.

    Args:
        path: The file.
        screen: (width, height).
        frames: ((left, top, width, height), colour, disposal method) of each. Colour 0 is red, 1
            green, 2 blue, 3 black; the background is 3.
    """
    palette = bytes([255, 0, 0, 0, 255, 0, 0, 0, 255, 0, 0, 0])
    data = b"GIF89a" + struct.pack("<HHBBB", *screen, 0x81, 3, 0) + palette
    for (left, top, width, height), colour, disposal in frames:
        data += b"!\xf9\x04" + struct.pack("<BHB", disposal << 2, 10, 0) + b"\0"
        data += b"," + struct.pack("<HHHHB", left, top, width, height, 0) + b"\x02"
        # Codes of 3 bits; a clear code (4) before each pixel keeps them so.
        codes = [code for _ in range(width * height) for code in (4, colour)] + [5]
        bits = "".join(f"{code:03b}" for code in reversed(codes))
        packed = int(bits, 2).to_bytes((len(bits) + 7) // 8, "little")
        for start in range(0, len(packed), 255):
            block = packed[start : start + 255]
            data += bytes([len(block)]) + block
        data += b"\0"
    path.write_bytes(data + b";")
    return path
