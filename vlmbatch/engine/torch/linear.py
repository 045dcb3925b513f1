"""Matrices: in the model's own number format, and as 8-bit whole numbers with a scale for each
output.
"""

from __future__ import annotations

import dataclasses

import torch
import torch.nn.functional as F
from torch import Tensor

LEVELS = 127
"""Whole numbers on either side of zero; -128 is left out, so that the scale is the same on both."""
CPU_BLOCK, BLOCK = 1 << 20, 1 << 24
"""Weights that are turned back into numbers of the model's format at a time: on a CPU so many that
they stay in its caches.
"""


@dataclasses.dataclass(frozen=True)
class Linear:
    """A matrix (out, in) and an optional bias (out,)."""

    weight: Tensor
    bias: Tensor | None = None

    def __call__(self, x: Tensor) -> Tensor:
        """(…, in) to (…, out)."""
        return F.linear(x, self.weight, self.bias)

    def gelu(self, x: Tensor) -> Tensor:
        """The product behind a GELU, in its approximation by a hyperbolic tangent."""
        return F.gelu(self(x), approximate="tanh")


@dataclasses.dataclass(frozen=True)
class QuantizedLinear(Linear):
    """A matrix of 8-bit whole numbers, int8 (out, in): output ``i`` is ``scale[i] * weight[i]``
    times the input.

    Every product turns the matrix back block by block, into the number format of its input. That
    works on every device and is exact in float32; it saves memory, and on a GPU no time. digits.py
    has a product that reads the 8-bit numbers themselves.

    Attributes:
        scale: Float32 (out,).
    """

    scale: Tensor = dataclasses.field(kw_only=True)

    def __call__(self, x: Tensor) -> Tensor:
        """See ``Linear``."""
        outputs, inputs = self.weight.shape
        step = max(1, (CPU_BLOCK if x.device.type == "cpu" else BLOCK) // inputs)
        if step >= outputs:
            return F.linear(x, self.dequantized(slice(None), x.dtype), self.bias)
        result = x.new_empty(*x.shape[:-1], outputs)
        for begin in range(0, outputs, step):
            part = slice(begin, begin + step)
            result[..., part] = F.linear(x, self.dequantized(part, x.dtype))
        return result if self.bias is None else result.add_(self.bias)

    def dequantized(self, part: slice, dtype: torch.dtype) -> Tensor:
        """Some rows of the matrix that it stands for, (rows, in)."""
        return torch.mul(self.weight[part], self.scale[part, None]).to(dtype)


def quantize(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Rounds a matrix to 8-bit whole numbers, symmetrically, with one scale for each output
    channel.

    No weight moves by more than half a step, which is 1/254 of the largest one in its row.

    Args:
        weight: (out, in), of any number format.

    Returns:
        int8 (out, in) and float32 (out,), whose product it is.
    """
    exact = weight.float()
    scale = exact.abs().amax(dim=1) / LEVELS
    scale = torch.where(scale == 0, 1.0, scale)  # a row of zeros
    return (exact / scale[:, None]).round_().to(torch.int8), scale
