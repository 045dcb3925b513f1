"""Ways to damage the bytes of a file: cut, flipped, overwritten by lies, torn out, doubled."""

from __future__ import annotations

import random
import re
from collections.abc import Iterator

_MARKS = re.compile(
    rb"\xff[\xc0-\xfe]|[A-Za-z][A-Za-z0-9]{3}|PK[\x01-\x08][\x01-\x08]|\x1a\x45\xdf\xa3|\x00\x00\x01[\xb0-\xff]"
)
"""What parts of files begin with: JPEG's markers, the four letters of PNG, RIFF and MP4, those of
zip, Matroska and MPEG.
"""

_LIES = (
    b"\0\0\0\0",
    b"\xff\xff\xff\xff",
    b"\x7f\xff\xff\xff",
    b"\xff\xff\xff\x7f",
    b"\0\0\xff\xff",
    b"\1\0\0\0",
)
HEADER_BYTES = 96


def variants(content: bytes, seed: int) -> Iterator[tuple[str, bytes]]:
    """Yields (what was done, the damaged bytes), the same ones every time."""
    dice = random.Random(seed)
    yield from _cuts(content, dice)
    yield from _lies(content, dice)
    yield from _flips(content, dice)
    yield from _torn(content, dice)


def boundaries(content: bytes, most: int, dice: random.Random) -> list[int]:
    """Offsets where a part of the file begins, ``most`` of them."""
    found = [match.start() for match in _MARKS.finditer(content)]
    return sorted(dice.sample(found, min(most, len(found))))


def _cuts(content: bytes, dice: random.Random) -> Iterator[tuple[str, bytes]]:
    size = len(content)
    places = {
        0,
        1,
        3,
        8,
        12,
        26,
        64,
        size // 8,
        size // 3,
        size // 2,
        size * 3 // 4,
        size * 15 // 16,
        size - 512,
        size - 16,
        size - 4,
        size - 1,
    }
    for place in sorted({*places, *boundaries(content, 8, dice)}):
        if 0 <= place < size:
            yield f"cut at {place}", content[:place]


def _lies(content: bytes, dice: random.Random) -> Iterator[tuple[str, bytes]]:
    """Overwrite what may be a size: words of the header, and those beside the begin of a part."""
    header = dice.sample(range(4, min(HEADER_BYTES, len(content) - 4)), min(10, len(content) - 8))
    parts = [place + dice.choice((-4, 2, 4, 8)) for place in boundaries(content, 10, dice)]
    for place in (*header, *parts):
        if 0 <= place <= len(content) - 4:
            lie = dice.choice(_LIES)
            yield f"{lie.hex()} at {place}", content[:place] + lie + content[place + 4 :]


def _flips(content: bytes, dice: random.Random) -> Iterator[tuple[str, bytes]]:
    for count, within in (
        (1, HEADER_BYTES),
        (1, HEADER_BYTES),
        (3, HEADER_BYTES),
        (1, None),
        (2, None),
        (8, None),
        (64, None),
    ):
        damaged = bytearray(content)
        for _ in range(count):
            damaged[dice.randrange(min(within or len(content), len(content)))] = dice.randrange(256)
        yield f"{count} bytes flipped{' in the header' if within else ''}", bytes(damaged)


def _torn(content: bytes, dice: random.Random) -> Iterator[tuple[str, bytes]]:
    size = len(content)
    start = dice.randrange(size // 4, size // 2)
    end = start + max(1, size // 8)
    yield "a hole of zeros", content[:start] + bytes(end - start) + content[end:]
    yield "a part is missing", content[:start] + content[end:]
    yield "a part is there twice", content[:end] + content[start:]
    yield "only zeros", bytes(size)
    yield "noise behind the end", content + dice.randbytes(700)
    yield "noise behind the header", content[:32] + dice.randbytes(size)
