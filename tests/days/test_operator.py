"""A day of an operator: a job at night that says what a machine and a person need, and no more."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.days.conftest import Work, rows, shape

JOB = {
    "task": "caption",
    "inputs": "photos",
    "output": "captions.jsonl",
    "model": "demo",
    "detail": "low",
    "max_errors": "50%",
}


def events(stderr: str) -> dict[str, dict[str, Any]]:
    """Return the last line of each event."""
    return {line["event"]: line for line in map(json.loads, stderr.splitlines())}


def test_a_day_of_an_operator(tool: Work, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "nightly.yaml").write_text(yaml.safe_dump(JOB))
    shape(tmp_path / "photos" / "circle.png", "red")
    (tmp_path / "photos" / "broken.png").write_bytes(b"nothing that a picture begins with")
    nightly = ("run", "nightly.yaml", "--log-format", "json")

    # Before the first night: what the job is, and how much there is to do.
    assert tool("run", "nightly.yaml", "--dry-run").stdout.startswith("# 2 items\n")

    # The first night finds a broken picture. The log has events with fields.
    log = events(tool(*nightly, code=3).stderr)
    assert log["item_error"]["id"] == "broken.png"
    assert log["run_finished"]["exit_code"] == 3
    assert log["run_finished"]["run_id"] == log["item_error"]["run_id"]

    # The second night nothing is new: the broken picture wakes nobody again, and the summary of the
    # night that did something stays.
    summary = (tmp_path / "captions.jsonl.summary.json").read_bytes()
    assert events(tool(*nightly).stderr)["run_finished"]["kept"]["errors"] == 1
    assert (tmp_path / "captions.jsonl.summary.json").read_bytes() == summary

    # In the third night the disk is not there.
    (tmp_path / "photos").rename(tmp_path / "unmounted")
    (tmp_path / "photos").mkdir()
    assert events(tool(*nightly, code=66).stderr)["error"]["exit_code"] == 66
    (tmp_path / "photos").rmdir()
    (tmp_path / "unmounted").rename(tmp_path / "photos")
    assert len(rows(tmp_path / "captions.jsonl")) == 2

    # In the fourth one too much is broken, and the job ends early.
    for number in range(3):
        (tmp_path / "photos" / f"bad{number}.png").write_bytes(b"bad %d" % number)
    tool(*nightly, code=4)

    # In the morning: which run did what, and figures for the monitoring.
    codes = [run["exit_code"] for run in rows(tmp_path / "captions.jsonl.runs.jsonl")]
    assert codes == [3, 0, 66, 4]
    table = tool("stats", "captions.jsonl", "--since", "1d", "--by", "run").stdout
    exit_codes = [int(line.split()[-2]) for line in table.splitlines()[1:]]
    assert sorted(exit_codes) == sorted(codes)
    tool("stats", "captions.jsonl", "--metrics", "vlmbatch.prom")
    metrics = (tmp_path / "vlmbatch.prom").read_text()
    assert "vlmbatch_last_run_exit_code" in metrics
    done = tool("stats", "captions.jsonl")
    assert "bad0.png" in done.stdout

    # The pictures came again, whole: only those are asked about.
    for number in range(3):
        shape(tmp_path / "photos" / f"bad{number}.png", "blue")
    shape(tmp_path / "photos" / "broken.png", "green", "square")
    assert "4 changed, 1 done" in tool("run", "nightly.yaml", "--dry-run").stdout
    log = events(tool(*nightly).stderr)
    assert log["run_finished"]["items"] == 4
    assert {row["status"] for row in rows(tmp_path / "captions.jsonl")} == {"ok"}
