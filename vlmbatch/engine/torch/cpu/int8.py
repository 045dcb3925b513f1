"""Products of 8-bit matrices as they are, by oneDNN's product of 8-bit numbers, where the processor
has one that is exact (AVX-512 VNNI, AMX).

torch's own ``_weight_int8pack_mm`` was measured too: in float32 it multiplies number by number and
is many times slower than turning the matrix back, in bfloat16 it is about as fast as the packed
product.
"""

from __future__ import annotations

import dataclasses
import functools
import logging
import math
from collections.abc import Sequence

import torch
from torch import Tensor

from vlmbatch.engine.torch.cpu.onednn import BANDS, band_of
from vlmbatch.engine.torch.linear import Linear, QuantizedLinear

logger = logging.getLogger(__name__)

DIGIT, LEVELS = 256, 127.0
"""Steps of a digit; the largest input of a row comes to this many steps of the first digit on
either side of its middle.
"""
MIDDLE = 128.0
HALF = 0.5 / DIGIT
"""Half a step of the second digit: cutting off behind it rounds."""
SMALLEST = 1e-30
"""Stands for the largest number of a row of zeros."""
DROPPED = 0.5 / DIGIT
"""Mean loss of cutting off behind the second digit, in steps of the first."""


@dataclasses.dataclass(frozen=True)
class DigitLinear(Linear):
    """A matrix of 8-bit numbers in oneDNN's layout, multiplied with inputs of two 8-bit digits.

    Each row of the input is scaled to its own largest number and written as two digits, which the
    8-bit product takes as two rows. So inputs are whole numbers of 16 bits, rounded by at most a
    65,024th of the row's largest number, which is far below what 8 bits do to the weights. Sums of
    whole numbers are exact: a row's result does not depend on the rows beside it. The layout takes
    the place of the plain matrix; there is no second copy. Where many rows are faster multiplied in
    the model's own format, the layout is undone and the matrix turned back.

    Attributes:
        weight: The matrix in oneDNN's layout.
        scale: Float32 (out,).
        offset: What the digits' middle adds to an output, with its sign turned; float32 (out,).
        zeros: int64 (out,), the zero points of the weights.
        inputs, outputs: The sizes.
        bands: For each of ``BANDS`` whether digits are used.
    """

    scale: Tensor = dataclasses.field(kw_only=True)
    offset: Tensor = dataclasses.field(kw_only=True)
    zeros: Tensor = dataclasses.field(kw_only=True)
    inputs: int = dataclasses.field(kw_only=True)
    outputs: int = dataclasses.field(kw_only=True)
    bands: tuple[bool, ...] = (True,) * len(BANDS)

    def __call__(self, x: Tensor) -> Tensor:
        """See ``Linear``."""
        if not self.bands[band_of(x)]:
            return QuantizedLinear(self.weight.to_dense().t(), scale=self.scale)(x)
        flat = x.reshape(-1, self.inputs).float()
        rows, (middle, levels) = len(flat), _constants()
        largest = torch.linalg.vector_norm(flat, math.inf, dim=-1, keepdim=True)
        steps = torch.div(
            levels, largest.clamp_min_(SMALLEST)
        )  # numbers that are not finite go on from here
        y = torch.addcmul(middle, flat, steps)
        digits = torch.empty((2, rows, self.inputs), dtype=torch.uint8)
        first, second = digits.unbind()
        first.copy_(y)
        second.copy_(y.sub_(first).mul_(DIGIT))
        sums = _eight_bit(digits.view(2 * rows, self.inputs), self)
        high, low = sums.view(2, rows, self.outputs).unbind()
        result = high.add_(low, alpha=1 / DIGIT).div_(steps).to(x.dtype)
        return result.view(*x.shape[:-1], self.outputs)


@functools.cache
def _constants() -> tuple[Tensor, Tensor]:
    return torch.tensor(MIDDLE + HALF), torch.tensor(LEVELS)


def _eight_bit(digits: Tensor, linear: DigitLinear) -> Tensor:
    """Float32 (rows, out): uint8 digits (rows, in) times the matrix, scaled, with the offset."""
    result: Tensor = torch.ops.onednn.qlinear_pointwise(
        digits,
        1.0,
        0,
        linear.weight,
        linear.scale,
        linear.zeros,
        linear.offset,
        1.0,
        0,
        torch.float32,
        "none",
        [],
        "",
    )
    return result


def write_digits(
    linear: QuantizedLinear, bands: Sequence[bool] = (True,) * len(BANDS)
) -> DigitLinear:
    """The same matrix in the layout of the 8-bit product. There is none with a bias."""
    outputs, inputs = linear.weight.shape
    packed = torch.ops.onednn.qlinear_prepack(linear.weight, [2, inputs])
    # Both digits' rows get the offset, the second one's counts a 256th.
    offset = linear.weight.sum(dim=1) * linear.scale * (-MIDDLE / (1 + 1 / DIGIT))
    zeros = torch.zeros(outputs, dtype=torch.int64)
    return DigitLinear(
        packed,
        scale=linear.scale,
        offset=offset,
        zeros=zeros,
        inputs=inputs,
        outputs=outputs,
        bands=tuple(bands),
    )


@functools.cache
def can_write_digits() -> bool:
    """Whether there is an 8-bit product here and it is exact: older processors add pairs of
    products in 16 bits, which overflow.
    """
    if not torch.backends.mkldnn.is_available() or not hasattr(
        torch.ops.onednn, "qlinear_pointwise"
    ):
        return False
    try:
        with torch.inference_mode():
            weight = torch.full((32, 64), 127, dtype=torch.int8)
            weight[::2] = -127
            linear = write_digits(QuantizedLinear(weight, scale=torch.ones(32)))
            largest = torch.full((2, 64), 255, dtype=torch.uint8)
            return torch.equal(
                _eight_bit(largest, linear), (255 * weight.sum(dim=1) + linear.offset).expand(2, -1)
            )
    except RuntimeError as error:  # this processor, or this build, has none
        logger.debug("no product of 8-bit numbers: %s", error)
        return False
