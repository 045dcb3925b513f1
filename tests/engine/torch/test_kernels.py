"""Packed matrix products give what plain ones give, and are used where they were chosen."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from tests.engine.torch.test_parity import assert_same, mixed_requests, open_tiny, wanted_answers
from vlmbatch.checkpoint import find_checkpoint
from vlmbatch.engine.torch import attention
from vlmbatch.engine.torch.attention import (
    BLOCK,
    attend_in_onednn,
    attend_in_products,
    attend_prompt,
    attend_prompt_in_onednn,
    attend_rows_in_products,
)
from vlmbatch.engine.torch.budget import CAPS, MemoryBudget
from vlmbatch.engine.torch.cache import Cache, wide_mask
from vlmbatch.engine.torch.cpu import kernels
from vlmbatch.engine.torch.cpu import onednn as packed
from vlmbatch.engine.torch.cpu.kernels import Choice
from vlmbatch.engine.torch.cpu.onednn import BANDS, PackedLinear, can_pack, pack
from vlmbatch.engine.torch.cpu.timing import Fastest, Stopwatch
from vlmbatch.engine.torch.linear import Linear
from vlmbatch.engine.torch.model import AttendTiles
from vlmbatch.engine.torch.weights import Model

pytestmark = pytest.mark.skipif(
    not can_pack(torch.device("cpu"), torch.float32), reason="no oneDNN here"
)


@pytest.fixture
def linear() -> Linear:
    torch.manual_seed(0)
    return Linear(torch.randn(48, 40), torch.randn(48))


@pytest.mark.parametrize("rows", [1, 2, 7, 33, 200])
@torch.inference_mode()
def test_a_packed_product_equals_the_plain_one(linear: Linear, rows: int) -> None:
    x = torch.randn(3, rows, 40)
    found = pack(linear)
    torch.testing.assert_close(found(x), F.linear(x, linear.weight, linear.bias))
    torch.testing.assert_close(
        found.gelu(x),
        F.gelu(F.linear(x, linear.weight, linear.bias), approximate="tanh"),
        rtol=1e-4,
        atol=1e-5,
    )


@torch.inference_mode()
def test_each_band_of_row_counts_uses_its_kernel(
    linear: Linear, monkeypatch: pytest.MonkeyPatch
) -> None:
    used: list[int] = []
    real = packed.multiply

    def spy(x: torch.Tensor, *arguments: object) -> torch.Tensor:
        used.append(len(x))
        return real(x, *arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(packed, "multiply", spy)
    found = pack(linear, (False, True, False, True))
    for rows in (1, 2, 31, 32, 127, 128, 500):
        found(torch.randn(rows, 40))
    assert used == [2, 31, 128, 500]


def choose(model: Model, fastest: Fastest | None = None, *, copies: bool = True) -> Choice:
    """Measure and use the fastest kernels."""
    fastest = fastest or Stopwatch(1).fastest
    chosen = kernels.choose_kernels(model.vision, model.language, fastest, copies=copies)
    kernels.use_kernels(model.vision, model.language, chosen)
    return chosen


def packed_everywhere(model: Model) -> Choice:
    """The packed kernel for all rows that a matrix meets."""
    return {
        place.kind: [BANDS[band] for band in place.bands]
        for place in kernels.matrices(model.vision, model.language)
    }


def test_measuring_chooses_kernels_that_exist_for_the_rows_they_meet(tiny: Path) -> None:
    model = open_tiny(tiny)[0].network
    chosen = choose(model)
    kinds = {place.kind for place in kernels.matrices(model.vision, model.language)}
    assert {kind for kind in chosen if "attend" not in kind} <= kinds
    assert all(set(begins) <= set(BANDS) for begins in chosen.values())
    for place in kernels.matrices(model.vision, model.language):
        assert isinstance(place.linear, PackedLinear) == (place.kind in chosen)


def test_answers_through_packed_kernels_equal_generate(tiny: Path) -> None:
    engine, preparer = open_tiny(tiny)
    requests = mixed_requests(preparer)
    chosen = packed_everywhere(engine.network)
    kernels.use_kernels(engine.network.vision, engine.network.language, chosen)
    assert chosen["qkv"] == list(BANDS)
    assert chosen["vision.fc1"] == [128]
    assert_same(engine, requests, wanted_answers(tiny), find_checkpoint(str(tiny)).end_token_ids())


def test_packed_copies_are_part_of_the_budget_or_not_made(tiny: Path) -> None:
    shape = open_tiny(tiny)[0].network.shape
    weights = shape.parameters * 4
    roomy, tight = (
        MemoryBudget(shape, 4, weights + room, CAPS["cpu"]) for room in (4 * weights, weights)
    )
    assert roomy.reserve_packed(weights)
    assert roomy.weight_bytes == 2 * weights
    assert not tight.reserve_packed(weights)
    assert tight.weight_bytes == weights


@pytest.mark.parametrize("attend", [attend_in_products, attend_in_onednn])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@torch.inference_mode()
def test_attention_in_products_is_as_precise_as_torchs_own(
    dtype: torch.dtype, attend: AttendTiles
) -> None:
    if attend is attend_in_onednn and not can_pack(torch.device("cpu"), dtype):
        pytest.skip("no product of this number format here")
    generator = torch.Generator().manual_seed(0)
    stacked = torch.randn(2, 100, 3, 4, 16, generator=generator).mul_(2).to(dtype)
    query, key, value = stacked.permute(2, 0, 3, 1, 4)
    before = stacked.clone()
    exact = F.scaled_dot_product_attention(query.double(), key.double(), value.double())
    errors = [
        float((way(query, key, value).double() - exact).square().mean().sqrt())
        for way in (attend, F.scaled_dot_product_attention)
    ]
    assert torch.equal(stacked, before)
    assert errors[0] <= 1.5 * errors[1] + 1e-7


@pytest.mark.parametrize("turned", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    ("before", "tokens"),
    [(0, 2 * BLOCK + 17), (0, BLOCK), (BLOCK, 5), (100, BLOCK + 1), (3, 9), (BLOCK, 1)],
)
@torch.inference_mode()
def test_attention_of_prompts_in_products_is_as_precise_as_torchs_own(
    dtype: torch.dtype, before: int, tokens: int, turned: bool
) -> None:
    if not can_pack(torch.device("cpu"), dtype):
        pytest.skip("no product of this number format here")
    generator = torch.Generator().manual_seed(0)
    query = torch.randn(tokens, 6, 16, generator=generator).mul_(2).to(dtype).transpose(0, 1)
    stores = torch.full(
        (2, 2, before + tokens + 7, 16), torch.nan, dtype=dtype
    )  # rows with room, of which nothing behind the tokens may be read
    stores[:, :, : before + tokens] = torch.randn(2, 2, before + tokens, 16, generator=generator)
    key, value = stores[:, :, : before + tokens].unbind()
    if turned:
        key = key.transpose(1, 2).contiguous().transpose(1, 2)
    kept = query.clone()
    exact = attend_prompt(query.double(), key.double(), value.double())
    found = [way(query, key, value) for way in (attend_prompt_in_onednn, attend_prompt)]
    errors = [float((result.double() - exact).square().mean().sqrt()) for result in found]
    assert torch.equal(query, kept)
    assert found[0].shape == (tokens, 6, 16)
    assert errors[0] <= 1.5 * errors[1] + 1e-7


@pytest.mark.parametrize("turned", [True, False])
@pytest.mark.parametrize("masked", [True, False])
@torch.inference_mode()
def test_attention_of_rows_in_products_is_as_precise_as_torchs_own(
    tiny: Path, masked: bool, turned: bool
) -> None:
    shape = open_tiny(tiny)[0].network.shape.text
    groups, ends = shape.heads // shape.kv_heads, torch.tensor([3, 30, 17, 8, 11])
    generator = torch.Generator().manual_seed(0)
    query = torch.randn(5, shape.kv_heads, groups, 16, generator=generator).mul_(2)
    key, value = torch.randn(2, 5, shape.kv_heads, 64, 16, generator=generator)[
        :, :, :, :31
    ].unbind()
    if turned:
        key = torch.zeros(5, shape.kv_heads, 16, 64).transpose(2, 3)[:, :, :31].copy_(key)
    mask = wide_mask(shape, ends, 31, torch.float32) if masked else None
    exact = F.scaled_dot_product_attention(
        query.double(),
        key.double(),
        value.double(),
        attn_mask=mask if mask is None else mask.double(),
    )
    before = query.clone()
    errors = [
        float((way(query, key, value, attn_mask=mask).double() - exact).square().mean().sqrt())
        for way in (attend_rows_in_products, F.scaled_dot_product_attention)
    ]
    assert torch.equal(query, before)
    assert errors[0] <= 2 * errors[1] + 1e-7


def only_faster(seconds: Mapping[Callable[..., object], float]) -> Fastest:
    """Measure these seconds for ways of attention, and 1 for all others."""

    def measured(calls: Sequence[Callable[[], object]]) -> list[float]:
        ways = [(call.func, *call.args) for call in calls if isinstance(call, functools.partial)]
        return [
            next((seconds[each] for each in way if callable(each) and each in seconds), 1.0)
            for way in ways
        ]

    return measured


@pytest.mark.parametrize("faster", [True, False])
def test_the_attention_of_decode_steps_is_what_measures_fastest_and_answers_stay(
    tiny: Path, faster: bool
) -> None:
    fastest = only_faster({attend_rows_in_products: 0.5 if faster else 0.95})
    engine, preparer = open_tiny(tiny)
    requests = mixed_requests(preparer)
    chosen = choose(engine.network, fastest, copies=False)
    assert list(chosen) == ["attend_rows_in_products"] * faster
    assert engine.network.language.attend_rows is (
        attend_rows_in_products if faster else F.scaled_dot_product_attention
    )
    cache = Cache(
        engine.network.shape.text,
        engine.network.device,
        engine.network.dtype,
        engine.network.language.attend_rows,
    )
    row = cache.take(40)
    assert row is not None
    keys, values = row.views(0, 40)
    assert (keys.stride(1) == 1) is faster  # tokens side by side
    assert values.stride(2) == 1
    engine.cache.use(cache.attend_rows)
    assert_same(engine, requests, wanted_answers(tiny), find_checkpoint(str(tiny)).end_token_ids())


@pytest.mark.parametrize("faster", [True, False])
def test_the_attention_of_prompts_is_what_measures_fastest_and_answers_stay(
    tiny: Path, monkeypatch: pytest.MonkeyPatch, faster: bool
) -> None:
    fastest = only_faster({attend_prompt_in_onednn: 0.5 if faster else 0.95})
    monkeypatch.setattr(attention, "BLOCK", 8)
    engine, preparer = open_tiny(tiny)
    requests = mixed_requests(preparer)
    chosen = choose(engine.network, fastest, copies=False)
    assert list(chosen) == ["attend_prompt_in_onednn"] * faster
    assert engine.network.language.attend_prompt is (
        attend_prompt_in_onednn if faster else attend_prompt
    )
    assert_same(engine, requests, wanted_answers(tiny), find_checkpoint(str(tiny)).end_token_ids())


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize(
    ("seconds", "chosen"),
    [
        ((0.5, 2.0), attend_in_products),
        ((0.5, 0.4), attend_in_onednn),
        ((0.95, 0.92), None),
    ],
)
def test_the_attention_of_tiles_is_what_measures_fastest(
    tiny: Path,
    dtype: str,
    seconds: tuple[float, float],
    chosen: AttendTiles | None,
) -> None:
    fastest = only_faster(dict(zip((attend_in_products, attend_in_onednn), seconds, strict=True)))
    engine, preparer = open_tiny(tiny, dtype=dtype)
    found = choose(engine.network, fastest, copies=False)
    assert {layer.attend for layer in engine.network.vision.layers} == {
        chosen or F.scaled_dot_product_attention
    }
    assert list(found) == ([f"vision.{chosen.__name__}"] if chosen else [])
    tiles = torch.from_numpy(mixed_requests(preparer)[0].payload.tiles[:3])
    with torch.inference_mode():
        features, wanted = engine.network.vision(tiles), open_tiny(tiny)[0].network.vision(tiles)
    assert (features.float() - wanted).abs().max() <= (
        1e-5 if dtype == "float32" else 0.1
    ) * wanted.abs().max()
