"""The compiled decode step computes what torch's steps compute."""

from __future__ import annotations

import dataclasses
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.checkpoints import write_tiny_checkpoint
from tests.engine.torch.test_parity import assert_same, mixed_requests, open_tiny
from tests.engine.torch.test_parity import wanted_answers as answers_of_transformers
from vlmbatch.checkpoint import find_checkpoint
from vlmbatch.engine.torch.attention import attend_rows_in_products
from vlmbatch.engine.torch.cache import (
    Cache,
    DecodeAttention,
    PrefillAttention,
    Prefix,
    Segment,
    Slot,
)
from vlmbatch.engine.torch.cpu.native import (
    MAX_DIFFERENCE,
    MAX_ROWS,
    SPAN_TOKENS,
    BackgroundDecoder,
    NativeWeights,
    can_decode,
    library_of,
)
from vlmbatch.engine.torch.engine import TorchEngine
from vlmbatch.engine.torch.linear import Linear
from vlmbatch.engine.torch.model import LanguageModel

pytestmark = pytest.mark.skipif(
    shutil.which("c++") is None or sys.platform != "linux", reason="no compiler here"
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("native")


@pytest.fixture(scope="module")
def checkpoint(folder: Path) -> Path:
    return write_tiny_checkpoint(folder / "checkpoint", head_dim=16)


def decoder_of(language: LanguageModel, folder: Path) -> BackgroundDecoder:
    weights = NativeWeights(language)
    return BackgroundDecoder(weights, library_of(weights, folder / "libraries", "this"))


def with_native(engine: TorchEngine, folder: Path, **settings: Any) -> TorchEngine:
    """Another engine with the same model, and a native decoder that is ready."""
    native = decoder_of(engine.network.language, folder)
    assert native.wait()
    return TorchEngine(
        engine.network,
        dataclasses.replace(engine.budget),
        engine._preparer,
        model_name=engine.model,
        revision=engine.revision,
        end_ids=engine._end_ids,
        native=native,
        **settings,
    )


def prompt(cache: Cache, language: LanguageModel, tokens: int, prefix: Prefix | None) -> Slot:
    """A sequence whose prompt is computed, behind the prefix."""
    slot = cache.take(tokens + 8, prefix)
    assert slot is not None
    own = tokens - slot.length
    ids = torch.arange(own) * 31 % language.shape.vocabulary
    attend = PrefillAttention([Segment(slot, own)])
    language(language.embed(ids), torch.arange(slot.length, tokens), attend)
    attend.finish()
    return slot


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("options", [{}, {"quantize": "int8"}])
@pytest.mark.parametrize("products", [True, False])
@torch.inference_mode()
def test_logits_keys_and_values_are_those_of_torch(
    checkpoint: Path, folder: Path, dtype: str, options: dict[str, str], products: bool
) -> None:
    if products and dtype == "bfloat16":
        pytest.skip("only float32 attends in products")
    language = open_tiny(checkpoint, dtype=dtype, **options)[0].network.language
    native = decoder_of(language, folder)
    assert native.wait()
    attend = attend_rows_in_products if products else language.attend_rows
    cache = Cache(language.shape, torch.device("cpu"), language.embedding.dtype, attend)
    lengths = (SPAN_TOKENS - 1, SPAN_TOKENS, 3, 2 * SPAN_TOKENS + 40)
    slots = [prompt(cache, language, length, None) for length in lengths]
    shared = slots[3].beginning(SPAN_TOKENS + 44)
    slots[2] = prompt(cache, language, SPAN_TOKENS + 60, shared)
    assert slots[2].shared
    limit = MAX_DIFFERENCE[language.embedding.dtype] / 2
    for rows in range(1, MAX_ROWS + 1):
        for _ in range(3):
            chosen = slots[-rows:]
            decoder = native.get(rows)
            assert decoder is not None
            found = decoder.logits(chosen, [5 + row for row in range(rows)])
            stored = [slot.views(0, slot.own_length + 1)[0][:, -1].clone() for slot in chosen]
            step = DecodeAttention(cache, chosen)
            order = [chosen.index(slot) for slot in step.slots]
            positions = torch.tensor([slot.length for slot in step.slots])
            hidden = language(language.embed(torch.tensor(order) + 5), positions, step)
            expected = language.logits(hidden)
            largest = expected.abs().max()
            assert (found[order] - expected).abs().max() <= limit * largest
            for slot, key in zip(chosen, stored, strict=True):
                again = slot.views(0, slot.own_length + 1)[0][:, -1]
                torch.testing.assert_close(key, again, rtol=limit, atol=limit)
            step.finish()


@pytest.mark.parametrize("batch_size", [1, 3, 6])
def test_answers_are_those_of_transformers(checkpoint: Path, folder: Path, batch_size: int) -> None:
    opened, preparer = open_tiny(checkpoint)
    engine = with_native(opened, folder, batch_size=batch_size)
    wanted = answers_of_transformers(checkpoint)
    end_ids = find_checkpoint(str(checkpoint)).end_token_ids()
    assert_same(engine, mixed_requests(preparer), wanted, end_ids)
    if batch_size <= MAX_ROWS:
        assert engine.stats.native_steps == engine.stats.decode_steps > 0
    else:  # many at a time, until few are left
        assert 0 < engine.stats.native_steps < engine.stats.decode_steps


def test_a_library_that_computes_something_else_is_not_used(
    checkpoint: Path, folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    language = open_tiny(checkpoint)[0].network.language
    weights = NativeWeights(language)
    down = weights.layers[1]["down"]
    weights.layers[1]["down"] = Linear(down.weight * 2)
    native = BackgroundDecoder(weights, library_of(weights, folder / "libraries", "this"))
    assert not native.wait()
    assert "the compiled decode step is not used" in caplog.text


def test_without_a_compiler_torch_decodes(checkpoint: Path, folder: Path) -> None:
    language = open_tiny(checkpoint)[0].network.language
    weights = NativeWeights(language)
    library = dataclasses.replace(
        library_of(weights, folder / "empty", "this"), compiler="no-such-compiler"
    )
    assert not BackgroundDecoder(weights, library).wait()


def test_a_library_that_others_may_write_to_is_not_loaded(checkpoint: Path, folder: Path) -> None:
    language = open_tiny(checkpoint)[0].network.language
    assert decoder_of(language, folder / "open").wait()
    (folder / "open" / "libraries").chmod(0o777)
    again = decoder_of(language, folder / "open")
    assert again.get(1) is None


def test_sizes_that_the_step_is_not_written_for_are_left_to_torch(tiny: Path) -> None:
    assert not can_decode(open_tiny(tiny)[0].network.language)  # heads of 8 numbers
