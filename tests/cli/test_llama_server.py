"""``--engine llama-server`` and ``models convert`` from the command line, with a real server."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.cli.conftest import Command
from tests.media import write_picture

SAMPLES = Path(__file__).parents[2] / "sample_data" / "images"
PICTURES, QUESTIONS = 60, 6
WAIT_SECONDS = 60


@pytest.fixture(scope="session")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


def rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def server_options(cache: Path) -> list[str]:
    return ["--engine", "llama-server", "--threads", "1", "--cache-dir", str(cache)]


def test_twelve_pictures_have_the_texts_of_our_engine(
    vlmbatch: Command, tmp_path: Path, cache: Path
) -> None:
    common = ["caption", SAMPLES, "--model", "demo", "-o"]
    assert vlmbatch(*common, "ours.jsonl").returncode == 0
    done = vlmbatch(*common, "theirs.jsonl", *server_options(cache))
    assert done.returncode == 0, done.stderr
    ours, theirs = rows(tmp_path / "ours.jsonl"), rows(tmp_path / "theirs.jsonl")
    assert len(theirs) == 12
    for own, other in zip(ours, theirs, strict=True):
        for name in ("id", "text", "finish_reason", "tiles", "prompt_tokens", "new_tokens"):
            assert own[name] == other[name], name
        assert (other["engine"], other["device"], other["dtype"]) == (
            "llama-server",
            "cpu",
            "float32",
        )
        assert other["batch_size"] is other["vision_seconds"] is None


def test_converted_files_answer_from_their_folder(
    vlmbatch: Command, photos: Path, tmp_path: Path, cache: Path
) -> None:
    done = vlmbatch("models", "convert", "demo", "--to", "gguf", "-o", "files", "--type", "Q8_0")
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[0].startswith("files/demo-Q8_0.gguf: 1.6 MB")
    assert lines[-2:] == [
        "ollama create demo-q8_0 -f files/Modelfile",
        'ollama run demo-q8_0 "What is in this picture? ./photo.jpg"',
    ]
    done = vlmbatch(
        *("caption", SAMPLES / "circle.png", "--model", "files", "-o", "out.jsonl"),
        *server_options(cache),
    )
    assert done.returncode == 0, done.stderr
    (row,) = rows(tmp_path / "out.jsonl")
    assert (row["text"], row["dtype"]) == ("A red circle.", "q8_0")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--quantize", "int8"], "engine llama-server has no --quantize int8"),
        (["--detail", "native"], "engine llama-server has no --detail native"),
        (["--llama-server", "nothing"], "--llama-server nothing: no such program"),
    ],
)
def test_what_it_cannot_do_is_bad_usage(
    vlmbatch: Command, photos: Path, cache: Path, options: list[str], message: str
) -> None:
    done = vlmbatch("caption", photos, "--model", "demo", *server_options(cache), *options)
    assert done.returncode == 2
    assert message in done.stderr


def test_a_target_and_a_type_are_checked(vlmbatch: Command) -> None:
    assert vlmbatch("models", "convert", "demo", "--to", "tflite", "-o", "x").returncode == 2
    done = vlmbatch("models", "convert", "demo", "--to", "gguf", "-o", "x", "--type", "q4_k_m")
    assert done.returncode == 2
    assert "--llama-quantize" in done.stderr


class Running:
    """A long run as a process of its own."""

    def __init__(self, folder: Path, model: Path, cache: Path) -> None:
        for number in range(PICTURES):
            write_picture(folder / "photos" / f"{number:03d}.png", 30, 30, seed=number)
        questions = [f"Question {number}?\n" for number in range(QUESTIONS)]
        (folder / "questions.txt").write_text("".join(questions))
        self.folder, self.cache = folder, cache
        self.command = [
            *(sys.executable, "-m", "vlmbatch", "vqa", "photos", "--questions", "questions.txt"),
            *("--model", str(model), "--max-new-tokens", "6", "--detail", "low", "-o", "out.jsonl"),
            *("--batch-size", "2", *server_options(cache)),
        ]

    def begin(self) -> subprocess.Popen[str]:
        return subprocess.Popen(self.command, cwd=self.folder, stderr=subprocess.PIPE, text=True)

    def server(self, run: subprocess.Popen[str], answers: int) -> psutil.Process:
        """The server of a run, once its log tells of so many answers."""
        deadline = time.monotonic() + WAIT_SECONDS
        while run.poll() is None and time.monotonic() < deadline:
            logs = self.cache.glob(f"llama-server/llama-server-*-{run.pid}-*.log")
            count = sum(log.read_bytes().count(b"stop processing") for log in logs)
            children = psutil.Process(run.pid).children()
            if count >= answers and len(children) == 1:
                return children[0]
            time.sleep(0.02)  # watching another process, not synchronising with it
        raise AssertionError(f"the run does not get on: {run.poll()}")

    def check(self) -> None:
        """Every row exactly once, and no error."""
        found = rows(self.folder / "out.jsonl")
        count = Counter((row["id"], row["prompt"]) for row in found)
        assert len(count) == PICTURES * QUESTIONS
        assert set(count.values()) == {1}
        assert {row["status"] for row in found} == {"ok"}


def test_kill_9_of_server_and_run_loses_doubles_and_leaves_nothing(
    tiny: Path, tmp_path: Path, cache: Path
) -> None:
    running = Running(tmp_path, tiny, cache)
    with running.begin() as run:  # the server is killed, and then the run
        running.server(run, 20).kill()
        server = running.server(run, 60)
        run.kill()
    psutil.wait_procs([server], WAIT_SECONDS)
    assert not server.is_running()
    with running.begin() as run:
        running.server(run, 20).kill()
        _, said = run.communicate(timeout=150)
    assert run.returncode == 0, said
    assert "llama-server ended" in said
    running.check()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_run_ends_its_server(
    tiny: Path, tmp_path: Path, cache: Path, number: signal.Signals
) -> None:
    running = Running(tmp_path, tiny, cache)
    with running.begin() as run:
        server = running.server(run, 5)
        os.kill(run.pid, number)
        _, said = run.communicate(timeout=WAIT_SECONDS)
    assert run.returncode == 130, said
    assert not server.is_running()
