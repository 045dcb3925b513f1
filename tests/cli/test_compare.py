"""``models compare`` from the command line."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import zipfile
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.cli.conftest import Command
from tests.serve.conftest import live
from vlmbatch.engine import open_engine
from vlmbatch.job import EngineOptions

ROOT = Path(__file__).parents[2]
SAMPLES = ROOT / "sample_data"
WAIT_SECONDS = 60
QUICK = ("--threads", "1", "--max-new-tokens", "12")


def result(done: subprocess.CompletedProcess[str]) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def test_the_samples_agree_between_two_engines(vlmbatch: Command, tmp_path: Path) -> None:
    done = vlmbatch(
        *("models", "compare", "torch", "llama-server", "--model", "demo", *QUICK),
        *("--cache-dir", tmp_path / "cache", "--min-agreement", "1", "--json", "found.json"),
    )
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "found.json").read_text())
    assert (found["items"], found["answers"], found["equal_answers"]) == (12, 12, 12)
    assert found["unit"] == "tokens"
    assert found["equal"] == found["compared"] > 60
    assert found["logprob_change"]["tokens"] == found["equal"]
    assert 0 < found["logprob_change"]["largest"] < 0.01
    for name, engine in (("a", "torch"), ("b", "llama-server")):
        side = found[name]
        assert (side["name"], side["engine"], side["dtype"]) == (engine, engine, "float32")
        assert side["answers_per_second"] > 0
        assert side["memory_bytes"] > 20e6
    lines = [" ".join(line.split()) for line in done.stdout.splitlines()]
    assert "equal answers 12 of 12 (100.0 %)" in lines
    assert "engine torch llama-server" in lines


def test_two_models_that_disagree_end_with_4_and_show_where(
    vlmbatch: Command, tiny: Path, tmp_path: Path
) -> None:
    line = ("models", "compare", "demo", f"torch:{tiny}", SAMPLES / "images" / "circle.png", *QUICK)
    done = vlmbatch(
        *(*line, "-q", "What?", "-q", "Why?", "--min-agreement", "tokens=50%"),
        *("--json", "found.json"),
    )
    assert done.returncode == 4
    assert "of the tokens are equal, which is under 50 %" in done.stderr
    assert "equal answers           0 of 2 (0.0 %)" in done.stdout
    assert done.stdout.count("circle.png: Wh") == 2
    found = json.loads((tmp_path / "found.json").read_text())
    assert found["settings"] == {"task": "vqa", "max_new_tokens": 12}
    assert {(each["id"], each["question"]) for each in found["differences"]} == {
        ("circle.png", "What?"),
        ("circle.png", "Why?"),
    }


def test_a_broken_picture_is_said_and_the_others_are_compared(vlmbatch: Command) -> None:
    pictures = (SAMPLES / "damaged" / "cut-off.jpg", SAMPLES / "images" / "circle.png")
    done = vlmbatch("models", "compare", "demo", "torch:demo", *pictures, *QUICK)
    assert done.returncode == 3
    assert "equal answers           1 of 1 (100.0 %)" in done.stdout
    assert "cut-off.jpg: DecodeError" in done.stdout


def test_an_endpoint_is_a_side(vlmbatch: Command) -> None:
    with live(open_engine(EngineOptions(model="demo", device="cpu"))) as server:
        done = vlmbatch(
            *("models", "compare", "torch:demo", f"openai:demo,endpoint={server.url}/v1"),
            *(SAMPLES / "images" / "circle.png", "--max-new-tokens", "12", "--json"),
        )
    assert done.returncode == 0, done.stderr
    found = result(done)
    assert (found["equal_answers"], found["unit"], found["b"]["memory_bytes"]) == (
        1,
        "tokens",
        None,
    )
    assert found["logprob_change"]["largest"] < 1e-4


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (("torch/q4", "torch"), 2, "torch/q4: engine torch has no --quantize q4"),
        (("torch", "llama-server,detail=native"), 2, "llama-server,detail=native: engine llama-"),
        (("torch", "/no/model"), 1, "/no/model: no such model"),
        (("torch", "torch", "-"), 2, "name files or folders instead of -"),
        (("torch", "torch", "/no/file"), 2, "torch: no such file or folder: /no/file"),
        (("torch", "torch", "--min-agreement", "2"), 2, "write a share from 0 to 1"),
        (("torch",), 2, "Missing argument 'B'"),
    ],
)
def test_bad_usage(vlmbatch: Command, arguments: tuple[str, ...], code: int, message: str) -> None:
    done = vlmbatch(
        "models", "compare", *arguments, *([] if "-" in arguments else QUICK), "--model", "demo"
    )
    assert done.returncode == code, done.stderr
    assert message in done.stderr


def test_nothing_to_ask_about_is_said(vlmbatch: Command, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    done = vlmbatch("models", "compare", "demo", "torch:demo", "empty")
    assert done.returncode == 66, done.stderr
    assert "no picture was found" in done.stderr


def test_an_interrupted_comparison_leaves_no_process() -> None:
    line = [sys.executable, "-m", "vlmbatch", "models", "compare", "demo", "torch:demo"]
    with subprocess.Popen(line, stderr=subprocess.PIPE, text=True) as run:
        started = psutil.Process(run.pid)
        while len(children := started.children(recursive=True)) < 2:
            assert run.poll() is None
            time.sleep(0.01)  # watching another process, not synchronising with it
        run.send_signal(signal.SIGINT)
        _, said = run.communicate(timeout=WAIT_SECONDS)
    assert run.returncode == 130
    assert "vlmbatch: interrupted" in said
    _, alive = psutil.wait_procs(children, WAIT_SECONDS)
    assert not alive


def test_an_installed_package_has_the_samples(tmp_path: Path) -> None:
    subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path)],
        *(),
        cwd=ROOT,
        check=True,
        capture_output=True,
    )
    (wheel,) = tmp_path.glob("*.whl")
    installed = tmp_path / "installed"
    with zipfile.ZipFile(wheel) as files:
        files.extractall(installed)
    code = "from vlmbatch.compare.samples import sample_folder as f; print(*f().iterdir())"
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(installed)},
        check=True,
        capture_output=True,
        text=True,
    )
    found = [Path(path) for path in done.stdout.split()]
    assert {path.parent for path in found} == {installed / "vlmbatch" / "samples"}
    assert {path.name for path in found} == {path.name for path in (SAMPLES / "images").iterdir()}
