"""Packed matrix products give what plain ones give, and are used where they were chosen."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from tests.engine.test_parity import assert_same, mixed_requests, open_tiny, wanted_answers
from vlmbatch.checkpoint import find_checkpoint
from vlmbatch.engine import kernels
from vlmbatch.engine.budget import CAPS, MemoryBudget
from vlmbatch.engine.linear import Linear

pytestmark = pytest.mark.skipif(not kernels.can_pack(torch.device("cpu"), torch.float32), reason="no oneDNN here")


@pytest.fixture
def linear() -> Linear:
    torch.manual_seed(0)
    return Linear(torch.randn(48, 40), torch.randn(48))


@pytest.mark.parametrize("rows", [1, 2, 7, 33, 200])
@torch.inference_mode()
def test_a_packed_product_equals_the_plain_one(linear: Linear, rows: int) -> None:
    x = torch.randn(3, rows, 40)
    packed = kernels.pack(linear)
    torch.testing.assert_close(packed(x), F.linear(x, linear.weight, linear.bias))
    torch.testing.assert_close(packed.gelu(x), F.gelu(F.linear(x, linear.weight, linear.bias), approximate="tanh"), rtol=1e-4, atol=1e-5)


@torch.inference_mode()
def test_each_band_of_row_counts_uses_its_kernel(linear: Linear, monkeypatch: pytest.MonkeyPatch) -> None:
    used: list[int] = []
    real = kernels._packed

    def spy(x: torch.Tensor, *arguments: object) -> torch.Tensor:
        used.append(len(x))
        return real(x, *arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(kernels, "_packed", spy)
    packed = kernels.pack(linear, (False, True, False, True))
    for rows in (1, 2, 31, 32, 127, 128, 500):
        packed(torch.randn(rows, 40))
    assert used == [2, 31, 128, 500]


def test_measuring_chooses_kernels_that_exist_for_the_rows_they_meet(tiny: Path) -> None:
    model = open_tiny(tiny)[0].model
    chosen = kernels.choose_kernels(model.vision, model.language)
    kinds = {place.kind for place in kernels.places(model.vision, model.language)}
    assert set(chosen) <= kinds
    assert all(set(begins) <= set(kernels.BANDS) for begins in chosen.values())
    for place in kernels.places(model.vision, model.language):
        assert isinstance(place.linear, kernels.PackedLinear) == (place.kind in chosen)


def test_answers_through_packed_kernels_equal_generate(tiny: Path) -> None:
    engine, preparer = open_tiny(tiny)
    requests = mixed_requests(preparer)
    chosen = kernels.choose_kernels(engine.model.vision, engine.model.language, measured=False)
    assert chosen["qkv"] == list(kernels.BANDS)
    assert chosen["vision.fc1"] == [128]
    assert_same(engine, requests, wanted_answers(tiny, requests), find_checkpoint(str(tiny)).end_token_ids())


def test_packed_copies_are_part_of_the_budget_or_not_made(tiny: Path) -> None:
    shape = open_tiny(tiny)[0].model.shape
    weights = shape.parameters * 4
    roomy, tight = (MemoryBudget(shape, 4, weights + room, CAPS["cpu"]) for room in (4 * weights, weights))
    assert roomy.reserve_packed(weights)
    assert roomy.weight_bytes == 2 * weights
    assert not tight.reserve_packed(weights)
    assert tight.weight_bytes == weights


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@torch.inference_mode()
def test_attention_in_products_is_as_precise_as_torchs_own(dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(0)
    stacked = torch.randn(2, 100, 3, 4, 16, generator=generator).mul_(2).to(dtype)
    query, key, value = stacked.permute(2, 0, 3, 1, 4)
    exact = F.scaled_dot_product_attention(query.double(), key.double(), value.double())
    errors = [
        float((attend(query, key, value).double() - exact).square().mean().sqrt()) for attend in (kernels.attend_in_products, F.scaled_dot_product_attention)
    ]
    assert errors[0] <= 1.5 * errors[1] + 1e-7


@pytest.mark.parametrize("faster", [True, False])
def test_attention_in_products_is_used_where_it_measures_faster_and_never_in_float32(tiny: Path, monkeypatch: pytest.MonkeyPatch, faster: bool) -> None:
    monkeypatch.setattr(kernels, "_fastest", lambda calls: [1.0, 0.5 if faster else 2.0, 1.0][: len(calls)])
    for dtype in ("float32", "bfloat16"):
        engine, preparer = open_tiny(tiny, dtype=dtype)
        chosen = kernels.choose_kernels(engine.model.vision, engine.model.language, copies=False)
        used = [layer.attend is kernels.attend_in_products for layer in engine.model.vision.layers]
        assert used == [faster and dtype == "bfloat16"] * len(used)
        assert ("vision.attend" in chosen) == used[0]
        tiles = torch.from_numpy(mixed_requests(preparer)[0].tiles[:3])
        with torch.inference_mode():
            found, wanted = engine.model.vision(tiles), open_tiny(tiny)[0].model.vision(tiles)
        assert (found.float() - wanted).abs().max() <= (1e-5 if dtype == "float32" else 0.1) * wanted.abs().max()
