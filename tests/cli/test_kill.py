"""Runs are killed and interrupted for real; the same command then has every row exactly once."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from tests.media import HEIGHT, WIDTH, write_picture, write_video
from tests.processes import start
from vlmbatch.core import UInt8Array

PICTURES, QUESTIONS = 90, 8


@pytest.fixture
def command(tmp_path: Path, tiny: Path) -> list[str]:
    for number in range(PICTURES):
        write_picture(tmp_path / "photos" / f"{number:03d}.png", 30, 30, seed=number)
    (tmp_path / "questions.txt").write_text(
        "".join(f"Question {number}?\n" for number in range(QUESTIONS))
    )
    arguments = [
        "vqa",
        "photos",
        "--questions",
        "questions.txt",
        "--model",
        str(tiny),
        "--max-new-tokens",
        "4",
        "--detail",
        "low",
        "-o",
        "out.jsonl",
    ]
    return [sys.executable, "-m", "vlmbatch", *arguments]


def begin(command: list[str], folder: Path) -> subprocess.Popen[str]:
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    return start(command, cwd=folder, env={**os.environ, "OMP_NUM_THREADS": "1"}, **pipes)


def rows(folder: Path) -> list[tuple[str, str]]:
    """Return the keys of OUTPUT's rows; every line must be complete."""
    path = folder / "out.jsonl"
    if not path.exists():
        return []
    return [
        (row["id"], row["prompt"])
        for row in map(json.loads, path.read_text(encoding="utf-8").splitlines())
    ]


def journal_lines(folder: Path) -> int:
    path = folder / "out.jsonl.journal"
    return len(path.read_bytes().splitlines()) if path.exists() else 0


def test_kill_9_at_random_moments_loses_and_doubles_nothing(
    command: list[str], tmp_path: Path
) -> None:
    rng = random.Random(7)
    committed = 0
    for _ in range(8):
        process = begin(command, tmp_path)
        wanted = journal_lines(tmp_path) + rng.choice([0, 1, 200, 300])
        deadline = time.monotonic() + rng.uniform(0.5, 12)
        while (
            process.poll() is None
            and journal_lines(tmp_path) <= wanted
            and time.monotonic() < deadline
        ):
            time.sleep(0.01)  # watching another process, not synchronising with it
        process.send_signal(signal.SIGKILL)
        process.communicate()
        found = rows(tmp_path)
        assert len(found) == len(set(found))
        assert journal_lines(tmp_path) >= committed or len(found) >= committed - 1
        committed = max(committed, journal_lines(tmp_path))
    process = begin(command, tmp_path)
    _, errors = process.communicate()
    assert process.returncode == 0, errors
    wanted_rows = [
        (f"{n:03d}.png", f"Question {q}?") for n in range(PICTURES) for q in range(QUESTIONS)
    ]
    assert rows(tmp_path) == wanted_rows
    assert committed > 1, "every run was killed before its first commit: the test shows nothing"
    assert not (tmp_path / "out.jsonl.lock").exists()


@pytest.mark.parametrize(
    "number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1], ids=lambda n: n.name
)
def test_an_interrupted_run_commits_and_can_go_on(
    command: list[str], tmp_path: Path, number: signal.Signals
) -> None:
    process = begin(
        [*command, "-v", "--progress", "off", "--batch-size", "4"], tmp_path
    )  # slow enough for much to be left when the signal comes
    while journal_lines(tmp_path) < 256 and process.poll() is None:
        time.sleep(0.01)
    process.send_signal(number)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130, errors
    assert "Traceback" not in errors
    found = rows(tmp_path)
    assert 255 <= len(found) < PICTURES * QUESTIONS
    again = begin(command, tmp_path)
    _, errors = again.communicate()
    assert again.returncode == 0, errors
    assert len(rows(tmp_path)) == PICTURES * QUESTIONS
    assert f"{len(found)} answers done before" in errors


def test_a_hang_up_that_was_ignored_at_the_start_stays_ignored(
    command: list[str], tmp_path: Path
) -> None:
    process = begin(["nohup", *command, "--limit", "40"], tmp_path)
    while journal_lines(tmp_path) < 1 and process.poll() is None:
        time.sleep(0.01)  # watching another process, not synchronising with it
    process.send_signal(signal.SIGHUP)
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 0, errors
    assert len(rows(tmp_path)) == 40 * QUESTIONS


def test_a_hang_up_may_be_sent_again_while_the_run_ends(tmp_path: Path) -> None:
    """A terminal that goes away sends one, and its shell another one."""
    code = (
        "import os, signal, sys\n"
        "from vlmbatch.cli.signals import catch_signals\n"
        "class Counter:\n"
        "    stops = 0\n"
        "    def stop(self): self.stops += 1\n"
        "counter = Counter()\n"
        "catch_signals(counter)\n"
        "for number in (signal.SIGHUP, signal.SIGHUP, signal.SIGUSR1, signal.SIGTERM):\n"
        "    os.kill(os.getpid(), number)\n"
        "print(counter.stops, flush=True)\n"
        "os.kill(os.getpid(), signal.SIGTERM)\n"
    )
    process = begin([sys.executable, "-c", code], tmp_path)
    output, errors = process.communicate(timeout=60)
    assert (output, process.returncode, errors) == ("2\n", -signal.SIGTERM, "")


def test_a_second_run_on_the_same_output_ends_at_once(command: list[str], tmp_path: Path) -> None:
    first = begin(command, tmp_path)
    while not (tmp_path / "out.jsonl.lock").exists() and first.poll() is None:
        time.sleep(0.01)
    second = begin(command, tmp_path)
    _, errors = second.communicate()
    assert second.returncode == 75, errors
    assert "out.jsonl" in errors
    first.communicate()
    assert first.returncode == 0
    assert len(rows(tmp_path)) == PICTURES * QUESTIONS


def test_an_open_stdin_does_not_hold_up_an_interrupted_run(tmp_path: Path, tiny: Path) -> None:
    write_picture(tmp_path / "a.png")
    command = [
        sys.executable,
        "-m",
        "vlmbatch",
        "caption",
        "-",
        "--model",
        str(tiny),
        "--max-new-tokens",
        "2",
        "-o",
        "out.jsonl",
    ]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    pipes = {"stdin": subprocess.PIPE, "stderr": subprocess.PIPE}
    process = start(command, cwd=tmp_path, env=environment, **pipes)
    assert process.stdin is not None
    assert process.stderr is not None
    process.stdin.write("a.png\n")
    process.stdin.flush()
    while not (tmp_path / "out.jsonl.journal").exists() and process.poll() is None:
        time.sleep(0.01)
    time.sleep(1)  # the run has nothing left to do but to wait for more paths
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=30) == 130, process.stderr.read()
    process.stdin.close()
    process.stderr.close()


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_kill_9_among_similar_frames_leaves_every_row_once(tmp_path: Path, tiny: Path) -> None:
    def draw(number: int) -> UInt8Array:
        return np.full((HEIGHT, WIDTH, 3), (number // 3) % 4 * 80, np.uint8)

    write_video(tmp_path / "a.mp4", 900, draw=draw)
    arguments = [
        "video",
        "a.mp4",
        "--every",
        "1",
        "--skip-similar",
        "--model",
        str(tiny),
        "--max-new-tokens",
        "2",
        "--detail",
        "low",
        "-o",
        "out.jsonl",
    ]
    command = [sys.executable, "-m", "vlmbatch", *arguments]
    rng = random.Random(3)
    for wanted in (1, 256):
        process = begin(command, tmp_path)
        while process.poll() is None and journal_lines(tmp_path) <= wanted + rng.randrange(40):
            time.sleep(0.01)  # watching another process, not synchronising with it
        process.send_signal(signal.SIGKILL)
        process.communicate()
        found = rows(tmp_path)
        assert len(found) == len(set(found))
    process = begin(command, tmp_path)
    _, errors = process.communicate()
    assert process.returncode == 0, errors
    lines = [
        json.loads(line)
        for line in (tmp_path / "out.jsonl").read_text(encoding="utf-8").splitlines()
    ]
    assert [line["id"] for line in lines] == [f"a.mp4#t={number / 10:.3f}" for number in range(900)]
    assert [line["status"] for line in lines] == ["ok", "similar", "similar"] * 300
    texts = {line["id"]: line["text"] for line in lines}
    assert all(line["text"] == texts[line["similar_to"]] for line in lines if line["similar_to"])
