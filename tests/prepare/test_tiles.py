"""Tiles are those of transformers' own image processor, bit for bit."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from transformers.models.smolvlm import image_processing_pil_smolvlm as reference

from tests.prepare.compiled import compiled_resizer
from vlmbatch.prepare.tiles import TileSettings, cut_tiles, plan_tiles

SMALL = TileSettings(longest_edge=256, tile_edge=64)
REAL = TileSettings(longest_edge=2048, tile_edge=512)
SHAPES = [
    (512, 2048),
    (384, 1536),
    (364, 1456),
    (64, 256),
    (32, 128),
    (100, 4200),
    (512, 4096),
    (7, 39),
    (1, 3),
]
SIZES = [
    (1, 1),
    (1, 5000),
    (5000, 1),
    (2, 3),
    (64, 64),
    (65, 64),
    (63, 65),
    (256, 256),
    (640, 480),
    (480, 640),
    (641, 479),
    (257, 129),
    (128, 256),
]
SIZES += [
    (64, 700),
    (700, 64),
    (300, 3),
    (3, 301),
    (192, 64),
    (33, 77),
    (1023, 767),
    (250, 251),
    (3, 3),
    (4, 1),
    (1, 4),
]


def picture(width: int, height: int, seed: int = 0) -> np.ndarray:
    """Noise on a gradient: sharp edges and smooth parts."""
    rng = np.random.default_rng(seed)
    ramp = np.linspace(0, 160, width)[None, :, None] + np.linspace(0, 60, height)[:, None, None]
    return (ramp + rng.integers(0, 36, (height, width, 3))).astype(np.uint8)


def reference_tiles(
    pixels: np.ndarray, longest: int, edge: int, *, split: bool = True, resample: int = 1
) -> tuple[np.ndarray, int, int]:
    processor = reference.SmolVLMImageProcessorPil(
        size={"longest_edge": longest}, max_image_size={"longest_edge": edge}, resample=resample
    )
    found = processor(
        Image.fromarray(pixels),
        do_rescale=False,
        do_normalize=False,
        do_pad=False,
        do_image_splitting=split,
        return_row_col_info=True,
    )
    values = found["pixel_values"][0]
    return np.stack([np.asarray(tile) for tile in values]), found["rows"][0][0], found["cols"][0][0]


def assert_equal_tiles(pixels: np.ndarray, own: TileSettings) -> None:
    expected, rows, cols = reference_tiles(
        pixels, own.longest_edge, own.tile_edge, split=own.split, resample=own.resample
    )
    for compiled in (None, compiled_resizer()):
        found, plan = cut_tiles(pixels, own, compiled)
        assert (plan.rows, plan.cols) == (rows, cols)
        assert found.dtype == expected.dtype == np.uint8
        assert found.shape == expected.shape == (plan.n_tiles, 3, own.tile_edge, own.tile_edge)
        assert np.array_equal(found, expected)


def reference_sizes(
    width: int, height: int, longest: int, edge: int
) -> tuple[tuple[int, int], tuple[int, int]]:
    """What the processor's own functions say, sizes only."""
    height, width = reference._resize_output_size_rescale_to_max_len(height, width, max_len=longest)
    height, width = reference._resize_output_size_scale_below_upper_bound(
        height, width, max_len=reference.MAX_IMAGE_SIZE
    )
    asked: list[tuple[int, int]] = []

    class Recorder(reference.SmolVLMImageProcessorPil):
        def resize(
            self, image: np.ndarray, size: object, resample: object = None, **kwargs: object
        ) -> np.ndarray:
            asked.append((size.width, size.height))
            return image

    Recorder().resize_for_vision_encoder(np.broadcast_to(np.uint8(0), (3, height, width)), edge)
    return (width, height), asked[0]


@settings(max_examples=1500)
@given(st.integers(1, 6000), st.integers(1, 6000), st.sampled_from(SHAPES))
def test_plan_follows_the_processors_arithmetic(
    width: int, height: int, shape: tuple[int, int]
) -> None:
    edge, longest = shape
    plan = plan_tiles(width, height, TileSettings(longest, edge))
    resized, fitted = reference_sizes(width, height, longest, edge)
    assert plan.resized == resized
    assert plan.fitted == fitted
    one = fitted == (edge, edge)
    assert (plan.cols, plan.rows) == ((0, 0) if one else (fitted[0] // edge, fitted[1] // edge))
    assert plan.n_tiles == (1 if one else plan.rows * plan.cols + 1)


@settings(max_examples=300)
@given(st.integers(1, 6000), st.integers(1, 6000), st.sampled_from(SHAPES[:5]))
def test_native_never_takes_more_tiles_than_full(
    width: int, height: int, shape: tuple[int, int]
) -> None:
    full = TileSettings(shape[1], shape[0])
    native = full.native(width, height)
    assert native.longest_edge % native.tile_edge == 0
    assert native.longest_edge >= min(max(width, height), full.longest_edge)
    assert plan_tiles(width, height, native).n_tiles <= plan_tiles(width, height, full).n_tiles


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_full_detail(size: tuple[int, int]) -> None:
    assert_equal_tiles(picture(*size), SMALL)


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_native_detail(size: tuple[int, int]) -> None:
    native = SMALL.native(*size)
    assert native.longest_edge == min(256, math.ceil(max(size) / 64) * 64)
    assert_equal_tiles(picture(*size), native)


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_low_detail_is_one_tile(size: tuple[int, int]) -> None:
    assert_equal_tiles(picture(*size), TileSettings(256, 64, split=False))


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_video_frames(size: tuple[int, int]) -> None:
    assert_equal_tiles(picture(*size), TileSettings(64, 64, split=False))


@settings(max_examples=60)
@given(
    st.integers(1, 400),
    st.integers(1, 400),
    st.sampled_from([(32, 128), (48, 150), (40, 240)]),
    st.booleans(),
    st.integers(0, 9),
)
def test_any_small_picture(
    width: int, height: int, shape: tuple[int, int], split: bool, seed: int
) -> None:
    assert_equal_tiles(picture(width, height, seed), TileSettings(shape[1], shape[0], split=split))


@pytest.mark.parametrize("resample", [0, 1, 2, 3, 4, 5])
def test_the_checkpoints_filter_is_used(resample: int) -> None:
    assert_equal_tiles(picture(130, 97), TileSettings(256, 64, resample=resample))


@pytest.mark.parametrize("size", [(640, 480), (1917, 1081)], ids=str)
def test_published_shapes(size: tuple[int, int]) -> None:
    assert_equal_tiles(picture(*size), REAL)


def test_the_2b_shapes() -> None:
    assert_equal_tiles(picture(500, 375), TileSettings(1536, 384))


@pytest.mark.parametrize("size", [(300, 200), (1000, 600)], ids=str)
def test_published_shapes_native(size: tuple[int, int]) -> None:
    assert_equal_tiles(picture(*size), REAL.native(*size))


@pytest.mark.parametrize("size", [(2600, 1801), (1801, 2600)], ids=str)
@pytest.mark.parametrize("split", [True, False])
def test_large_pictures(size: tuple[int, int], split: bool) -> None:
    assert_equal_tiles(picture(*size), TileSettings(1024, 256, split=split))


def test_a_photo_of_the_published_shape_takes_thirteen_tiles() -> None:
    assert plan_tiles(640, 480, REAL).n_tiles == 13
    assert plan_tiles(600, 600, REAL).n_tiles == 17
    assert plan_tiles(640, 480, REAL.native(640, 480)).n_tiles == 5
    assert plan_tiles(300, 200, REAL.native(300, 200)).n_tiles == 1


def test_a_view_of_a_larger_array_is_cut_like_a_copy() -> None:
    whole = picture(200, 150)
    view = whole[10:130:2, ::-1]
    assert np.array_equal(
        cut_tiles(view, SMALL)[0], cut_tiles(np.ascontiguousarray(view), SMALL)[0]
    )


def test_the_picture_is_left_alone() -> None:
    pixels = picture(64, 64)
    pixels.flags.writeable = False
    found, _ = cut_tiles(pixels, TileSettings(64, 64))
    assert np.array_equal(found[0], pixels.transpose(2, 0, 1))
    assert found.flags.writeable
    assert found.flags.c_contiguous
