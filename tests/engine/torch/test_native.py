"""The compiled decode step computes what torch's steps compute."""

from __future__ import annotations

import dataclasses
import json
import shutil
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.checkpoints import write_tiny_checkpoint
from tests.engine.torch.test_constrained_steps import answers as facts_by_key
from tests.engine.torch.test_constrained_steps import with_constraints
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
    MAX_ROWS,
    SPAN_TOKENS,
    NativeWeights,
    can_decode,
    library_of,
)
from vlmbatch.engine.torch.cpu.trial import MAX_DIFFERENCE, BackgroundDecoder, fastest_rows
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


def decoder_of(
    language: LanguageModel, folder: Path, kept: Path | None = None
) -> BackgroundDecoder:
    weights = NativeWeights(language)
    return BackgroundDecoder(weights, library_of(weights, folder / "libraries", "this"), kept)


def with_native(
    engine: TorchEngine, folder: Path, kept: Path | None = None, **settings: Any
) -> TorchEngine:
    """Another engine with the same model, and a native decoder that is ready."""
    native = decoder_of(engine.network.language, folder, kept)
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
    lengths = (SPAN_TOKENS - 1, SPAN_TOKENS, 3, 2 * SPAN_TOKENS + 40, *range(1, MAX_ROWS - 3))
    slots = [prompt(cache, language, length, None) for length in lengths]
    shared = slots[3].beginning(SPAN_TOKENS + 44)
    slots[2] = prompt(cache, language, SPAN_TOKENS + 60, shared)
    assert slots[2].shared
    slots.reverse()
    limit = MAX_DIFFERENCE[language.embedding.dtype] / 2
    for rows in (1, 2, 4, 5, 6, 7, 13, 16, MAX_ROWS):
        for _ in range(3 if rows < 5 else 1):
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
    assert engine.stats.native_steps == engine.stats.decode_steps > 0


def test_answers_of_a_fixed_form_are_those_of_torch(checkpoint: Path, folder: Path) -> None:
    opened, preparer = open_tiny(checkpoint)
    engine = with_native(opened, folder, batch_size=4)
    wanted = facts_by_key(opened, with_constraints(mixed_requests(preparer)))
    assert facts_by_key(engine, with_constraints(mixed_requests(preparer))) == wanted
    assert engine.stats.native_steps == engine.stats.decode_steps > 0


def test_torch_decodes_more_sequences_than_the_library_is_faster_with(
    checkpoint: Path, folder: Path
) -> None:
    opened, preparer = open_tiny(checkpoint)
    kept = folder / "rows.json"
    kept.write_text('{"rows": 2}')
    engine = with_native(opened, folder, kept=kept, batch_size=6)
    wanted = answers_of_transformers(checkpoint)
    end_ids = find_checkpoint(str(checkpoint)).end_token_ids()
    assert_same(engine, mixed_requests(preparer), wanted, end_ids)
    assert 0 < engine.stats.native_steps < engine.stats.decode_steps


@pytest.mark.parametrize(
    ("seconds", "expected"),
    [
        ([(1, 2), (1, 2), (1, 2), (1, 2)], MAX_ROWS),
        ([(1, 2), (1, 2), (3, 2)], 4),
        ([(2, 1)], 0),
    ],
)
def test_the_library_decodes_as_many_as_it_is_faster_with(
    checkpoint: Path, folder: Path, seconds: list[tuple[float, float]], expected: int
) -> None:
    language = open_tiny(checkpoint)[0].network.language
    decoder = decoder_of(language, folder).get(1)
    assert decoder is not None
    times = iter(seconds)

    def fastest(calls: Sequence[Callable[[], object]]) -> list[float]:
        for call in calls:
            call()
        return list(next(times))

    assert fastest_rows(decoder, language, fastest) == expected
    assert next(times, None) is None


@pytest.mark.parametrize("broken", [None, "{", '{"rows": 1000}', "[]"])
def test_how_many_is_measured_once(checkpoint: Path, folder: Path, broken: str | None) -> None:
    language = open_tiny(checkpoint)[0].network.language
    kept = folder / "measured" / "rows.json"
    kept.unlink(missing_ok=True)
    if broken is not None:
        kept.parent.mkdir(exist_ok=True)
        kept.write_text(broken)
    decoder_of(language, folder, kept).wait()
    measured = kept.read_text()
    assert json.loads(measured)["rows"] in (0, 1, 4, 16, MAX_ROWS)
    decoder_of(language, folder, kept).wait()
    assert kept.read_text() == measured


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
