"""Matrix products by oneDNN, from weights packed in its layout.

torch's product (by MKL, if available) reorders a weight in every call. With a thousand rows that is
negligible; with the few rows of a decode step it is most of the time. oneDNN keeps a packed second
copy of the weight, and can apply the GELU of a product before the result leaves the cache.
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from vlmbatch.engine.torch.linear import Linear

logger = logging.getLogger(__name__)

BANDS = (1, 2, 32, 128)
"""Minimum row count of each band: one sequence, a few, many, and prefill or vision."""
ROWS_AHEAD = 8
"""Row count that a weight is packed for; the layout works for any number."""


@dataclasses.dataclass(frozen=True)
class PackedLinear(Linear):
    """A matrix with a packed copy.

    Attributes:
        packed: The copy, in oneDNN's layout.
        bands: For each of ``BANDS`` whether the packed kernel is used.
    """

    packed: Tensor = dataclasses.field(kw_only=True)
    bands: tuple[bool, ...] = (True,) * len(BANDS)

    def __call__(self, x: Tensor) -> Tensor:
        """See ``Linear``."""
        return (
            multiply(x, self.packed, self.bias)
            if self._is_packed_for(x)
            else F.linear(x, self.weight, self.bias)
        )

    def gelu(self, x: Tensor) -> Tensor:
        """See ``Linear``."""
        return (
            multiply(x, self.packed, self.bias, "gelu", "tanh")
            if self._is_packed_for(x)
            else super().gelu(x)
        )

    def _is_packed_for(self, x: Tensor) -> bool:
        return self.bands[band_of(x)]


def band_of(x: Tensor) -> int:
    """Return the band of the row count of (…, in)."""
    rows = x.numel() // x.shape[-1]
    return sum(rows >= begin for begin in BANDS[1:])


def multiply(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    activation: str = "none",
    algorithm: str = "",
) -> Tensor:
    """Multiply (…, in) with a weight (out, in), plain or packed; a plain one is packed for this
    call.
    """
    result: Tensor = torch.ops.mkldnn._linear_pointwise(x, weight, bias, activation, [], algorithm)
    return result


def can_pack(device: torch.device, dtype: torch.dtype) -> bool:
    """True if there is a packed kernel for this device and dtype."""
    if (
        device.type != "cpu"
        or not torch.backends.mkldnn.is_available()
        or not hasattr(torch.ops.mkldnn, "_linear_pointwise")
    ):
        return False
    try:
        with torch.inference_mode():
            pack(Linear(torch.zeros(32, 32, dtype=dtype)))(torch.zeros(2, 32, dtype=dtype))
    except RuntimeError as error:  # not supported by this processor or build
        logger.debug("no packed kernels for %s: %s", dtype, error)
        return False
    return True


def pack(linear: Linear, bands: Sequence[bool] = (True,) * len(BANDS)) -> PackedLinear:
    """Add a packed copy to a matrix."""
    packed = torch.ops.mkldnn._reorder_linear_weight(linear.weight, ROWS_AHEAD)
    return PackedLinear(linear.weight, linear.bias, packed=packed, bands=tuple(bands))
