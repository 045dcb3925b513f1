"""Digest tiles, to find equal ones within a process."""

from __future__ import annotations

import functools
import hashlib
import itertools
import struct
import timeit
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from vlmbatch.core import UInt8Array
from vlmbatch.prepare.lanczos import input_range
from vlmbatch.prepare.payload import UncutPicture, UncutTiles

DIGEST_BYTES = 16
SAMPLE_BYTES = 1 << 16
SAMPLED = 16
"""One row and column of so many is looked at first, to tell whether a tile has one colour."""

Range = tuple[int, int]
"""First and last row or column, the last one not included."""


def digest_tile(tile: UInt8Array) -> bytes:
    """Return a digest of a tile's pixels; a C-contiguous array. Equal only for equal tiles, also of
    users who look for others: both hashes are cryptographic.
    """
    found: bytes = _fastest_hash()(tile).digest()
    return found[:DIGEST_BYTES]


def digest_tiles(tiles: UInt8Array | UncutTiles) -> list[bytes]:
    """Return a digest of each tile: of its pixels, or of the pixels of its picture, if that is not
    cut yet, its plan and the number of the tile there. An uncut tile is equal to those of equal
    pictures, and of one colour to all such tiles, as far as digests say.
    """
    keys: list[bytes] = []
    for part in tiles.parts if isinstance(tiles, UncutTiles) else [tiles]:
        keys += _digest_uncut(part) if isinstance(part, UncutPicture) else map(digest_tile, part)
    return keys


def _digest_uncut(picture: UncutPicture) -> Iterator[bytes]:
    plan = picture.plan
    sizes = *picture.pixels.shape, *plan.resized, *plan.fitted, picture.tile_edge
    whole = digest_tile(picture.pixels) + struct.pack(f"<{len(sizes)}q", *sizes)
    for number, (rows, columns) in enumerate(_sources(picture)):
        colour = _only_colour(picture.pixels[slice(*rows), slice(*columns)])
        if colour is not None:
            yield _digest_of_colour(colour, picture.tile_edge)
        else:
            tile = whole + struct.pack("<q", number)
            yield hashlib.blake2b(tile, digest_size=DIGEST_BYTES).digest()


def _sources(picture: UncutPicture) -> Iterator[tuple[Range, Range]]:
    """The rows and columns of a picture that make each of its tiles."""
    plan, edge = picture.plan, picture.tile_edge
    height, width = picture.pixels.shape[:2]
    sizes = plan.sizes((width, height), edge)
    stages = sizes[:-1] if plan.rows else sizes

    def source(axis: int, number: int) -> Range:
        found = number * edge, (number + 1) * edge
        for size, to in reversed(list(itertools.pairwise(stages))):
            found = input_range(size[axis], to[axis], *found)
        return found

    columns = [source(0, number) for number in range(plan.cols)]
    rows = [source(1, number) for number in range(plan.rows)]
    yield from itertools.product(rows, columns)
    yield (0, height), (0, width)


def _only_colour(pixels: UInt8Array) -> tuple[int, int, int] | None:
    """The colour of all pixels; None if there are several. Lanczos makes no other one of it: the
    sum of its weights is 1 but for rounding.
    """
    first, some = pixels[:1], pixels[::SAMPLED, ::SAMPLED]
    if (some != first[0, 0]).any() or (first != first[0, 0]).any():
        return None
    if (pixels != first).any():  # row by row, which numpy compares fastest
        return None
    red, green, blue = pixels[0, 0].tolist()
    return red, green, blue


@functools.lru_cache(maxsize=64)
def _digest_of_colour(colour: tuple[int, int, int], edge: int) -> bytes:
    tile = np.empty((3, edge, edge), np.uint8)
    tile[:] = np.array(colour, np.uint8)[:, np.newaxis, np.newaxis]
    return digest_tile(tile)


@functools.cache
def _fastest_hash() -> Callable[..., Any]:
    """Measure which hash is the faster one, 1 ms: processors with instructions for SHA-256 compute
    it in half the time of BLAKE2b, others in twice that.
    """
    sample = bytes(SAMPLE_BYTES)
    hashes: tuple[Callable[..., Any], ...] = (hashlib.sha256, hashlib.blake2b)

    def seconds(hash_of: Callable[..., Any]) -> float:
        return min(timeit.repeat(lambda: hash_of(sample), number=1, repeat=5))

    return min(hashes, key=seconds)
