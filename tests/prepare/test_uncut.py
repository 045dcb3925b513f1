"""Pictures that are left to the engine's device: held as they are, known again, counted right."""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.prepare.test_preparer import SEQ_LEN, TILE, ask, clip, image, load, noise, payload
from vlmbatch.core import Conversation, Part, Pixels, Turn
from vlmbatch.prepare import Preparer, UncutPicture, UncutTiles
from vlmbatch.prepare.digests import digest_tile

LIMIT_BYTES = 1 << 28


@pytest.fixture(scope="module")
def folder(tiny: Path) -> Path:
    return tiny


@pytest.fixture(scope="module")
def here(folder: Path) -> Preparer:
    return load(folder)


@pytest.fixture(scope="module")
def leaving(here: Preparer) -> Preparer:
    return here.leaving_pictures(LIMIT_BYTES)


def uncut(preparer: Preparer, conversation: Conversation) -> UncutTiles:
    tiles = payload(preparer, conversation).tiles
    assert isinstance(tiles, UncutTiles)
    return tiles


def cut(tiles: UncutTiles) -> np.ndarray:
    parts = [p.cut() if isinstance(p, UncutPicture) else p for p in tiles.parts]
    return np.concatenate(parts)


def mixed() -> Conversation:
    """A small picture, one that is too large to be left, a tile, and a clip."""
    tile = Part("tile", pixels=Pixels([noise(TILE, TILE, 3)]))
    media = [image(64, 48), image(900, 800, seed=1)]
    parts = [*(part for each in media for part in each.media()), tile, *clip(2).media()]
    return Conversation((Turn("user", tuple(parts)),))


@pytest.mark.parametrize("about", [image(64, 48), image(20, 9), clip(3), mixed()])
def test_its_tiles_and_prompts_are_those_that_are_cut_here(
    here: Preparer, leaving: Preparer, about: Conversation
) -> None:
    wanted, found = (each.prepare(about, ask("?", "Why?")) for each in (here, leaving))
    tiles = found.payload.tiles
    assert np.array_equal(cut(tiles), wanted.payload.tiles)
    assert (len(tiles), tiles.shape, tiles.dtype) == (
        len(wanted.payload.tiles),
        wanted.payload.tiles.shape,
        wanted.payload.tiles.dtype,
    )
    assert found.payload.prefix_ids == wanted.payload.prefix_ids
    assert found.payload.prefix_ids.count(here.writer.image_token_id) == len(tiles) * SEQ_LEN
    assert (found.tiles, found.native_tiles) == (wanted.tiles, wanted.native_tiles)


def test_it_holds_the_bytes_of_the_picture(leaving: Preparer, here: Preparer) -> None:
    request = leaving.prepare(image(64, 48), ask("?"))
    assert request.payload_bytes == 64 * 48 * 3
    assert here.prepare(image(64, 48), ask("?")).payload_bytes == 13 * 3 * TILE * TILE


def test_pictures_that_would_be_more_bytes_than_they_save_are_cut_here(leaving: Preparer) -> None:
    kinds = [type(part) for part in uncut(leaving, mixed()).parts]
    assert kinds == [UncutPicture, np.ndarray, np.ndarray, UncutPicture, UncutPicture]
    assert isinstance(payload(leaving, image(900, 800)).tiles, np.ndarray)


def test_a_tile_is_found_by_its_number(leaving: Preparer) -> None:
    tiles = uncut(leaving, mixed())
    counts = [len(part) for part in tiles.parts]
    assert sum(counts) == len(tiles)
    assert tiles.find(0) == (tiles.parts[0], 0)
    assert tiles.find(counts[0])[1] == 0
    assert tiles.find(len(tiles) - 1) == (tiles.parts[-1], 0)


def test_equal_pictures_have_equal_keys_and_no_others(leaving: Preparer) -> None:
    def keys(preparer: Preparer, width: int, height: int, seed: int = 0) -> list[bytes]:
        return list(payload(preparer, image(width, height, seed=seed)).tile_keys)

    first = keys(leaving, 64, 48)
    assert len(set(first)) == 13
    assert keys(leaving, 64, 48) == first
    others = [
        keys(leaving, 64, 48, seed=1),
        keys(leaving, 48, 64),  # the same bytes in other rows
        keys(load_native(leaving), 64, 48),
    ]
    for other in others:
        assert not set(other) & set(first)


def load_native(preparer: Preparer) -> Preparer:
    made = pickle.loads(pickle.dumps(preparer))
    made.detail = "native"
    return made


def page(width: int, height: int, seed: int) -> np.ndarray:
    """Paper of one colour with a few blots."""
    drawn = np.random.default_rng(seed)
    pixels = np.full((height, width, 3), drawn.integers(0, 256, 3), np.uint8)
    for _ in range(2):
        top, left = (int(drawn.integers(edge)) for edge in (height, width))
        pixels[top : top + 9, left : left + 9] ^= np.uint8(1)
    return pixels


def test_tiles_of_one_colour_are_known_and_equal_keys_are_equal_tiles(leaving: Preparer) -> None:
    shared = 0
    for seed in range(60):
        width, height = (int(edge) for edge in np.random.default_rng(seed).integers(9, 99, 2))
        pixels = Pixels([page(width, height, seed)])
        found = payload(leaving, Conversation.about("image", pixels, "a.png"))
        assert isinstance(found.tiles, UncutTiles)
        tiles = cut(found.tiles)
        by_key = dict(zip(found.tile_keys, tiles, strict=True))
        assert all(
            np.array_equal(by_key[key], tile)
            for key, tile in zip(found.tile_keys, tiles, strict=True)
        )
        flat = {digest_tile(tile) for tile in tiles if (tile == tile[:, :1, :1]).all()}
        shared += len(tiles) - len(by_key)
        for key, tile in zip(found.tile_keys, tiles, strict=True):
            # of one colour from farther than the filter sees: by the digest of the tile itself
            assert (key == digest_tile(tile)) <= (digest_tile(tile) in flat)
    assert shared > 100


def test_a_blank_page_is_one_tile_here_and_there(leaving: Preparer, here: Preparer) -> None:
    blank = Pixels([np.full((60, 80, 3), (250, 249, 7), np.uint8)])
    about = Conversation.about("image", blank, "a.png")
    keys = set(payload(leaving, about).tile_keys)
    assert len(keys) == 1
    assert keys == set(payload(here, about).tile_keys)


def test_frames_that_are_equal_share_a_key(leaving: Preparer) -> None:
    frames = [noise(50, 30)] * 2
    about = Conversation.about("clip", Pixels(frames, (0.0, 1.0), 2.0), "a.mp4")
    assert len(set(payload(leaving, about).tile_keys)) == 1


def test_what_becomes_of_the_callers_pixels_does_not_matter(leaving: Preparer) -> None:
    pixels = noise(64, 48)
    tiles = uncut(leaving, Conversation.about("image", Pixels([pixels]), "a.png"))
    before = cut(tiles)
    pixels[:] = 0
    assert np.array_equal(cut(tiles), before)


def test_an_image_and_its_array_are_the_same(leaving: Preparer) -> None:
    other = Conversation.about("image", Pixels([Image.fromarray(noise(64, 48))]), "a.png")
    made, wanted = payload(leaving, other), payload(leaving, image(64, 48))
    assert made.tile_keys == wanted.tile_keys
    (picture,) = made.tiles.parts
    assert picture.pixels.flags.c_contiguous


def test_a_copy_of_the_preparer_leaves_pictures_too(leaving: Preparer) -> None:
    copied = pickle.loads(pickle.dumps(leaving))
    assert copied.uncut_bytes == LIMIT_BYTES
    assert payload(copied, image(64, 48)).tile_keys == payload(leaving, image(64, 48)).tile_keys
    assert isinstance(payload(copied.leaving_pictures(0), image(64, 48)).tiles, np.ndarray)


def test_tiles_of_a_page_are_cut_here(leaving: Preparer, here: Preparer) -> None:
    page = image(200, 150)
    for found, wanted in zip(leaving.cut(page), here.cut(page), strict=True):
        tiles = payload(leaving, found).tiles
        assert np.array_equal(tiles, payload(here, wanted).tiles)
