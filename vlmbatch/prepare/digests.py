"""Digest tiles, to find equal ones within a process."""

from __future__ import annotations

import functools
import hashlib
import struct
import timeit
from collections.abc import Callable, Iterator
from typing import Any

from vlmbatch.core import UInt8Array
from vlmbatch.prepare.payload import UncutPicture, UncutTiles

DIGEST_BYTES = 16
SAMPLE_BYTES = 1 << 16


def digest_tile(tile: UInt8Array) -> bytes:
    """Return a digest of a tile's pixels; a C-contiguous array. Equal only for equal tiles, also of
    users who look for others: both hashes are cryptographic.
    """
    found: bytes = _fastest_hash()(tile).digest()
    return found[:DIGEST_BYTES]


def digest_tiles(tiles: UInt8Array | UncutTiles) -> list[bytes]:
    """Return a digest of each tile: of its pixels, or of the pixels of its picture, if that is not
    cut yet, its plan and the number of the tile there. An uncut tile is equal to those of equal
    pictures only, as far as digests say.
    """
    keys: list[bytes] = []
    for part in tiles.parts if isinstance(tiles, UncutTiles) else [tiles]:
        keys += _digest_uncut(part) if isinstance(part, UncutPicture) else map(digest_tile, part)
    return keys


def _digest_uncut(picture: UncutPicture) -> Iterator[bytes]:
    plan = picture.plan
    sizes = *picture.pixels.shape, *plan.resized, *plan.fitted, picture.tile_edge
    whole = digest_tile(picture.pixels) + struct.pack(f"<{len(sizes)}q", *sizes)
    for number in range(len(picture)):
        tile = whole + struct.pack("<q", number)
        yield hashlib.blake2b(tile, digest_size=DIGEST_BYTES).digest()


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
