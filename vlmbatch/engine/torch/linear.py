"""Matrices: in the model's dtype, and as int8 with a scale per output."""

from __future__ import annotations

import dataclasses

import torch
import torch.nn.functional as F
from torch import Tensor

LEVELS = 127
"""Largest int8 value used; -128 is left out, so that the range is symmetric."""
CPU_BLOCK = 1 << 20
"""Number of weights dequantized at a time on a CPU: few enough to stay in its caches."""


@dataclasses.dataclass(frozen=True)
class Linear:
    """A matrix (out, in) and an optional bias (out,)."""

    weight: Tensor
    bias: Tensor | None = None

    def __call__(self, x: Tensor) -> Tensor:
        """Multiply: (…, in) to (…, out)."""
        return F.linear(x, self.weight, self.bias)

    def gelu(self, x: Tensor) -> Tensor:
        """Multiply and apply GELU in its tanh approximation."""
        return F.gelu(self(x), approximate="tanh")


@dataclasses.dataclass(frozen=True)
class QuantizedLinear(Linear):
    """A matrix of int8 (out, in): output ``i`` is ``scale[i] * weight[i]`` times the input.

    On a CPU every product dequantizes the matrix block by block into the input's dtype; cpu/int8.py
    has a product that reads int8 directly. Elsewhere the whole matrix is widened in one
    pass, which moves 5 bytes a weight in 16 bits.

    Attributes:
        scale: Float32 (out,).
    """

    scale: Tensor = dataclasses.field(kw_only=True)

    def __call__(self, x: Tensor) -> Tensor:
        """See ``Linear``."""
        if x.device.type != "cpu":
            return self._by_device(x)
        outputs, inputs = self.weight.shape
        step = max(1, CPU_BLOCK // inputs)
        if step >= outputs:
            return F.linear(x, self.dequantized(slice(None), x.dtype), self.bias)
        result = x.new_empty(*x.shape[:-1], outputs)
        for begin in range(0, outputs, step):
            part = slice(begin, begin + step)
            result[..., part] = F.linear(x, self.dequantized(part, x.dtype))
        return result if self.bias is None else result.add_(self.bias)

    def _by_device(self, x: Tensor) -> Tensor:
        """Multiply with the integers, which 16 bits hold exactly, and scale the outputs. Sums of
        integers exceed the range of float16: there the matrix is scaled as it is widened.
        """
        if x.dtype == torch.float16:
            weight = torch.empty_like(self.weight, dtype=x.dtype)
            torch.mul(self.weight, self.scale[:, None], out=weight)  # one pass, in float32 inside
            return F.linear(x, weight, self.bias)
        result = F.linear(x, self.weight.to(x.dtype)).mul_(self.scale)
        return result if self.bias is None else result.add_(self.bias)

    def dequantized(self, part: slice, dtype: torch.dtype) -> Tensor:
        """Dequantize some rows of the matrix, (rows, in)."""
        return torch.mul(self.weight[part], self.scale[part, None]).to(dtype)


def quantize(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Round a matrix to int8, symmetrically, with one scale per output channel.

    The error of a weight is at most half a step, 1/254 of its row's maximum.

    Args:
        weight: (out, in), of any dtype.

    Returns:
        int8 (out, in) and float32 (out,), whose product is close to the matrix.
    """
    exact = weight.float()
    scale = exact.abs().amax(dim=1) / LEVELS
    scale = torch.where(scale == 0, 1.0, scale)  # a row of zeros
    return (exact / scale[:, None]).round_().to(torch.int8), scale
