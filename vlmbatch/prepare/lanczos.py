"""Lanczos resizing as matrix products, with the bits of Pillow's resize: the passes, and the
weights of each, for a device without a routine of its own.

Pillow multiplies bytes by weights of 22 fractional bits, and rounds each sum of an axis to a byte.
A weight is split into two integers, ``high * 2**bits + low``. They are so small that no sum of
their products with bytes leaves the integers that float32 holds exactly: a product of float32
matrices is then exact, in whatever order a device adds.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import math

import numpy as np
import numpy.typing as npt
from PIL import Image

from vlmbatch.prepare.resize import ONE, is_vertical_first
from vlmbatch.prepare.tiles import TilePlan, TileSettings

WEIGHT_BITS = ONE.bit_length() - 1
LOBES = 3.0
"""Support of the Lanczos filter (``lanczos_filter`` of Pillow's Resample.c)."""
BLOCK = 64
"""Output pixels that share a window of input pixels, and a matrix of weights."""
LOW_BITS = range(12, 6, -1)
"""Sizes of the low part of a weight, the best first."""
EXACT = 1 << 24
"""Integers up to here are exact in float32."""
TIE = 1e-6
"""Distance from a half below which a weight is computed again as C computes it: numpy's sine may
differ from C's in its last bit, a billionth of this.
"""

SPARE_TILES = 1
"""A picture is left to the device if it has at most the bytes of its tiles and of so many more.
Every byte is hashed, waits in the queue, and is copied by the engine's thread: one of 12 MP takes
longer to unpack and hash than to cut straight from Pillow's memory. A frame of 640 x 480 is a
little more than its one tile, but takes ten times as long to cut as to copy.
"""

Size = tuple[int, int]
"""(width, height)."""


@dataclasses.dataclass(frozen=True, eq=False)
class Axis:
    """The weights of a pass from ``in_size`` to ``out_size`` pixels.

    The output is computed in blocks of ``BLOCK`` pixels, the last one with some that do not count.
    With w for the bytes of a window, ``w @ high + scale * floor(w @ low)`` are Pillow's sums,
    divided by 2**22 and without bits that change nothing.

    Attributes:
        in_size, out_size: Number of pixels.
        inputs: int64, the input pixels of every block, block by block.
        window: Number of input pixels of a block.
        places: int64, places of the weights that count, in a matrix (blocks, window, BLOCK).
        weights: float32, (2, len(places)): low and high parts, scaled.
        scale: Factor of the floored low sum.
    """

    in_size: int
    out_size: int
    inputs: npt.NDArray[np.int64]
    window: int
    places: npt.NDArray[np.int64]
    weights: npt.NDArray[np.float32]
    scale: float

    @property
    def blocks(self) -> int:
        """Number of blocks."""
        return len(self.inputs) // self.window

    @property
    def nbytes(self) -> int:
        """Bytes of its matrices, which are mostly zeros."""
        return 2 * 4 * self.blocks * self.window * BLOCK + self.inputs.nbytes


@dataclasses.dataclass(frozen=True)
class Pass:
    """One pass of a resize: over the widths (``is_wide``) or the heights."""

    is_wide: bool
    axis: Axis

    def working_bytes(self, others: int) -> int:
        """Bytes that it takes on a device.

        Args:
            others: Number of pixels across, three bytes each.
        """
        gathered, out = len(self.axis.inputs), self.axis.blocks * BLOCK
        # The windows and the sums in bytes and in float32, and the bytes before; the heights of
        # each colour have matrices of their own.
        pixels = 3 * others * (5 * gathered + 5 * out + self.axis.in_size)
        return pixels + (0 if self.is_wide else 3 * self.axis.nbytes)


def is_worth_leaving(size: Size, plan: TilePlan, settings: TileSettings, limit_bytes: int) -> bool:
    """Return whether a device should resize and cut a picture.

    Args:
        size: Size of the picture.
        plan: Its tiles.
        settings: The checkpoint's settings.
        limit_bytes: Most memory that this may take on the device.
    """
    edge = settings.tile_edge
    width, height = size
    if settings.resample != Image.Resampling.LANCZOS:
        return False
    if width * height > (plan.n_tiles + SPARE_TILES) * edge * edge:
        return False
    sizes = plan.sizes(size, edge)
    try:
        most = max((working_bytes(*two) for two in itertools.pairwise(sizes)), default=0)
    except ValueError:
        return False
    return most <= limit_bytes


def input_range(in_size: int, out_size: int, begin: int, end: int) -> tuple[int, int]:
    """The input pixels that make the output pixels ``begin`` to ``end`` of a pass."""
    if in_size == out_size:
        return begin, end
    scale = in_size / out_size
    support = LOBES * max(scale, 1.0)
    first = int((begin + 0.5) * scale - support + 0.5)
    return max(0, first), min(in_size, int((end - 0.5) * scale + support + 0.5))


@functools.lru_cache(maxsize=128)
def resize_passes(size: Size, to: Size) -> tuple[Pass, ...]:
    """The passes of Pillow's resize, in order; none between equal sizes.

    Raises:
        ValueError: So many pixels become one that float32 does not hold their sum.
    """
    wide = [Pass(True, weigh(size[0], to[0]))] if size[0] != to[0] else []
    tall = [Pass(False, weigh(size[1], to[1]))] if size[1] != to[1] else []
    return tuple(tall + wide if is_vertical_first(size, to) else wide + tall)


@functools.lru_cache(maxsize=256)
def working_bytes(size: Size, to: Size) -> int:
    """Bytes that a resize takes on a device at most.

    Raises:
        ValueError: See ``resize_passes``.
    """
    most, (width, height) = 0, size
    for each in resize_passes(size, to):
        most = max(most, each.working_bytes(height if each.is_wide else width))
        if each.is_wide:
            width = to[0]
        else:
            height = to[1]
    return most


@functools.lru_cache(maxsize=128)
def weigh(in_size: int, out_size: int) -> Axis:
    """The weights of a pass.

    Raises:
        ValueError: See ``resize_passes``.
    """
    first, count, exact = pillow_weights(in_size, out_size)
    low, high, bits = _split(exact, in_size, out_size)
    starts = np.arange(0, out_size, BLOCK)
    begins = np.minimum.reduceat(first, starts)
    window = min(in_size, int((np.maximum.reduceat(first + count, starts) - begins).max()))
    begins = np.minimum(begins, in_size - window)
    inputs = (begins[:, np.newaxis] + np.arange(window)).astype(np.int64)
    outs, taps = np.nonzero(exact)
    block = outs // BLOCK
    places = (block * window + first[outs] + taps - begins[block]) * BLOCK + outs % BLOCK
    scale = 2.0 ** (bits - WEIGHT_BITS)
    # Powers of two: nothing is rounded.
    weights = np.stack([low[outs, taps] * 2.0**-bits, high[outs, taps] * scale])
    found = inputs.ravel(), window, places.astype(np.int64), weights.astype(np.float32)
    return Axis(in_size, out_size, *found, scale)


def pillow_weights(
    in_size: int, out_size: int
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Pillow's weights (``precompute_coeffs`` and ``normalize_coeffs_8bpc`` of its Resample.c).

    Returns:
        For each output pixel the first input pixel, the number of weights, and a row of weights
        with 22 fractional bits, zeros behind them.
    """
    scale = in_size / out_size
    filter_scale = max(scale, 1.0)
    support, step = LOBES * filter_scale, 1.0 / filter_scale
    centers = (np.arange(out_size) + 0.5) * scale
    # Pillow truncates towards zero, then clips.
    first = np.maximum((centers - support + 0.5).astype(np.int64), 0)
    count = np.minimum((centers + support + 0.5).astype(np.int64), in_size) - first
    taps = np.arange(count.max())
    x = (taps + first[:, np.newaxis] - centers[:, np.newaxis] + 0.5) * step
    exact = np.where((x >= -LOBES) & (x < LOBES), np.sinc(x) * np.sinc(x / LOBES), 0.0)
    exact[taps >= count[:, np.newaxis]] = 0.0
    exact *= ONE / exact.sum(axis=1, keepdims=True)
    weights = np.trunc(exact + np.copysign(0.5, exact)).astype(np.int64)
    ties = np.abs(np.abs(exact - np.trunc(exact)) - 0.5).min(axis=1) < TIE
    for place in np.nonzero(ties)[0]:
        row = _row_of_c(int(first[place]), int(count[place]), float(centers[place]), step)
        weights[place, : len(row)] = row
    return first, count, weights


def _row_of_c(first: int, count: int, center: float, step: float) -> list[int]:
    """The weights of an output pixel, with the operations of Pillow in their order."""
    exact = [_lanczos((k + first - center + 0.5) * step) for k in range(count)]
    total = 0.0
    for weight in exact:  # sum() rounds otherwise
        total += weight
    found = [(weight / total if total else weight) * ONE for weight in exact]
    return [int(weight - 0.5 if weight < 0 else weight + 0.5) for weight in found]


def _lanczos(x: float) -> float:
    return _sinc(x) * _sinc(x / LOBES) if -LOBES <= x < LOBES else 0.0


def _sinc(x: float) -> float:
    return math.sin(x * math.pi) / (x * math.pi) if x else 1.0


def _split(
    weights: npt.NDArray[np.int64], in_size: int, out_size: int
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64], int]:
    """Split weights into low and high parts, and the bits of the low ones, so that sums are exact.

    Raises:
        ValueError: No size of the low part makes them so.
    """
    for bits in LOW_BITS:
        high = (weights + (1 << bits - 1)) >> bits
        low = weights - (high << bits)
        low_sums, high_sums = (int(255 * np.abs(part).sum(axis=1).max()) for part in (low, high))
        half = 1 << (WEIGHT_BITS - bits - 1)
        if max(low_sums, high_sums + (low_sums >> bits) + 1 + half) < EXACT:
            return low, high, bits
    raise ValueError(f"{in_size} pixels cannot be resized to {out_size} in float32")
