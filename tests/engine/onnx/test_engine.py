"""The ONNX engine: the torch engine's tokens in any company, and the folders that it takes."""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import Any

import pytest

from tests.checkpoints import write_tiny_checkpoint
from tests.engine.idefics3 import MULTIPLIERS
from tests.engine.onnx.asking import agreement, options, picture
from tests.engine.reference import run_all
from vlmbatch.core import Conversation, Question
from vlmbatch.engine import Engine, open_engine, plan_engine
from vlmbatch.errors import JobError, ModelLoadError, OutOfMemoryError

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")

from vlmbatch.convert.onnx import export, types  # noqa: E402


@pytest.fixture(scope="module")
def engine(graphs: Path) -> Engine:
    return open_engine(options(graphs, batch_size=4))


def test_tokens_are_those_of_the_torch_engine(engine: Engine, reference: Engine) -> None:
    before = engine.stats.tiles
    assert agreement(engine, reference) >= 0.99
    stats = engine.stats
    assert stats.max_sequences == 4
    assert stats.max_tiles > 1
    assert stats.tiles > before
    assert (engine.device, engine.dtype, engine.name) == ("cpu", "float32", "onnx")


def test_log_probabilities_are_those_of_the_torch_engine(engine: Engine, reference: Engine) -> None:
    asked = [Question("What?", max_new_tokens=9, logprobs=3)]
    (mine,), (theirs,) = (
        run_all(each, [each.prepare(Conversation.about("image", picture(1)), asked)]).values()
        for each in (engine, reference)
    )
    assert mine.text == theirs.text
    for one, other in zip(mine.logprobs, theirs.logprobs, strict=True):
        assert one.logprob == pytest.approx(other.logprob, abs=1e-3)
        assert [token for token, _ in one.top] == [token for token, _ in other.top]


def test_idefics3_with_a_granite_is_answered_too(tmp_path: Path) -> None:
    folder = write_tiny_checkpoint(
        tmp_path / "model", model_type="idefics3", granite=MULTIPLIERS, tie=True
    )
    mine = open_engine(options(folder, cache_dir=str(tmp_path / "cache")))
    theirs = open_engine(options(folder, "torch", dtype="float32"))
    assert agreement(mine, theirs, clips=False) >= 0.99
    assert not mine.takes_clips  # type: ignore[attr-defined]
    (kept,) = (tmp_path / "cache" / "onnx").iterdir()
    assert kept.name.startswith("model-fp32-")
    before = (kept / "onnx" / "embed_tokens.onnx").stat().st_mtime_ns
    open_engine(options(folder, cache_dir=str(tmp_path / "cache"))).close()
    assert (kept / "onnx" / "embed_tokens.onnx").stat().st_mtime_ns == before


@pytest.mark.parametrize("kind", ["fp16", "int8", "q4"])
def test_other_number_formats_answer(
    graphs: Path, reference: Engine, tmp_path: Path, kind: str
) -> None:
    folder = shutil.copytree(graphs, tmp_path / "model")
    suffix = types.TYPES[kind].suffix
    for path in sorted((folder / "onnx").iterdir()):
        graph = types.converted(onnx.load(path), path.stem, kind)
        export.save_graph(graph, path.with_name(f"{path.stem}{suffix}.onnx"))
        path.unlink()
    named = {"dtype": "float16"} if kind == "fp16" else {"quantize": kind}
    small = open_engine(options(folder, **named))
    expected = {"fp16": "float16", "int8": "float32+int8", "q4": "float32+q4"}[kind]
    assert small.dtype == expected
    assert agreement(small, reference) > {"fp16": 0.8, "int8": 0.05, "q4": 0.02}[kind]
    other = open_engine(options(folder))  # the only number format that is there
    assert other.dtype == expected
    if kind != "q4":
        with pytest.raises(ModelLoadError, match="lacks a graph for this"):
            plan_engine(options(folder, quantize="q4"))


def test_little_memory_means_fewer_at_a_time(graphs: Path, reference: Engine) -> None:
    whole = open_engine(options(graphs))
    size = whole.budget.weight_bytes  # type: ignore[attr-defined]
    small = open_engine(options(graphs, max_memory=f"{size + (2 << 20)}"))
    assert agreement(small, reference) >= 0.99
    agreement(whole, reference)
    assert small.stats.max_sequences < whole.stats.max_sequences


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"dtype": "bfloat16"}, "no --dtype bfloat16"),
        ({"quantize": "int8", "dtype": "float16"}, "no --quantize int8 with --dtype float16"),
    ],
)
def test_an_option_that_it_lacks_is_named(graphs: Path, more: Any, message: str) -> None:
    with pytest.raises(JobError, match=message):
        plan_engine(options(graphs, **more))


def test_options_of_one_engine_are_refused_by_others(tiny: Path) -> None:
    with pytest.raises(JobError, match="engine torch has no --quantize q4"):
        plan_engine(options(tiny, "torch", quantize="q4"))
    with pytest.raises(JobError, match="provider goes with --engine onnx"):
        options(tiny, "torch", provider="cpu").check_engine()
    with pytest.raises(JobError, match="provider must be one of cpu"):
        options(tiny, provider="magic").check_engine()


def test_the_next_engine_is_taken_where_a_graph_is_missing(
    tiny: Path, graphs: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    both = "onnx,transformers"
    assert plan_engine(options(tiny, both)).name == "onnx"
    broken = shutil.copytree(graphs, tmp_path / "broken")
    shutil.copy(tiny / "model.safetensors", broken)
    (broken / "onnx" / "embed_tokens.onnx").unlink()
    assert plan_engine(options(broken, both)).name == "transformers"
    assert "lacks a graph" in caplog.text


@pytest.mark.parametrize(
    ("more", "reason"),
    [
        ({"provider": "tensorrt", "device": "auto"}, "has no provider tensorrt"),
        ({"max_memory": "10kB"}, "may take 0 MiB"),
    ],
)
def test_the_next_engine_answers_where_a_provider_or_memory_is_missing(
    tiny: Path, graphs: Path, tmp_path: Path, more: Any, reason: str, caplog: Any
) -> None:
    folder = shutil.copytree(graphs, tmp_path / "both")
    shutil.copy(tiny / "model.safetensors", folder)
    named = options(folder, "onnx,transformers", **more)
    if "provider" in more:
        assert open_engine(named).name == "transformers"
        assert "engine transformers answers" in caplog.text
    else:
        with pytest.raises(OutOfMemoryError):  # that of the last one
            open_engine(named)
    assert re.search(reason, caplog.text)


def test_damaged_graphs_are_an_error_of_the_model(graphs: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(graphs, tmp_path / "model")
    path = folder / "onnx" / "decoder_model_merged.onnx"
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(ModelLoadError, match="cannot be opened by ONNX Runtime"):
        open_engine(options(folder))


def test_a_conversion_that_fails_says_why(tiny: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(tiny, tmp_path / "model")
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1000])
    with pytest.raises(ModelLoadError, match=r"cannot be converted: .*model\.safetensors"):
        open_engine(options(folder, cache_dir=str(tmp_path / "cache")))
    assert not list((tmp_path / "cache" / "onnx").iterdir())


def test_revisions_tell_graphs_apart(graphs: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(graphs, tmp_path / "model")
    assert plan_engine(options(folder)).revision == plan_engine(options(graphs)).revision
    path = folder / "onnx" / "embed_tokens.onnx"
    graph = onnx.load(path)
    graph.producer_name = "another"
    onnx.save(graph, path)
    assert plan_engine(options(folder)).revision != plan_engine(options(graphs)).revision
