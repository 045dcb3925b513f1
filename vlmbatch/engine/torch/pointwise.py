"""The operations of a layer between its matrix products, each by functions of torch.

On CUDA the same is compiled, so that each of these is one kernel or two (cuda/fused.py).
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor


class AddRmsNorm(Protocol):
    """A residual sum and its RMS norm."""

    def __call__(
        self, x: Tensor, change: Tensor | None, weight: Tensor, eps: float, multiplier: float
    ) -> tuple[Tensor, Tensor]:
        """Return ``x + change * multiplier``, or x without a change, and its norm as in
        LlamaRMSNorm: in float32, rounded to x's dtype before the multiplication with the weight.
        """
        ...


class Rotate(Protocol):
    """The rotary embedding."""

    def __call__(
        self,
        qkv: Tensor,
        cos: Tensor,
        sin: Tensor,
        heads: int,
        kv_heads: int,
        query_multiplier: float,
    ) -> tuple[Tensor, Tensor]:
        """Rotate queries and keys, with the halves of D paired as in Llama, and multiply queries.

        Args:
            qkv: Queries, keys and values of each token, (N, heads + 2 kv_heads, D).
            cos, sin: Of the tokens' positions, (N, 1, D); the sine of the first half is negated.
            heads, kv_heads: Numbers of queries and of keys.
            query_multiplier: Factor of the queries.

        Returns:
            Queries (N, heads, D) and keys (N, kv_heads, D).
        """
        ...


class Gate(Protocol):
    """The gate of the language model's MLP."""

    def __call__(self, gate_up: Tensor) -> Tensor:
        """Return ``silu(gate) * up`` of (N, 2 mlp)."""
        ...


class AddLayerNorm(Protocol):
    """A residual sum and its layer norm."""

    def __call__(
        self, x: Tensor, change: Tensor | None, weight: Tensor, bias: Tensor, eps: float
    ) -> tuple[Tensor, Tensor]:
        """Return ``x + change``, or x without a change, and its norm."""
        ...


def add(x: Tensor, change: Tensor | None, multiplier: float) -> Tensor:
    """Add a change times a multiplier; None changes nothing."""
    if change is None:
        return x
    return x + change if multiplier == 1 else x + change * multiplier


def add_rms_norm(
    x: Tensor, change: Tensor | None, weight: Tensor, eps: float, multiplier: float
) -> tuple[Tensor, Tensor]:
    """See ``AddRmsNorm``."""
    x = add(x, change, multiplier)
    return x, rms_norm(x, weight, eps)


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """RMS norm as in LlamaRMSNorm."""
    if torch.is_grad_enabled():  # sqrt(x)**2, used below, has no gradient at zero
        return (
            F.rms_norm(x, x.shape[-1:], weight, eps)
            if x.dtype == torch.float32
            else weight * F.rms_norm(x.float(), x.shape[-1:], None, eps).to(x.dtype)
        )
    length = torch.linalg.vector_norm(x, dim=-1, keepdim=True, dtype=torch.float32)
    scale = torch.addcmul(_constant(eps, x.device), length, length, value=1 / x.shape[-1]).rsqrt_()
    return (
        (x * scale).mul_(weight) if x.dtype == torch.float32 else weight * (x * scale).to(x.dtype)
    )


@functools.cache
def _constant(value: float, device: torch.device) -> Tensor:
    with torch.inference_mode(False):
        return torch.tensor(value, dtype=torch.float32, device=device)


def rotate(
    qkv: Tensor,
    cos: Tensor,
    sin: Tensor,
    heads: int,
    kv_heads: int,
    query_multiplier: float,
) -> tuple[Tensor, Tensor]:
    """See ``Rotate``."""
    x = qkv[:, : heads + kv_heads]
    rotated = torch.addcmul(x * cos, x.roll(x.shape[-1] // 2, dims=-1), sin)
    query, key = rotated.split((heads, kv_heads), dim=1)
    return (query if query_multiplier == 1 else query * query_multiplier), key


def gate(gate_up: Tensor) -> Tensor:
    """See ``Gate``."""
    gates, up = gate_up.chunk(2, dim=-1)
    return F.silu(gates).mul_(up)


def add_layer_norm(
    x: Tensor, change: Tensor | None, weight: Tensor, bias: Tensor, eps: float
) -> tuple[Tensor, Tensor]:
    """See ``AddLayerNorm``."""
    x = add(x, change, 1.0)
    return x, F.layer_norm(x, x.shape[-1:], weight, bias, eps)


@dataclasses.dataclass(frozen=True)
class Pointwise:
    """The operations of a network's layers."""

    add_rms_norm: AddRmsNorm = add_rms_norm
    rotate: Rotate = rotate
    gate: Gate = gate
    add_layer_norm: AddLayerNorm = add_layer_norm


EAGER = Pointwise()
"""Operations of torch, on any device."""
