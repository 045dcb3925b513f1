"""Choice of the fastest kernels on this CPU, measured once when a model is loaded.

Matrix products are torch's own or oneDNN's from a packed copy (packed.py), of 8-bit numbers also
digit by digit (digits.py); the attention of a tile's patches, of prompts and of decode steps is
torch's own or done in products (attention.py). Which is ahead, and from how many rows on, differs
between processors.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import math
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
import torch.nn.functional as F

from vlmbatch.engine.torch.attention import (
    attend_in_onednn,
    attend_in_products,
    attend_prompt_in_onednn,
    attend_rows_in_products,
)
from vlmbatch.engine.torch.cpu.int8 import can_write_digits, write_digits
from vlmbatch.engine.torch.cpu.onednn import BANDS, PackedLinear, can_pack, pack
from vlmbatch.engine.torch.linear import Linear, QuantizedLinear
from vlmbatch.engine.torch.model import (
    AttendRows,
    AttendTiles,
    LanguageModel,
    TextLayer,
    VisionEncoder,
    VisionLayer,
)

PROBES = (1, 8, 48, 512)
"""Number of rows with which each band is measured."""
PROBED_ROWS = (16, 256)
"""Number of sequences, and tokens of each, with which attention of decode steps is measured."""
PROBED_PROMPT = 512
"""Number of tokens with which a prompt's attention is measured."""
FEW = 2
"""Bands that decoding lives in."""
UNCACHED_BYTES = 64 << 20
"""Matrices of one kind are measured one after the other, so many as are more than the caches hold:
in a decode step each comes from memory.
"""
WORTH = 1.1
"""Another way than torch's own must be this much faster to be chosen, so that noise decides nothing
that matters.
"""
ROUNDS = 3
"""At least, for each way."""
LEAST_SECONDS = 0.01
"""Each way is measured for at least so long: what takes microseconds must not be judged in a moment
when the machine was busy.
"""


@dataclasses.dataclass(frozen=True)
class Place:
    """A matrix of the model: what holds it, under which name, what kind it is, the bands of row
    counts that it meets, and the number format of its inputs.
    """

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
    yield from (
        Place(vision, name, f"vision.{name}", many, dtype) for name in ("patch", "projection")
    )
    for layer in vision.layers:
        assert isinstance(layer, VisionLayer)
        yield from (
            Place(layer, name, f"vision.{name}", many, dtype, name == "fc1")
            for name in ("qkv", "out", "fc1", "fc2")
        )
    for text_layer in language.layers:
        assert isinstance(text_layer, TextLayer)
        yield from (
            Place(text_layer, name, name, decode, dtype)
            for name in ("qkv", "out", "gate_up", "down")
        )
    yield Place(language, "head", "head", decode[:-1], dtype)


def packed_bytes(vision: VisionEncoder, language: LanguageModel, *, chosen: bool = False) -> int:
    """Bytes of the packed copies of all matrices, or only of those that have one. 8-bit numbers
    have no second copy.
    """
    linears = [place.linear for place in places(vision, language)]
    return sum(
        linear.weight.nbytes
        for linear in linears
        if (isinstance(linear, PackedLinear) if chosen else type(linear) is Linear)
    )


def choose_kernels(
    vision: VisionEncoder, language: LanguageModel, *, copies: bool = True, measured: bool = True
) -> dict[str, list[int]]:
    """Gives every matrix the kernels that are fastest for it, by measuring one of each kind.

    Args:
        vision: The vision encoder; its layers are changed.
        language: Likewise.
        copies: Whether there may be second copies of weights. Matrices of 8-bit numbers need none.
        measured: Whether to measure. Otherwise the packed kernel is used throughout, which is for
            tests.

    Returns:
        For each kind of matrix the row counts from which bands begin that use the packed kernel;
        and the names of what does the attention of tiles, of prompts and of decode steps, where
        that is not torch's own.
    """
    chosen: dict[str, tuple[bool, ...]] = {}
    with torch.inference_mode():
        for name, attend in _faster_attention(vision, language.embedding.dtype) if measured else ():
            for layer in vision.layers:
                layer.attend = attend
            chosen[name] = (False,) * (len(BANDS) - 1) + (True,)
        if measured and _onednn_attends_prompt_faster(language):
            language.attend_prompt = attend_prompt_in_onednn
            chosen["attend_prompt_in_onednn"] = (False,) * (len(BANDS) - 1) + (True,)
        if measured and _products_attend_rows_faster(language):
            language.attend_rows = attend_rows_in_products
            chosen["attend_rows_in_products"] = (True,) * len(BANDS)
        for kind, alike in itertools.groupby(
            sorted(places(vision, language), key=lambda place: place.kind),
            key=lambda place: place.kind,
        ):
            group = list(alike)
            is_quantized = isinstance(group[0].linear, QuantizedLinear)
            if not (can_write_digits() if is_quantized else copies):
                continue
            measure = _measure_digits if is_quantized else _measure
            chosen[kind] = bands = (
                measure(group)
                if measured
                else tuple(band in group[0].bands for band in range(len(BANDS)))
            )
            for place in group if any(bands) else ():
                linear = place.linear
                setattr(
                    place.owner,
                    place.name,
                    write_digits(linear, bands)
                    if isinstance(linear, QuantizedLinear)
                    else pack(linear, bands),
                )
    return {
        kind: [BANDS[band] for band, packed in enumerate(bands) if packed]
        for kind, bands in chosen.items()
        if any(bands)
    }


def _faster_attention(
    vision: VisionEncoder, dtype: torch.dtype
) -> Iterator[tuple[str, AttendTiles]]:
    """The fastest attention for a tile, with its name in summaries; None where that is torch's
    own.
    """
    shape = vision.shape
    stacked = torch.zeros(
        1, shape.patches, 3, shape.heads, shape.hidden // shape.heads, dtype=dtype
    )
    query, key, value = stacked.permute(2, 0, 3, 1, 4)  # laid out as a layer has them
    ways: dict[str, AttendTiles] = {"vision.attend_in_products": attend_in_products}
    if can_pack(query.device, dtype) and can_pack(query.device, torch.float32):
        ways["vision.attend_in_onednn"] = attend_in_onednn
    own, *others = fastest(
        [
            functools.partial(attend, query, key, value)
            for attend in (F.scaled_dot_product_attention, *ways.values())
        ]
    )
    seconds, name = min(zip(others, ways, strict=True))
    if own > WORTH * seconds:
        yield name, ways[name]


def _onednn_attends_prompt_faster(language: LanguageModel) -> bool:
    """Whether oneDNN's products are worth it in the attention of a prompt."""
    shape, dtype = language.shape, language.embedding.dtype
    if not (can_pack(torch.device("cpu"), dtype) and can_pack(torch.device("cpu"), torch.float32)):
        return False
    query = torch.zeros(PROBED_PROMPT, shape.heads, shape.head_dim, dtype=dtype).transpose(0, 1)
    key, value = torch.zeros(2, shape.kv_heads, 2 * PROBED_PROMPT, shape.head_dim, dtype=dtype)[
        :, :, :PROBED_PROMPT
    ].unbind()  # a row with room
    own, products = fastest(
        [
            functools.partial(attend, query, key, value)
            for attend in (language.attend_prompt, attend_prompt_in_onednn)
        ]
    )
    return own > WORTH * products


def _products_attend_rows_faster(language: LanguageModel) -> bool:
    """Whether one product for all rows is worth it. In bfloat16 it would round scores, which
    torch's own does not do, and was the slower.
    """
    shape, dtype = language.shape, language.embedding.dtype
    if dtype != torch.float32:
        return False
    rows, tokens = PROBED_ROWS
    query = torch.zeros(
        rows, shape.kv_heads, shape.heads // shape.kv_heads, shape.head_dim, dtype=dtype
    )
    size = (rows, shape.kv_heads, 2 * tokens, shape.head_dim)
    stores = torch.ones(
        max(1, UNCACHED_BYTES // (2 * math.prod(size) * dtype.itemsize)), 2, *size, dtype=dtype
    )

    def attend_all(attend: AttendRows, *, turned: bool) -> None:
        for keys, value in stores:  # of rows with room, as a cache has them
            key = keys.view(*size[:2], size[3], size[2]).transpose(2, 3) if turned else keys
            attend(query, key[:, :, :tokens], value[:, :, :tokens])

    ways = (
        functools.partial(attend_all, language.attend_rows, turned=False),
        functools.partial(attend_all, attend_rows_in_products, turned=True),
    )
    own, products = fastest(ways)
    return own > WORTH * products


def _measure(alike: Sequence[Place]) -> tuple[bool, ...]:
    """For each band whether the packed kernel is worth it; False where matrices of this kind meet
    no such row count.
    """
    plain = _uncached(alike)
    ways: list[Sequence[Linear]] = [plain, [pack(linear) for linear in plain]]
    found = []
    for band in range(len(BANDS)):
        slow, fast = _seconds(alike[0], ways, band) if band in alike[0].bands else (0.0, 0.0)
        found.append(slow > WORTH * fast)
    return tuple(found)


def _measure_digits(alike: Sequence[Place]) -> tuple[bool, ...]:
    """For each band whether digits are worth it; False for all where the plain matrix, which is not
    kept beside the other layout, decodes faster.
    """
    plain = _uncached(alike)
    quantized = [linear for linear in plain if isinstance(linear, QuantizedLinear)]
    ways: list[Sequence[Linear]] = [
        plain,
        [write_digits(linear) for linear in quantized],
        [write_digits(linear, (False,) * len(BANDS)) for linear in quantized],
    ]
    bands, gain = [False] * len(BANDS), 1.0
    for band in alike[0].bands:
        slow, fast, other = _seconds(alike[0], ways, band)
        bands[band] = fast < other
        if band < FEW:
            gain *= slow / min(fast, other)
    return tuple(chosen and gain > 1 for chosen in bands)


def _uncached(alike: Sequence[Place]) -> list[Linear]:
    """So many matrices of a kind that the caches cannot hold them."""
    return [place.linear for place in alike[: -(-UNCACHED_BYTES // alike[0].linear.weight.nbytes)]]


def _seconds(place: Place, ways: Sequence[Sequence[Linear]], band: int) -> list[float]:
    """The least seconds that each way takes for the rows that stand for a band."""
    rows = PROBES[band]
    x = torch.zeros(rows, place.linear.weight.shape[1], dtype=place.dtype)

    def multiply_all(linears: Sequence[Linear]) -> None:
        for linear in (
            linears if rows < BANDS[-1] else linears[:1]
        ):  # of many rows, reading the matrix is not what takes time
            (linear.gelu if place.activation else linear)(x)

    return fastest([functools.partial(multiply_all, linears) for linears in ways])


def fastest(calls: Sequence[Callable[[], object]]) -> list[float]:
    """The least seconds that each call takes; they take turns, so that a busy machine is busy for
    all.
    """
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
