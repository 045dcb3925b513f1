"""Which of several ways of computing the same thing is the fastest on this CPU, measured once when a model is loaded.

Matrix products are torch's own or oneDNN's from a packed copy (packed.py), of 8-bit numbers also digit by digit (digits.py); the attention of a tile's patches
and of decode steps is torch's own or done in products (attention.py). Which is ahead, and from how many rows on, differs between processors.
"""

from __future__ import annotations

import dataclasses
import functools
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
import torch.nn.functional as F

from vlmbatch.engine.attention import attend_in_onednn, attend_in_products, attend_rows_in_products
from vlmbatch.engine.digits import can_write_digits, write_digits
from vlmbatch.engine.linear import Linear, QuantizedLinear
from vlmbatch.engine.model import AttendTiles, LanguageModel, TextLayer, VisionEncoder, VisionLayer
from vlmbatch.engine.packed import BANDS, PackedLinear, can_pack, pack

PROBES = (1, 8, 48, 1024)
"""How many rows stand for each band when it is measured."""
PROBED_ROWS = (16, 256)
"""How many sequences, and tokens of each, stand for the attention of decode steps."""
FEW = 2
"""Bands that decoding lives in."""
CACHED = 0.5
"""What digits must reach beside a matrix turned back: measured on one matrix, which stays in the caches, they gain less than on all of a model's."""
WORTH = 1.1
"""Another way than torch's own must be this much faster to be chosen, so that noise decides nothing that matters."""
ROUNDS = 3
"""At least, for each way."""
LEAST_SECONDS = 0.01
"""Each way is measured for at least so long: what takes microseconds must not be judged in a moment when the machine was busy."""


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
    """Every matrix of the model, with the bands of row counts that it meets."""
    decode, many = tuple(range(len(BANDS))), (len(BANDS) - 1,)
    dtype = language.embedding.dtype
    yield from (Place(vision, name, f"vision.{name}", many, dtype) for name in ("patch", "projection"))
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
        For each kind of matrix the row counts from which bands begin that use the packed kernel; and the names of what does the attention of tiles and of
        decode steps, where that is not torch's own.
    """
    chosen: dict[str, tuple[bool, ...]] = {}
    with torch.inference_mode():
        for name, attend in _faster_attention(vision, language.embedding.dtype) if measured else ():
            for layer in vision.layers:
                layer.attend = attend
            chosen[name] = (False,) * (len(BANDS) - 1) + (True,)
        if measured and _products_attend_rows_faster(language):
            language.attend_rows = attend_rows_in_products
            chosen["attend_rows_in_products"] = (True,) * len(BANDS)
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


def _faster_attention(vision: VisionEncoder, dtype: torch.dtype) -> Iterator[tuple[str, AttendTiles]]:
    """What does the attention of a tile fastest, with its name in summaries; nothing where that is torch's own."""
    shape = vision.shape
    stacked = torch.zeros(1, shape.patches, 3, shape.heads, shape.hidden // shape.heads, dtype=dtype)
    query, key, value = stacked.permute(2, 0, 3, 1, 4)  # laid out as a layer has them
    ways: dict[str, AttendTiles] = {"vision.attend_in_products": attend_in_products}
    if can_pack(query.device, dtype) and can_pack(query.device, torch.float32):
        ways["vision.attend_in_onednn"] = attend_in_onednn
    own, *others = _fastest([functools.partial(attend, query, key, value) for attend in (F.scaled_dot_product_attention, *ways.values())])
    seconds, name = min(zip(others, ways, strict=True))
    if own > WORTH * seconds:
        yield name, ways[name]


def _products_attend_rows_faster(language: LanguageModel) -> bool:
    """In bfloat16 scores would be rounded, which torch's own does not do, and it was the slower."""
    shape, dtype = language.shape, language.embedding.dtype
    if dtype != torch.float32:
        return False
    rows, tokens = PROBED_ROWS
    query = torch.zeros(rows, shape.kv_heads, shape.heads // shape.kv_heads, shape.head_dim, dtype=dtype)
    stores = torch.zeros(2, rows, shape.kv_heads, 2 * tokens, shape.head_dim, dtype=dtype)
    key, value = stores[:, :, :, :tokens].unbind()  # of rows with room, as a cache has them
    own, products = _fastest([functools.partial(attend, query, key, value) for attend in (language.attend_rows, attend_rows_in_products)])
    return own > WORTH * products


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
    for call in calls:  # warms caches
        call()
    best = [float("inf")] * len(calls)
    number, ends = 0, time.perf_counter() + LEAST_SECONDS * len(calls)
    while number < ROUNDS or time.perf_counter() < ends:
        for place, call in enumerate(calls):
            begun = time.perf_counter()
            call()
            best[place] = min(best[place], time.perf_counter() - begun)
        number += 1
    return best
