"""Choose the fastest kernels for this CPU by measuring them; choices.py keeps the choice.

A matrix product is torch's or oneDNN's with a packed copy (onednn.py); an int8 matrix is
dequantized or multiplied as 8-bit parts (int8.py). Attention of tiles, of prompts and of decode
steps is torch's or written as products (attention.py). The fastest kernel, and the row count from
which it is the fastest, differ between processors.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F

from vlmbatch.engine.torch.attention import (
    AttendRows,
    AttendTiles,
    attend_in_onednn,
    attend_in_products,
    attend_prompt_in_onednn,
    attend_rows_in_products,
)
from vlmbatch.engine.torch.cpu.int8 import can_prepack_int8, prepack_int8
from vlmbatch.engine.torch.cpu.onednn import BANDS, PackedLinear, can_pack, pack
from vlmbatch.engine.torch.cpu.timing import Fastest
from vlmbatch.engine.torch.linear import Linear, QuantizedLinear
from vlmbatch.engine.torch.model import (
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
DECODE_BANDS = 2
"""Number of bands that decoding uses."""
UNCACHED_BYTES = 64 << 20
"""Minimum bytes of matrices in a measurement: more than the caches hold, as a decode step reads
each from memory.
"""
MIN_SPEEDUP = 1.1
"""Minimum speedup over torch's kernel, so that noise decides nothing that matters."""

TILE_ATTENTION: dict[str, AttendTiles] = {
    "vision.attend_in_products": attend_in_products,
    "vision.attend_in_onednn": attend_in_onednn,
}
PROMPT_IN_ONEDNN = "attend_prompt_in_onednn"
ROWS_IN_PRODUCTS = "attend_rows_in_products"

Choice = Mapping[str, Sequence[int]]
"""For each kind of matrix the first row counts of the bands that use the packed kernel; and the
names of the attention kernels other than torch's, with the bands that they serve.
"""


@dataclasses.dataclass(frozen=True)
class Matrix:
    """A matrix of the model: its owner and attribute, its kind, the bands of row counts that it
    meets, and the dtype of its inputs.
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


def matrices(vision: VisionEncoder, language: LanguageModel) -> Iterator[Matrix]:
    """Yield every matrix of the model, with the bands of row counts that it meets."""
    decode, many = tuple(range(len(BANDS))), (len(BANDS) - 1,)
    dtype = language.embedding.dtype
    yield from (
        Matrix(vision, name, f"vision.{name}", many, dtype) for name in ("patch", "projection")
    )
    for layer in vision.layers:
        assert isinstance(layer, VisionLayer)
        yield from (
            Matrix(layer, name, f"vision.{name}", many, dtype, name == "fc1")
            for name in ("qkv", "out", "fc1", "fc2")
        )
    for text_layer in language.layers:
        assert isinstance(text_layer, TextLayer)
        yield from (
            Matrix(text_layer, name, name, decode, dtype)
            for name in ("qkv", "out", "gate_up", "down")
        )
    yield Matrix(language, "head", "head", decode[:-1], dtype)


def packed_bytes(vision: VisionEncoder, language: LanguageModel, *, chosen: bool = False) -> int:
    """Bytes of the packed copies of all matrices, or only of those that have one. int8 matrices
    have no second copy.
    """
    linears = [matrix.linear for matrix in matrices(vision, language)]
    return sum(
        linear.weight.nbytes
        for linear in linears
        if (isinstance(linear, PackedLinear) if chosen else type(linear) is Linear)
    )


def choose_kernels(
    vision: VisionEncoder, language: LanguageModel, fastest: Fastest, *, copies: bool = True
) -> Choice:
    """Choose the fastest kernels for every matrix, by measuring one of each kind.

    Args:
        vision: The vision encoder.
        language: The language model.
        fastest: Measures.
        copies: Whether packed copies of weights are allowed. int8 matrices need none.
    """
    chosen: dict[str, tuple[bool, ...]] = {}
    with torch.inference_mode():
        name = _faster_attention(vision, language.embedding.dtype, fastest)
        if name is not None:
            chosen[name] = (False,) * (len(BANDS) - 1) + (True,)
        if _onednn_attends_prompt_faster(language, fastest):
            chosen[PROMPT_IN_ONEDNN] = (False,) * (len(BANDS) - 1) + (True,)
        if _products_attend_rows_faster(language, fastest):
            chosen[ROWS_IN_PRODUCTS] = (True,) * len(BANDS)
        for kind, group in _by_kind(vision, language).items():
            is_quantized = isinstance(group[0].linear, QuantizedLinear)
            if can_prepack_int8() if is_quantized else copies:
                measure = _measure_int8 if is_quantized else _measure
                chosen[kind] = measure(group, fastest)
    return {
        kind: [BANDS[band] for band, packed in enumerate(bands) if packed]
        for kind, bands in chosen.items()
        if any(bands)
    }


def use_kernels(vision: VisionEncoder, language: LanguageModel, choice: Choice) -> None:
    """Change the layers to use the chosen kernels.

    Raises:
        KeyError: It names a kernel that does not exist.
    """
    groups = _by_kind(vision, language)
    for kind, rows in choice.items():
        bands = tuple(begin in rows for begin in BANDS)
        if kind in TILE_ATTENTION:
            for layer in vision.layers:
                layer.attend = TILE_ATTENTION[kind]
        elif kind == PROMPT_IN_ONEDNN:
            language.attend_prompt = attend_prompt_in_onednn
        elif kind == ROWS_IN_PRODUCTS:
            language.attend_rows = attend_rows_in_products
        else:
            for matrix in groups[kind]:
                linear = matrix.linear
                packed = (
                    prepack_int8(linear, bands)
                    if isinstance(linear, QuantizedLinear)
                    else pack(linear, bands)
                )
                setattr(matrix.owner, matrix.name, packed)


def is_choice(found: object, vision: VisionEncoder, language: LanguageModel) -> bool:
    """True if a value, read from a file, is a choice among the kernels that there are."""
    kinds = {*_by_kind(vision, language), *TILE_ATTENTION, PROMPT_IN_ONEDNN, ROWS_IN_PRODUCTS}
    return isinstance(found, dict) and all(
        kind in kinds and isinstance(rows, list) and all(begin in BANDS for begin in rows)
        for kind, rows in found.items()
    )


def _by_kind(vision: VisionEncoder, language: LanguageModel) -> dict[str, list[Matrix]]:
    """Group the matrices of a model by their kind."""
    groups: dict[str, list[Matrix]] = {}
    for matrix in matrices(vision, language):
        groups.setdefault(matrix.kind, []).append(matrix)
    return groups


def _faster_attention(vision: VisionEncoder, dtype: torch.dtype, fastest: Fastest) -> str | None:
    """Return the name of the fastest attention for a tile; None if that is torch's."""
    shape = vision.shape
    stacked = torch.zeros(
        1, shape.patches, 3, shape.heads, shape.hidden // shape.heads, dtype=dtype
    )
    query, key, value = stacked.permute(2, 0, 3, 1, 4)  # strides as in a layer
    can_use_onednn = all(can_pack(query.device, each) for each in (dtype, torch.float32))
    names = [
        name for name, way in TILE_ATTENTION.items() if can_use_onednn or way is attend_in_products
    ]
    ways = [F.scaled_dot_product_attention, *(TILE_ATTENTION[name] for name in names)]
    own, *others = fastest([functools.partial(attend, query, key, value) for attend in ways])
    seconds, name = min(zip(others, names, strict=True))
    return name if own > MIN_SPEEDUP * seconds else None


def _onednn_attends_prompt_faster(language: LanguageModel, fastest: Fastest) -> bool:
    """True if oneDNN's products are worth it in the attention of a prompt."""
    shape, dtype = language.shape, language.embedding.dtype
    if not (can_pack(torch.device("cpu"), dtype) and can_pack(torch.device("cpu"), torch.float32)):
        return False
    query = torch.zeros(PROBED_PROMPT, shape.heads, shape.head_dim, dtype=dtype).transpose(0, 1)
    key, value = torch.zeros(2, shape.kv_heads, 2 * PROBED_PROMPT, shape.head_dim, dtype=dtype)[
        :, :, :PROBED_PROMPT
    ].unbind()  # a slot with spare capacity
    own, products = fastest(
        [
            functools.partial(attend, query, key, value)
            for attend in (language.attend_prompt, attend_prompt_in_onednn)
        ]
    )
    return own > MIN_SPEEDUP * products


def _products_attend_rows_faster(language: LanguageModel, fastest: Fastest) -> bool:
    """True if one product for all rows is worth it. In bfloat16 it would round scores, unlike
    torch's kernel, and was slower.
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

    def attend_all(attend: AttendRows, *, transposed: bool) -> None:
        for keys, value in stores:  # slots with spare capacity, as in a cache
            key = keys.view(*size[:2], size[3], size[2]).transpose(2, 3) if transposed else keys
            attend(query, key[:, :, :tokens], value[:, :, :tokens])

    ways = (
        functools.partial(attend_all, language.attend_rows, transposed=False),
        functools.partial(attend_all, attend_rows_in_products, transposed=True),
    )
    own, products = fastest(ways)
    return own > MIN_SPEEDUP * products


def _measure(alike: Sequence[Matrix], fastest: Fastest) -> tuple[bool, ...]:
    """For each band, decide whether the packed kernel is worth it; False for bands that this kind
    of matrix does not meet.
    """
    plain = _uncached(alike)
    ways: list[Sequence[Linear]] = [plain, [pack(linear) for linear in plain]]
    found = []
    for band in range(len(BANDS)):
        slow, fast = (
            _seconds(alike[0], ways, band, fastest) if band in alike[0].bands else (0.0, 0.0)
        )
        found.append(slow > MIN_SPEEDUP * fast)
    return tuple(found)


def _measure_int8(alike: Sequence[Matrix], fastest: Fastest) -> tuple[bool, ...]:
    """For each band, decide whether the 8-bit product is worth it; False for all if dequantizing,
    whose layout would be dropped, decodes faster.
    """
    plain = _uncached(alike)
    quantized = [linear for linear in plain if isinstance(linear, QuantizedLinear)]
    ways: list[Sequence[Linear]] = [
        plain,
        [prepack_int8(linear) for linear in quantized],
        [prepack_int8(linear, (False,) * len(BANDS)) for linear in quantized],
    ]
    bands, gain = [False] * len(BANDS), 1.0
    for band in alike[0].bands:
        slow, fast, other = _seconds(alike[0], ways, band, fastest)
        bands[band] = fast < other
        if band < DECODE_BANDS:
            gain *= slow / min(fast, other)
    return tuple(chosen and gain > 1 for chosen in bands)


def _uncached(alike: Sequence[Matrix]) -> list[Linear]:
    """Take enough matrices of a kind to exceed the caches."""
    return [
        matrix.linear for matrix in alike[: -(-UNCACHED_BYTES // alike[0].linear.weight.nbytes)]
    ]


def _seconds(
    matrix: Matrix, ways: Sequence[Sequence[Linear]], band: int, fastest: Fastest
) -> list[float]:
    """Minimum seconds of each kernel for the row count that represents a band."""
    rows = PROBES[band]
    x = torch.zeros(rows, matrix.linear.weight.shape[1], dtype=matrix.dtype)

    def multiply_all(linears: Sequence[Linear]) -> None:
        for linear in (
            linears if rows < BANDS[-1] else linears[:1]
        ):  # with many rows, reading the matrix takes little of the time
            (linear.gelu if matrix.activation else linear)(x)

    return fastest([functools.partial(multiply_all, linears) for linears in ways])
