"""The compiled routine gives Pillow's bits, for any size, ratio and place of the pixels."""

from __future__ import annotations

import concurrent.futures

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from tests.prepare.compiled import compiled_resizer, needs_compiler
from vlmbatch.prepare.compiled import agrees_with_pillow
from vlmbatch.prepare.resize import Resizer

pytestmark = needs_compiler
edges = st.one_of(st.integers(1, 40), st.integers(1, 400))


@pytest.fixture(scope="module")
def resizer() -> Resizer:
    found = compiled_resizer().get()
    assert found is not None
    return found


def pixels(width: int, height: int, seed: int) -> np.ndarray:
    """Noise, a gradient, or black and white, which overshoots most."""
    rng = np.random.default_rng(seed)
    if seed % 3 == 0:
        return rng.integers(0, 256, (height, width, 3), np.uint8)
    if seed % 3 == 1:
        return (rng.integers(0, 2, (height, width, 3)) * 255).astype(np.uint8)
    x, y = np.mgrid[0:height, 0:width]
    return np.stack([x * 5 % 256, y * 3 % 256, (x + y) % 256], -1).astype(np.uint8)


def by_pillow(picture: np.ndarray, width: int, height: int) -> np.ndarray:
    image = Image.fromarray(picture)
    return np.asarray(image.resize((width, height), Image.Resampling.LANCZOS))


def resized(resizer: Resizer, picture: object, width: int, height: int) -> np.ndarray:
    grid = np.empty((1, 1, 3, height, width), np.uint8)
    resizer.picture(picture, grid)
    return grid[0, 0].transpose(1, 2, 0)


@settings(max_examples=400)
@given(edges, edges, edges, edges, st.integers(0, 99), st.booleans())
def test_any_size_and_ratio(
    resizer: Resizer, width: int, height: int, to_width: int, to_height: int, seed: int, array: bool
) -> None:
    found = pixels(width, height, seed)
    given_as = found if array else Image.fromarray(found)
    assert np.array_equal(
        resized(resizer, given_as, to_width, to_height), by_pillow(found, to_width, to_height)
    )


@pytest.mark.parametrize(
    "size",
    [(1, 5000, 64, 64), (5000, 1, 64, 64), (4096, 4, 512, 1), (3, 3, 1024, 700), (16, 16, 16, 16)],
    ids=str,
)
def test_extreme_ratios(resizer: Resizer, size: tuple[int, int, int, int]) -> None:
    width, height, *to = size
    for seed in range(3):
        found = pixels(width, height, seed)
        assert np.array_equal(resized(resizer, found, *to), by_pillow(found, *to))


@pytest.mark.parametrize("size", [(640, 480), (2600, 1801), (4000, 3000)], ids=str)
@pytest.mark.parametrize("to", [(2048, 1536), (512, 512)], ids=str)
def test_photos(resizer: Resizer, size: tuple[int, int], to: tuple[int, int]) -> None:
    """The largest of them lies in several pieces of Pillow's memory."""
    found = pixels(*size, 0)
    expected = by_pillow(found, *to)
    assert np.array_equal(resized(resizer, Image.fromarray(found), *to), expected)


@settings(max_examples=150)
@given(
    st.tuples(st.integers(1, 4), st.integers(1, 4)),
    st.tuples(st.integers(1, 90), st.integers(1, 90)),
    st.tuples(st.integers(1, 3), st.integers(1, 3)),
    st.tuples(st.integers(1, 90), st.integers(1, 90)),
    st.integers(0, 99),
)
def test_grids_of_tiles(
    resizer: Resizer,
    tiles: tuple[int, int],
    tile: tuple[int, int],
    to_tiles: tuple[int, int],
    to_tile: tuple[int, int],
    seed: int,
) -> None:
    found = pixels(tiles[1] * tile[1], tiles[0] * tile[0], seed)
    grid = found.reshape(tiles[0], tile[0], tiles[1], tile[1], 3).transpose(0, 2, 4, 1, 3)
    to = np.empty((*to_tiles, 3, *to_tile), np.uint8)
    resizer.grid(np.ascontiguousarray(grid), to)
    height, width = to_tiles[0] * to_tile[0], to_tiles[1] * to_tile[1]
    assert np.array_equal(
        to.transpose(0, 3, 1, 4, 2).reshape(height, width, 3), by_pillow(found, width, height)
    )


def test_views_of_larger_arrays(resizer: Resizer) -> None:
    whole = pixels(200, 150, 0)
    for view in (whole[10:130:2, ::-1], whole[::-1], whole[:, 20:90], whole.transpose(1, 0, 2)):
        view.flags.writeable = False
        assert np.array_equal(
            resized(resizer, view, 77, 66), by_pillow(np.ascontiguousarray(view), 77, 66)
        )


def test_the_check_before_use(resizer: Resizer) -> None:
    assert agrees_with_pillow(resizer)


def test_threads_do_not_take_each_other_s_weights(resizer: Resizer) -> None:
    """More sizes at a time than weights are kept for."""
    pictures = [pixels(60 + 3 * number, 50 + number, number) for number in range(80)]
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        found = pool.map(lambda picture: resized(resizer, picture, 64, 64), pictures * 4)
        for picture, small in zip(pictures * 4, found, strict=True):
            assert np.array_equal(small, by_pillow(picture, 64, 64))
