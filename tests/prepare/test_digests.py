"""Tiles have equal digests only if they are equal."""

from __future__ import annotations

import numpy as np

from vlmbatch.prepare.digests import DIGEST_BYTES, digest_tile


def test_a_digest_depends_on_every_pixel() -> None:
    tile = np.zeros((3, 8, 8), np.uint8)
    digests = {digest_tile(tile)}
    for place in np.ndindex(*tile.shape):
        other = tile.copy()
        other[place] = 1
        digests.add(digest_tile(other))
    assert len(digests) == tile.size + 1
    assert {len(digest) for digest in digests} == {DIGEST_BYTES}


def test_equal_tiles_have_equal_digests() -> None:
    tile = np.random.default_rng(0).integers(0, 256, (3, 64, 64), np.uint8)
    assert digest_tile(tile) == digest_tile(tile.copy())
