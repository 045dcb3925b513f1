"""Matrix products on a CPU: which of two kernels is the faster for how many rows, measured once when a model is loaded.

torch's own product (MKL's, where there is MKL) lays a weight out anew in every call. With a thousand rows that is nothing; with the few rows of a decode step
it is most of the time. oneDNN keeps a second copy of the weight in the layout that its kernel reads, and can apply the GELU behind a product before the
result leaves the cache. Which is ahead, and from how many rows on, differs between processors, so it is measured here.
"""

from __future__ import annotations

import dataclasses
import functools
import logging
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from vlmbatch.engine.model import LanguageModel, Linear, TextLayer, VisionEncoder, VisionLayer

logger = logging.getLogger(__name__)

BANDS = (1, 2, 32, 128)
"""Where bands of row counts begin: one sequence, a few, many, and prefill or vision."""
PROBES = (1, 8, 48, 1024)
"""How many rows stand for each band when it is measured."""
WORTH = 1.1
"""A packed kernel must be this much faster to be chosen, so that noise decides nothing that matters."""
ROUNDS = 3


@dataclasses.dataclass(frozen=True)
class PackedLinear(Linear):
    """A matrix with a second copy in oneDNN's layout.

    Attributes:
        packed: The copy.
        bands: For each of ``BANDS`` whether the packed kernel is used.
    """

    packed: Tensor | None = None
    bands: tuple[bool, ...] = (True,) * len(BANDS)

    def __call__(self, x: Tensor) -> Tensor:
        """See ``Linear``."""
        return _packed(x, self, "none", "") if self._is_packed_for(x) else F.linear(x, self.weight, self.bias)

    def gelu(self, x: Tensor) -> Tensor:
        """See ``Linear``."""
        return _packed(x, self, "gelu", "tanh") if self._is_packed_for(x) else super().gelu(x)

    def _is_packed_for(self, x: Tensor) -> bool:
        rows = x.numel() // x.shape[-1]
        return self.bands[sum(rows >= begin for begin in BANDS[1:])]


def _packed(x: Tensor, linear: PackedLinear, activation: str, algorithm: str) -> Tensor:
    result: Tensor = torch.ops.mkldnn._linear_pointwise(x, linear.packed, linear.bias, activation, [], algorithm)
    return result


def can_pack(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether there is a packed kernel for this number format here."""
    if device.type != "cpu" or not torch.backends.mkldnn.is_available() or not hasattr(torch.ops.mkldnn, "_linear_pointwise"):
        return False
    try:
        with torch.inference_mode():
            _packed(torch.zeros(2, 32, dtype=dtype), pack(Linear(torch.zeros(32, 32, dtype=dtype))), "none", "")
    except RuntimeError as error:  # this processor, or this build, has none
        logger.debug("no packed kernels for %s: %s", dtype, error)
        return False
    return True


def pack(linear: Linear, bands: Sequence[bool] = (True,) * len(BANDS)) -> PackedLinear:
    """The same matrix with a packed copy."""
    packed = torch.ops.mkldnn._reorder_linear_weight(linear.weight, PROBES[1])
    return PackedLinear(linear.weight, linear.bias, packed, tuple(bands))


@dataclasses.dataclass(frozen=True)
class Place:
    """A matrix of the model: what holds it, under which name, and what kind it is."""

    owner: Any
    name: str
    kind: str
    bands: tuple[int, ...]
    activation: bool = False

    @property
    def linear(self) -> Linear:
        """The matrix."""
        found: Linear = getattr(self.owner, self.name)
        return found


def places(vision: VisionEncoder, language: LanguageModel) -> Iterator[Place]:
    """Every matrix of the layers, and the head, with the bands of row counts that it meets."""
    decode, many = tuple(range(len(BANDS))), (len(BANDS) - 1,)
    for layer in vision.layers:
        assert isinstance(layer, VisionLayer)
        yield from (Place(layer, name, f"vision.{name}", many, name == "fc1") for name in ("qkv", "out", "fc1", "fc2"))
    for text_layer in language.layers:
        assert isinstance(text_layer, TextLayer)
        yield from (Place(text_layer, name, name, decode) for name in ("qkv", "out", "gate_up", "down"))
    yield Place(language, "head", "head", decode[:-1])


def packed_bytes(vision: VisionEncoder, language: LanguageModel, *, chosen: bool = False) -> int:
    """Bytes of the packed copies of all matrices, or only of those that have one."""
    linears = [place.linear for place in places(vision, language)]
    return sum(linear.weight.nbytes for linear in linears if not chosen or isinstance(linear, PackedLinear))


def choose_kernels(vision: VisionEncoder, language: LanguageModel, *, measured: bool = True) -> dict[str, list[int]]:
    """Gives every matrix the kernels that are fastest for it, by measuring one of each kind.

    Args:
        vision: The vision encoder; its layers are changed.
        language: Likewise.
        measured: Whether to measure. Otherwise the packed kernel is used throughout, which is for tests.

    Returns:
        For each kind of matrix the row counts from which bands begin that use the packed kernel.
    """
    chosen: dict[str, tuple[bool, ...]] = {}
    with torch.inference_mode():
        for place in places(vision, language):
            if place.kind not in chosen:
                chosen[place.kind] = _measure(place) if measured else tuple(band in place.bands for band in range(len(BANDS)))
            bands = chosen[place.kind]
            if any(bands):
                setattr(place.owner, place.name, pack(place.linear, bands))
    return {kind: [BANDS[band] for band, packed in enumerate(bands) if packed] for kind, bands in chosen.items() if any(bands)}


def _measure(place: Place) -> tuple[bool, ...]:
    """For each band whether the packed kernel is worth it; False where the matrix meets no such row count."""
    plain = place.linear
    packed = pack(plain)
    found = []
    for band, rows in enumerate(PROBES):
        if band not in place.bands:
            found.append(False)
            continue
        x = torch.zeros(rows, plain.weight.shape[1], dtype=plain.weight.dtype)
        slow, fast = _fastest([functools.partial(kernel.gelu if place.activation else kernel, x) for kernel in (plain, packed)])
        found.append(slow > WORTH * fast)
    return tuple(found)


def _fastest(calls: Sequence[Callable[[], object]]) -> list[float]:
    """The least seconds that each call takes; they take turns, so that a busy machine is busy for all."""
    best = [float("inf")] * len(calls)
    for number in range(ROUNDS + 1):
        for place, call in enumerate(calls):
            begun = time.perf_counter()
            call()
            if number:  # the first round warms caches
                best[place] = min(best[place], time.perf_counter() - begun)
    return best
