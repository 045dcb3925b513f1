"""``--engine openai`` from the command line, with `vlmbatch serve` behind it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.serve.conftest import live
from vlmbatch.checkpoint import find_checkpoint
from vlmbatch.convert import ConvertOptions, convert
from vlmbatch.engine import open_engine
from vlmbatch.engine.llama_server.process import ServerCommand, ServerProcess
from vlmbatch.job import EngineOptions

SAMPLES = Path(__file__).parents[2] / "sample_data"


def vlmbatch(*arguments: Any, **environment: str) -> subprocess.CompletedProcess[str]:
    line = [sys.executable, "-m", "vlmbatch", *map(str, arguments)]
    return subprocess.run(
        line, capture_output=True, text=True, check=False, env={**os.environ, **environment}
    )


def read_rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_the_samples_have_the_texts_of_the_torch_engine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SERVERS_KEY", "sk-hidden")
    with live(
        open_engine(EngineOptions(model="demo", device="cpu")),
        api_key_env="SERVERS_KEY",
        max_images=64,
    ) as server:
        remote = ["--engine", "openai", "--endpoint", server.url]
        refused = vlmbatch("caption", SAMPLES / "images", *remote, "-o", tmp_path / "no.jsonl")
        assert refused.returncode == 1
        assert "--api-key-env" in refused.stderr
        remote += ["--api-key-env", "MY_KEY", "--model", "demo"]
        for command, folder, name in (
            (["caption"], "images", "captions"),
            (["video", "--per", "clip", "--num-frames", "8"], "clips", "clips"),
        ):
            found = {}
            for engine, options in (("torch", ["--model", "demo"]), ("openai", remote)):
                output = tmp_path / f"{name}-{engine}.jsonl"
                line = [*command, SAMPLES / folder, *options, "-o", output]
                done = vlmbatch(*line, MY_KEY="sk-hidden")
                assert done.returncode == 0, done.stderr
                found[engine] = read_rows(output)
            texts = [{row["id"]: row["text"] for row in found[each]} for each in found]
            assert texts[0] == texts[1]
        rows = read_rows(tmp_path / "captions-openai.jsonl")
        assert len(rows) == 12
        assert {(row["engine"], row["model"], row["revision"]) for row in rows} == {
            ("openai", "demo", "")
        }
        assert {row["device"] for row in rows} == {f"{server.url}/v1"}
        again = vlmbatch(*line, MY_KEY="sk-hidden")
        assert again.returncode == 0
    for path in tmp_path.iterdir():
        assert b"sk-hidden" not in path.read_bytes(), path


def test_llama_cpp_s_own_server_answers_about_the_samples(tmp_path: Path) -> None:
    """Its chat path writes a space more than the checkpoint's template; the demo does not mind."""
    made = convert(find_checkpoint("demo"), "gguf", ConvertOptions(tmp_path / "gguf", "f32"))
    command = ServerCommand("xllamacpp", *made.files[:2], 2, 4096, threads=1, exact=True)
    server = ServerProcess(command, tmp_path / "logs", "<__media__>")
    found = {}
    try:
        remote = ("--endpoint", f"http://127.0.0.1:{server.client.port}/v1", "--in-flight", "2")
        for engine, options in (("openai", remote), ("torch", ("--model", "demo"))):
            output = tmp_path / f"{engine}.jsonl"
            line = ("caption", SAMPLES / "images", "--engine", engine, *options, "-o", output)
            done = vlmbatch(*line)
            assert done.returncode == 0, done.stderr
            found[engine] = read_rows(output)
    finally:
        server.close()
    assert len(found["openai"]) == 12
    for theirs, ours in zip(found["openai"], found["torch"], strict=True):
        for name in ("id", "text", "finish_reason", "new_tokens"):
            assert theirs[name] == ours[name], name
        assert theirs["prompt_tokens"] == ours["prompt_tokens"] + 1
        assert theirs["mean_logprob"] == pytest.approx(ours["mean_logprob"], abs=0.01)
        assert (theirs["tiles"], theirs["batch_size"]) == (None, None)


@pytest.mark.parametrize(
    "options, complaint",
    [
        (["--engine", "openai"], "name it with --endpoint"),
        (["--endpoint", "http://here"], "endpoint goes with --engine openai"),
        (["--in-flight", "3"], "in_flight goes with --engine openai"),
        (["--engine", "openai", "--endpoint", "http://here", "--threads", "2"], "no --threads 2"),
    ],
)
def test_bad_usage(options: list[str], complaint: str, tmp_path: Path) -> None:
    line = ["caption", SAMPLES / "images", "--model", "m", "-o", tmp_path / "x.jsonl"]
    done = vlmbatch(*line, *options)
    assert done.returncode == 2
    assert complaint in done.stderr


def test_a_server_has_no_endpoint(tmp_path: Path) -> None:
    job = tmp_path / "job.yaml"
    job.write_text("serve:\n  engine: openai\n  endpoint: http://here\n", encoding="utf-8")
    done = vlmbatch("run", job)
    assert done.returncode == 2
    assert "not with engine openai" in done.stderr
    assert "--endpoint URL" not in vlmbatch("serve", "--help").stdout
