"""kill -9 of the endpoint, and of the run, in the middle of ``--engine openai``."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil

from tests.engine.openai.endpoint import Endpoint, endpoint
from tests.media import write_picture

PICTURES, QUESTIONS = 60, 8
WAIT_SECONDS = 120


class Running:
    """A run over many small pictures, a process of its own."""

    def __init__(self, folder: Path, url: str) -> None:
        for number in range(PICTURES):
            write_picture(folder / "photos" / f"{number:03d}.png", 30, 30, seed=number)
        questions = [f"Question {number}?\n" for number in range(QUESTIONS)]
        (folder / "questions.txt").write_text("".join(questions))
        self.folder = folder
        self.command = [
            *(sys.executable, "-m", "vlmbatch", "vqa", "photos", "--questions", "questions.txt"),
            *("--engine", "openai", "--endpoint", url, "--model", "m", "--in-flight", "4"),
            *("-o", "out.jsonl"),
        ]

    def begin(self) -> subprocess.Popen[str]:
        return subprocess.Popen(self.command, cwd=self.folder, stderr=subprocess.PIPE, text=True)

    def rows(self) -> list[dict[str, Any]]:
        path = self.folder / "out.jsonl"
        lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
        return [json.loads(line) for line in lines]


def wait_for(run: subprocess.Popen[str], server: Endpoint, requests: int) -> None:
    """Wait until the endpoint was asked so often."""
    deadline = time.monotonic() + WAIT_SECONDS
    while server.requests < requests:
        assert run.poll() is None, run.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.005)  # watching other processes, not synchronising with them


def test_kill_9_of_endpoint_and_run_loses_doubles_and_leaves_nothing(tmp_path: Path) -> None:
    folder = tmp_path / "work"
    with endpoint(tmp_path / "requests.log") as server:
        running = Running(folder, server.url)
        before = {path.name for path in folder.iterdir()}
        with running.begin() as run:  # the endpoint is killed, and then the run
            wait_for(run, server, 100)
            server.kill()
            server.start()
            wait_for(run, server, 300)
            run.kill()
        assert not psutil.pid_exists(run.pid)
        kept = running.rows()
        assert len(kept) == len({(row["id"], row["prompt"]) for row in kept})
        begun = server.requests
        with running.begin() as run:
            wait_for(run, server, begun + 60)
            server.kill()
            server.start()
            _, said = run.communicate(timeout=WAIT_SECONDS)
    assert run.returncode == 0, said
    rows = running.rows()
    expected = [
        (f"{picture:03d}.png", f"Question {question}?")
        for picture in range(PICTURES)
        for question in range(QUESTIONS)
    ]
    assert [(row["id"], row["prompt"]) for row in rows] == expected
    assert {row["status"] for row in rows} == {"ok"}
    seen: dict[str, set[str]] = {}
    for row in rows:  # each has the answer to its own question about its own picture
        question, _, digest = row["text"].rpartition(" ")
        assert question == row["prompt"]
        seen.setdefault(row["id"], set()).add(digest)
    assert len(set.union(*seen.values())) == PICTURES
    assert all(len(digests) == 1 for digests in seen.values())
    left = {path.name for path in folder.iterdir()} - before
    assert left == {f"out.jsonl{end}" for end in ("", ".journal", ".runs.jsonl", ".summary.json")}
