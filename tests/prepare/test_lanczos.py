"""Lanczos as matrix products: the weights are Pillow's, the sums exact, the passes in its order."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from vlmbatch.prepare.lanczos import (
    BLOCK,
    EXACT,
    WEIGHT_BITS,
    is_worth_leaving,
    pillow_weights,
    resize_passes,
    weigh,
    working_bytes,
)
from vlmbatch.prepare.tiles import TileSettings, plan_tiles

SIZES = [(640, 2048), (2048, 512), (61, 64), (1, 512), (512, 1), (2, 1), (3000, 2047), (97, 96)]


def drawn_sizes(count: int) -> list[tuple[int, int]]:
    drawn = np.random.default_rng(0)
    return [(int(a), int(b)) for a, b in drawn.integers(1, 2600, (count, 2)) if a != b]


@pytest.mark.parametrize("sizes", [SIZES, drawn_sizes(150)], ids=["awkward", "drawn"])
def test_sums_of_the_weights_are_the_bytes_of_pillow(sizes: list[tuple[int, int]]) -> None:
    drawn = np.random.default_rng(1)
    for in_size, out_size in sizes:
        pixels = drawn.integers(0, 256, (4, in_size, 3), dtype=np.uint8)
        pixels[2:] = 255 * (pixels[2:] > 127)  # sums below 0 and above 255
        first, _, weights = pillow_weights(in_size, out_size)
        taps = np.minimum(first[:, np.newaxis] + np.arange(weights.shape[1]), in_size - 1)
        sums = np.einsum("yxkc,xk->yxc", pixels[:, taps].astype(np.int64), weights)
        found = np.clip((sums + (1 << WEIGHT_BITS - 1)) >> WEIGHT_BITS, 0, 255)
        resized = Image.fromarray(pixels).resize((out_size, 4), Image.Resampling.LANCZOS)
        assert np.array_equal(found, np.asarray(resized)), (in_size, out_size)


@pytest.mark.parametrize(("in_size", "out_size"), SIZES)
def test_sums_of_the_parts_of_weights_are_exact_and_pillows(in_size: int, out_size: int) -> None:
    first, count, weights = pillow_weights(in_size, out_size)
    axis = weigh(in_size, out_size)
    dense = np.zeros((2, axis.blocks * axis.window * BLOCK))
    dense[:, axis.places] = axis.weights
    low, high = dense.reshape(2, axis.blocks, axis.window, BLOCK)
    inputs = axis.inputs.reshape(axis.blocks, axis.window)
    bits = WEIGHT_BITS + int(np.log2(axis.scale))
    for number in range(out_size):
        block, place = divmod(number, BLOCK)
        both = (low[block, :, place] * 2**bits, high[block, :, place] / axis.scale)
        assert all(np.abs(part).sum() * 255 < EXACT for part in both)
        whole = np.zeros(in_size)
        whole[inputs[block]] = both[0] + both[1] * 2**bits
        expected = np.zeros(in_size)
        expected[first[number] : first[number] + count[number]] = weights[number, : count[number]]
        assert np.array_equal(whole, expected)


def test_so_many_pixels_for_one_that_sums_are_not_exact_are_refused() -> None:
    with pytest.raises(ValueError, match="60000 pixels cannot be resized to 20"):
        weigh(60000, 20)


def test_passes_are_in_the_order_of_pillow() -> None:
    def order(size: tuple[int, int], to: tuple[int, int]) -> list[bool]:
        return [each.is_wide for each in resize_passes(size, to)]

    assert order((40, 30), (64, 64)) == [True, False]
    assert order((40, 400), (64, 64)) == [False, True]
    assert order((64, 400), (64, 64)) == [False]
    assert order((40, 64), (64, 64)) == [True]
    assert order((64, 64), (64, 64)) == []
    assert working_bytes((64, 64), (64, 64)) == 0


@pytest.mark.parametrize(
    ("size", "changes", "limit", "expected"),
    [
        ((640, 480), {}, 1 << 27, True),
        ((640, 480), {"split": False}, 1 << 27, True),
        ((2000, 1500), {}, 1 << 28, True),
        ((4000, 3000), {}, 1 << 30, False),  # more bytes than its tiles
        ((1280, 720), {"split": False}, 1 << 30, False),
        ((640, 480), {"resample": Image.Resampling.BICUBIC}, 1 << 30, False),
        ((640, 480), {}, 1 << 26, False),  # takes more memory than that
        ((1 << 20, 1), {}, 1 << 40, False),  # its sums would not be exact
    ],
)
def test_a_picture_is_left_to_the_device_where_that_saves_work_and_can_be_exact(
    size: tuple[int, int], changes: dict[str, bool], limit: int, expected: bool
) -> None:
    settings = TileSettings(2048, 512, **changes)
    plan = plan_tiles(*size, settings)
    assert is_worth_leaving(size, plan, settings, limit) == expected
