"""Products of int8 matrices by oneDNN's 8-bit kernel, where the processor has an exact one (AVX-512
VNNI, AMX).

torch's ``_weight_int8pack_mm`` was measured too: in float32 it is scalar and many times slower than
dequantizing, in bfloat16 about as fast as the packed product.
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

STEPS, LEVELS = 256, 127.0
"""Values of an 8-bit part; the largest input of a row is scaled to this many steps of the high part
on either side of ``MIDDLE``.
"""
MIDDLE = 128.0
HALF = 0.5 / STEPS
"""Half a step of the low part: truncation then rounds."""
MIN_ROW_MAX = 1e-30
"""Used as the maximum of a row of zeros."""


@dataclasses.dataclass(frozen=True)
class Int8Linear(Linear):
    """An int8 matrix in oneDNN's layout, multiplied with inputs split into two 8-bit parts.

    Each row of the input is scaled by its own maximum and split into a high and a low part, two
    rows of the 8-bit product. So inputs are 16-bit integers, rounded by at most 1/65,024 of the
    row's maximum, far below the rounding of the weights. Integer sums are exact: a row's result
    does not depend on the other rows. The layout replaces the plain matrix; there is no second
    copy. Where many rows are faster in the model's dtype, the matrix is unpacked and dequantized.

    Attributes:
        weight: The matrix in oneDNN's layout.
        scale: Float32 (out,).
        offset: Correction for ``MIDDLE`` in each output; float32 (out,).
        zeros: int64 (out,), the zero points of the weights.
        inputs, outputs: The sizes.
        bands: For each of ``BANDS`` whether the 8-bit product is used.
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
        factor = torch.div(
            levels, largest.clamp_min_(MIN_ROW_MAX)
        )  # non-finite inputs stay non-finite from here on
        y = torch.addcmul(middle, flat, factor)
        parts = torch.empty((2, rows, self.inputs), dtype=torch.uint8)
        first, second = parts.unbind()
        first.copy_(y)
        second.copy_(y.sub_(first).mul_(STEPS))
        sums = _eight_bit(parts.view(2 * rows, self.inputs), self)
        high, low = sums.view(2, rows, self.outputs).unbind()
        result = high.add_(low, alpha=1 / STEPS).div_(factor).to(x.dtype)
        return result.view(*x.shape[:-1], self.outputs)


@functools.cache
def _constants() -> tuple[Tensor, Tensor]:
    return torch.tensor(MIDDLE + HALF), torch.tensor(LEVELS)


def _eight_bit(parts: Tensor, linear: Int8Linear) -> Tensor:
    """Multiply uint8 parts (rows, in) with the matrix to float32 (rows, out), scaled, offset
    included.
    """
    result: Tensor = torch.ops.onednn.qlinear_pointwise(
        parts,
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


def prepack_int8(
    linear: QuantizedLinear, bands: Sequence[bool] = (True,) * len(BANDS)
) -> Int8Linear:
    """Convert a matrix to the layout of the 8-bit product. It must have no bias."""
    outputs, inputs = linear.weight.shape
    packed = torch.ops.onednn.qlinear_prepack(linear.weight, [2, inputs])
    # The rows of both parts get the offset; the low one's counts 1/256.
    offset = linear.weight.sum(dim=1) * linear.scale * (-MIDDLE / (1 + 1 / STEPS))
    zeros = torch.zeros(outputs, dtype=torch.int64)
    return Int8Linear(
        packed,
        scale=linear.scale,
        offset=offset,
        zeros=zeros,
        inputs=inputs,
        outputs=outputs,
        bands=tuple(bands),
    )


@functools.cache
def can_prepack_int8() -> bool:
    """True if there is an exact 8-bit product here. Older processors add pairs of products in 16
    bits, which overflow.
    """
    if not torch.backends.mkldnn.is_available() or not hasattr(
        torch.ops.onednn, "qlinear_pointwise"
    ):
        return False
    try:
        with torch.inference_mode():
            weight = torch.full((32, 64), 127, dtype=torch.int8)
            weight[::2] = -127
            linear = prepack_int8(QuantizedLinear(weight, scale=torch.ones(32)))
            largest = torch.full((2, 64), 255, dtype=torch.uint8)
            return torch.equal(
                _eight_bit(largest, linear), (255 * weight.sum(dim=1) + linear.offset).expand(2, -1)
            )
    except RuntimeError as error:  # not supported by this processor or build
        logger.debug("no product of 8-bit numbers: %s", error)
        return False
