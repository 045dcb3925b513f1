"""Runs that a Python program calls: what it hands over, and Ctrl-C."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest

import vlmbatch
from tests.run.jobs import job, rows
from vlmbatch.engine.scripted import ScriptedEngine
from vlmbatch.errors import JobError
from vlmbatch.run.reporter import Silent


class CtrlC(Silent):
    """Presses Ctrl-C after the third item."""

    def __init__(self) -> None:
        self.items = 0

    def item(self, *, error: bool, kept: bool, new_tokens: int) -> None:
        self.items += 1
        if self.items == 3:
            os.kill(os.getpid(), signal.SIGINT)


def ends(asked: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    """The summary, and the last line of the runs."""
    output = Path(asked.output_path)
    summary = json.loads(output.with_name(f"{output.name}.summary.json").read_text())
    lines = output.with_name(f"{output.name}.runs.jsonl").read_text().splitlines()
    return summary, json.loads(lines[-1])


def test_ctrl_c_commits_and_says_that_it_interrupted(photos: Path) -> None:
    before = signal.getsignal(signal.SIGINT)
    asked = job(photos)
    with pytest.raises(KeyboardInterrupt, match="committed") as caught:
        vlmbatch.run(asked, engine=ScriptedEngine(seconds=0.05), reporter=CtrlC())
    assert [Path(entry.path).name for entry in caught.traceback[1:]] == ["from_python.py"]
    assert signal.getsignal(signal.SIGINT) is before
    summary, line = ends(asked)
    assert (summary["interrupted"], summary["error"]) == (True, None)
    assert (line["interrupted"], line["error"], line["exit_code"]) == (True, None, 130)
    assert 3 <= len(rows(asked)) < 20

    vlmbatch.run(asked, engine=ScriptedEngine())
    assert len(rows(asked)) == 20


def test_a_keyboard_interrupt_of_an_engine_is_no_error(photos: Path) -> None:
    """So it is where a program handles the signal by itself."""

    def answer(key: str, question: str) -> str:
        if key == "12.png":
            raise KeyboardInterrupt
        return "a picture"

    asked = job(photos)
    with pytest.raises(KeyboardInterrupt):
        vlmbatch.run(asked, engine=ScriptedEngine(answer, batch_size=1))
    summary, line = ends(asked)
    assert (summary["interrupted"], summary["error"], line["exit_code"]) == (True, None, 130)


@pytest.mark.parametrize(
    ("given", "advice"),
    [
        ("job.yaml", r"Job\.from_yaml\('job\.yaml'\)"),
        (Path("job.yaml"), r"Job\.from_yaml\('job\.yaml'\)"),
        ({"inputs": ["photos"]}, r"Job\(\*\*values\)"),
        (None, "run takes a Job, not NoneType"),
    ],
)
def test_run_says_what_it_takes(given: Any, advice: str) -> None:
    with pytest.raises(JobError, match=advice):
        vlmbatch.run(given)


def test_a_refusal_notes_the_keyword_that_starts_anew(photos: Path) -> None:
    vlmbatch.run(job(photos), engine=ScriptedEngine())
    with pytest.raises(vlmbatch.OtherSettingsError, match="--overwrite starts it anew") as caught:
        vlmbatch.run(job(photos), engine=ScriptedEngine(model="other"))
    (note,) = caught.value.__notes__
    assert note.startswith("As keywords: --overwrite is overwrite")
