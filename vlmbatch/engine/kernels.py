"""Matrix products on a CPU: which of two kernels is the faster for how many rows, measured once when a model is loaded.

torch's own product (MKL's, where there is MKL) lays a weight out anew in every call. With a thousand rows that is nothing; with the few rows of a decode step
it is most of the time. oneDNN keeps a second copy of the weight in the layout that its kernel reads, and can apply the GELU behind a product before the
result leaves the cache. Which is ahead, and from how many rows on, differs between processors, so it is measured here.

A matrix of 8-bit numbers can be multiplied as it is, by oneDNN's product of 8-bit numbers, where the processor has one that is exact (AVX-512 VNNI, AMX): see
``DigitLinear``. torch's own ``_weight_int8pack_mm`` was measured too: in float32 it multiplies number by number and is many times slower than turning the
matrix back, in bfloat16 it is about as fast as the packed product.
"""

from __future__ import annotations

import dataclasses
import functools
import logging
import math
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from vlmbatch.engine.linear import Linear, QuantizedLinear
from vlmbatch.engine.model import AttendTiles, LanguageModel, TextLayer, VisionEncoder, VisionLayer

logger = logging.getLogger(__name__)

BANDS = (1, 2, 32, 128)
"""Where bands of row counts begin: one sequence, a few, many, and prefill or vision."""
PROBES = (1, 8, 48, 1024)
"""How many rows stand for each band when it is measured."""
FEW = 2
"""Bands that decoding lives in."""
CACHED = 0.5
"""What digits must reach beside a matrix turned back: measured on one matrix, which stays in the caches, they gain less than on all of a model's."""
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
        return self.bands[_band(x)]


def _band(x: Tensor) -> int:
    """The band that the rows of (…, in) fall into."""
    rows = x.numel() // x.shape[-1]
    return sum(rows >= begin for begin in BANDS[1:])


def _packed(x: Tensor, linear: PackedLinear, activation: str, algorithm: str) -> Tensor:
    result: Tensor = torch.ops.mkldnn._linear_pointwise(x, linear.packed, linear.bias, activation, [], algorithm)
    return result


DIGIT, LEVELS = 256, 127.0
"""Steps of a digit; the largest input of a row comes to this many steps of the first digit on either side of its middle."""
MIDDLE = 128.0
HALF = 0.5 / DIGIT
"""Half a step of the second digit: cutting off behind it rounds."""
SMALLEST = 1e-30
"""Stands for the largest number of a row of zeros."""
DROPPED = 0.5 / DIGIT
"""What cutting off behind the second digit takes away on average, in steps of the first."""


@dataclasses.dataclass(frozen=True)
class DigitLinear(Linear):
    """A matrix of 8-bit numbers in oneDNN's layout, multiplied with inputs of two 8-bit digits.

    Each row of the input is scaled to its own largest number and written as two digits, which the 8-bit product takes as two rows. So inputs are whole numbers
    of 16 bits, rounded by at most a 65,024th of the row's largest number, which is far below what 8 bits do to the weights. Sums of whole numbers are exact: a
    row's result does not depend on the rows beside it. The layout takes the place of the plain matrix; there is no second copy. Where many rows are faster
    multiplied in the model's own format, the layout is undone and the matrix turned back.

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
        if not self.bands[_band(x)]:
            return QuantizedLinear(self.weight.to_dense().t(), scale=self.scale)(x)
        flat = x.reshape(-1, self.inputs).float()
        rows, (middle, levels) = len(flat), _constants()
        largest = torch.linalg.vector_norm(flat, math.inf, dim=-1, keepdim=True)
        steps = torch.div(levels, largest.clamp_min_(SMALLEST))  # numbers that are not finite go on from here
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
        digits, 1.0, 0, linear.weight, linear.scale, linear.zeros, linear.offset, 1.0, 0, torch.float32, "none", [], ""
    )
    return result


def write_digits(linear: QuantizedLinear, bands: Sequence[bool] = (True,) * len(BANDS)) -> DigitLinear:
    """The same matrix in the layout of the 8-bit product. There is none with a bias."""
    outputs, inputs = linear.weight.shape
    packed = torch.ops.onednn.qlinear_prepack(linear.weight, [2, inputs])
    # Both digits' rows get the offset, the second one's counts a 256th.
    offset = linear.weight.sum(dim=1) * linear.scale * (-MIDDLE / (1 + 1 / DIGIT))
    zeros = torch.zeros(outputs, dtype=torch.int64)
    return DigitLinear(packed, scale=linear.scale, offset=offset, zeros=zeros, inputs=inputs, outputs=outputs, bands=tuple(bands))


@functools.cache
def can_write_digits() -> bool:
    """Whether there is an 8-bit product here and it is exact: older processors add pairs of products in 16 bits, which overflow."""
    if not torch.backends.mkldnn.is_available() or not hasattr(torch.ops.onednn, "qlinear_pointwise"):
        return False
    try:
        with torch.inference_mode():
            weight = torch.full((32, 64), 127, dtype=torch.int8)
            weight[::2] = -127
            linear = write_digits(QuantizedLinear(weight, scale=torch.ones(32)))
            largest = torch.full((2, 64), 255, dtype=torch.uint8)
            return torch.equal(_eight_bit(largest, linear), (255 * weight.sum(dim=1) + linear.offset).expand(2, -1))
    except RuntimeError as error:  # this processor, or this build, has none
        logger.debug("no product of 8-bit numbers: %s", error)
        return False


def attend_in_products(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Attention of all patches of a tile to each other, (n, heads, patches, D), a head at a time: scores and softmax in float32, weights in the number format.

    That is how precise torch's own attention is in bfloat16, which multiplies it in smaller blocks. In float32 its own was the faster, by a tenth or more.
    """
    count, heads, patches, dim = query.shape
    result = query.new_empty(count, patches, heads, dim)
    for tile in range(count):
        for head in range(heads):
            scores = torch.mm(query[tile, head].float().mul_(dim**-0.5), key[tile, head].float().t())
            torch.mm(torch.softmax(scores, dim=-1).to(query.dtype), value[tile, head], out=result[tile, :, head])
    return result.transpose(1, 2)


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
    """A matrix of the model: what holds it, under which name, what kind it is, the bands of row counts that it meets, and the number format of its inputs."""

    owner: Any
    name: str
    kind: str
    bands: tuple[int, ...]
    dtype: torch.dtype
    activation: bool = False

    @property
    def linear(self) -> Linear:
        """The matrix."""
        found: Linear = getattr(self.owner, self.name)
        return found


def places(vision: VisionEncoder, language: LanguageModel) -> Iterator[Place]:
    """Every matrix of the layers, and the head, with the bands of row counts that it meets."""
    decode, many = tuple(range(len(BANDS))), (len(BANDS) - 1,)
    dtype = language.embedding.dtype
    for layer in vision.layers:
        assert isinstance(layer, VisionLayer)
        yield from (Place(layer, name, f"vision.{name}", many, dtype, name == "fc1") for name in ("qkv", "out", "fc1", "fc2"))
    for text_layer in language.layers:
        assert isinstance(text_layer, TextLayer)
        yield from (Place(text_layer, name, name, decode, dtype) for name in ("qkv", "out", "gate_up", "down"))
    yield Place(language, "head", "head", decode[:-1], dtype)


def packed_bytes(vision: VisionEncoder, language: LanguageModel, *, chosen: bool = False) -> int:
    """Bytes of the packed copies of all matrices, or only of those that have one. 8-bit numbers have no second copy."""
    linears = [place.linear for place in places(vision, language)]
    return sum(linear.weight.nbytes for linear in linears if (isinstance(linear, PackedLinear) if chosen else type(linear) is Linear))


def choose_kernels(vision: VisionEncoder, language: LanguageModel, *, copies: bool = True, measured: bool = True) -> dict[str, list[int]]:
    """Gives every matrix the kernels that are fastest for it, by measuring one of each kind.

    Args:
        vision: The vision encoder; its layers are changed.
        language: Likewise.
        copies: Whether there may be second copies of weights. Matrices of 8-bit numbers need none.
        measured: Whether to measure. Otherwise the packed kernel is used throughout, which is for tests.

    Returns:
        For each kind of matrix the row counts from which bands begin that use the packed kernel; and ``vision.attend``, where that is done in products.
    """
    chosen: dict[str, tuple[bool, ...]] = {}
    with torch.inference_mode():
        if measured and language.embedding.dtype != torch.float32 and _products_attend_faster(vision, language.embedding.dtype):
            for layer in vision.layers:
                layer.attend = attend_in_products
            chosen["vision.attend"] = (False,) * (len(BANDS) - 1) + (True,)
        for place in places(vision, language):
            linear = place.linear
            is_quantized = isinstance(linear, QuantizedLinear)
            if not (can_write_digits() if is_quantized else copies):
                continue
            if place.kind not in chosen:
                measure = _measure_digits if is_quantized else _measure
                chosen[place.kind] = measure(place) if measured else tuple(band in place.bands for band in range(len(BANDS)))
            bands = chosen[place.kind]
            if any(bands):
                setattr(place.owner, place.name, write_digits(linear, bands) if isinstance(linear, QuantizedLinear) else pack(linear, bands))
    return {kind: [BANDS[band] for band, packed in enumerate(bands) if packed] for kind, bands in chosen.items() if any(bands)}


def _products_attend_faster(vision: VisionEncoder, dtype: torch.dtype) -> bool:
    shape = vision.shape
    stacked = torch.zeros(1, shape.patches, 3, shape.heads, shape.hidden // shape.heads, dtype=dtype)
    query, key, value = stacked.permute(2, 0, 3, 1, 4)  # laid out as a layer has them
    ways: list[AttendTiles] = [F.scaled_dot_product_attention, attend_in_products]
    slow, fast = _fastest([functools.partial(attend, query, key, value) for attend in ways])
    return slow > WORTH * fast


def _measure(place: Place) -> tuple[bool, ...]:
    """For each band whether the packed kernel is worth it; False where the matrix meets no such row count."""
    plain = place.linear
    packed = pack(plain)
    found = []
    for band, rows in enumerate(PROBES):
        if band not in place.bands:
            found.append(False)
            continue
        x = torch.zeros(rows, plain.weight.shape[1], dtype=place.dtype)
        slow, fast = _fastest([functools.partial(kernel.gelu if place.activation else kernel, x) for kernel in (plain, packed)])
        found.append(slow > WORTH * fast)
    return tuple(found)


def _measure_digits(place: Place) -> tuple[bool, ...]:
    """For each band whether digits are worth it; False for all where the plain matrix, which is not kept beside the other layout, decodes faster."""
    plain = place.linear
    assert isinstance(plain, QuantizedLinear)
    digits, undone = write_digits(plain), write_digits(plain, (False,) * len(BANDS))
    bands, gain = [False] * len(BANDS), 1.0
    for band in place.bands:
        x = torch.zeros(PROBES[band], plain.weight.shape[1], dtype=place.dtype)
        slow, fast, other = _fastest([functools.partial(kernel, x) for kernel in (plain, digits, undone)])
        bands[band] = fast < other
        if band < FEW:
            gain *= slow / min(fast, other)
    return tuple(chosen and gain > CACHED for chosen in bands)


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
