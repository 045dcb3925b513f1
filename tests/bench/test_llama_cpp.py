"""The comparison with llama.cpp, as far as it can be tested without its tools: how they are asked
and understood.
"""

from __future__ import annotations

import argparse
import itertools
import json
import sys
from pathlib import Path

import pytest
import torch

from benchmarks import llama_cpp, llama_tools
from benchmarks.llama_tools import LlamaCpp, ToolError
from tests.checkpoints import write_tiny_checkpoint
from vlmbatch.bench.bench import Bench
from vlmbatch.bench.run import Settings, open_bench
from vlmbatch.bench.sizes import Sizes
from vlmbatch.errors import MissingDependencyError
from vlmbatch.job import Job

SIZES = Sizes(
    rounds=1,
    ceiling_seconds=0.01,
    copy_bytes=1 << 20,
    gemm_rows=64,
    tiles=2,
    prompts=2,
    prompt_tokens=100,
    decode_sequences=(1, 3),
    decode_tokens=3,
)
BATCHED = """
ggml: ready
{"pp": 91, "tg": 32, "pl": 4, "t_pp": 0.5, "speed_pp": 182.0, "t_tg": 1.0, "speed_tg": 128.0}
llama_perf: 1 ms
"""
ENCODED = """encoding mtmd batch, n_chunks = 1 (done = 1, total = 5)
mtmd batch encoding done in 800 ms
image decoded (batch 1/1) in 90 ms
encoding mtmd batch, n_chunks = 2 (done = 3, total = 5)
mtmd batch encoding done in 1600 ms
"""
TOOL = """#!{python}
import json, pathlib, sys
with open(pathlib.Path(__file__).parent / "asked.jsonl", "a") as file:
    file.write(json.dumps(sys.argv[1:]) + "\\n")
print({output!r})
sys.exit({code})
"""


def write_tool(folder: Path, name: str, output: str, code: int = 0) -> None:
    path = folder / name
    path.write_text(TOOL.format(python=sys.executable, output=output, code=code))
    path.chmod(0o755)


def asked(folder: Path) -> list[list[str]]:
    return [json.loads(line) for line in (folder / "asked.jsonl").read_text().splitlines()]


def llama_in(folder: Path) -> LlamaCpp:
    return LlamaCpp(
        folder,
        folder / "text.gguf",
        folder / "vision.gguf",
        folder / "picture.png",
        2,
        ["-ctk", "f32"],
    )


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_checkpoint(tmp_path_factory.mktemp("tiny"))


def test_figures_are_read_from_what_the_tools_write() -> None:
    assert llama_tools.batch_figures(BATCHED)["speed_tg"] == 128.0
    assert llama_tools.tile_rate(ENCODED) == pytest.approx(3 / 2.4)
    assert (
        llama_tools.first_perplexity(
            "perplexity: 0.10 seconds per pass\n[1]49280.1250,\nFinal estimate"
        )
        == 49280.125
    )
    assert (
        llama_tools.version_of("load: ready\nversion: 4321 (0c1e570)\nbuilt with GNU")
        == "4321 (0c1e570)"
    )


@pytest.mark.parametrize(
    "read", [llama_tools.batch_figures, llama_tools.tile_rate, llama_tools.first_perplexity]
)
def test_a_tool_that_measures_nothing_is_an_error(read: object) -> None:
    with pytest.raises(ToolError, match="nothing: no room"):
        read("no\nroom")  # type: ignore[operator]


def test_both_sides_do_the_same_work_in_turns(tiny: Path, tmp_path: Path) -> None:
    write_tool(tmp_path, "llama-batched-bench", BATCHED)
    write_tool(tmp_path, "llama-mtmd-cli", ENCODED)
    bench = Bench(
        open_bench(Settings(Job(device="cpu", dtype="float32"), model=str(tiny)), SIZES).subject,
        SIZES,
    )
    llama = llama_in(tmp_path)
    rows = llama_cpp.measure(bench, llama, llama_cpp.turns(bench, llama), 2)
    bench.subject.close()
    assert [row["name"] for row in rows] == [
        "decode, 1 sequence",
        "decode, 3 sequences",
        "prefill, 100 tokens",
        "vision",
    ]
    assert [row["llama_cpp"]["median"] for row in rows] == [
        128.0,
        128.0,
        182.0,
        pytest.approx(1.25),
    ]
    assert all(row["ratio"]["rounds"] == 2 and row["ours"]["least"] > 0 for row in rows)
    once = asked(tmp_path)[:4]
    assert len(asked(tmp_path)) == 2 * len(once)
    named = [dict(itertools.pairwise(line)) for line in once]
    assert [line["-npl"] for line in named[:3]] == ["1", "3", "2"]
    assert [line["-c"] for line in named[:3]] == ["256", "768", "512"]
    assert (named[2]["-npp"], named[1]["-ntg"], named[3]["-t"], named[3]["-ctk"]) == (
        "100",
        "3",
        "2",
        "f32",
    )
    assert ["-pps" in line for line in once] == [True, True, False, False]
    lines = llama_cpp.table(rows)
    assert len(lines) == 5
    assert "128 (128 to 128)" in lines[1]


def test_our_probability_is_that_of_the_reference(tiny: Path) -> None:
    import transformers
    from tokenizers import Tokenizer

    bench = open_bench(Settings(Job(device="cpu", dtype="float32"), model=str(tiny)), SIZES)
    ids = torch.tensor(
        Tokenizer.from_file(str(tiny / "tokenizer.json")).encode(llama_tools.CHECK_TEXT).ids
    )
    assert len(ids) >= 2 * llama_tools.CHECK_TOKENS  # llama-perplexity takes no less
    model = transformers.SmolVLMForConditionalGeneration.from_pretrained(
        tiny, dtype=torch.float32
    ).eval()
    ids, half = ids[: llama_tools.CHECK_TOKENS], llama_tools.CHECK_TOKENS // 2
    with torch.inference_mode():
        chances = (
            model(input_ids=ids[None])
            .logits[0]
            .log_softmax(-1)[half:-1]
            .gather(1, ids[half + 1 :, None])
        )
    assert llama_cpp.log_likelihood(bench) == pytest.approx(chances.mean().item(), abs=1e-5)


def test_a_missing_or_failing_tool_is_named(tmp_path: Path) -> None:
    llama = llama_in(tmp_path)
    with pytest.raises(ToolError, match=r"llama-batched-bench cannot be run: .*--bin"):
        llama.version()
    write_tool(tmp_path, "llama-batched-bench", "unable to load model", 1)
    with pytest.raises(ToolError, match=r"(?s)exit code 1.*unable to load model"):
        llama.version()


def test_a_missing_gguf_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "gguf", None)
    with pytest.raises(MissingDependencyError, match="need the package gguf"):
        llama_cpp.compare(argparse.Namespace(), tmp_path)
