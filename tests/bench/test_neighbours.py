"""Whole runs beside other work are measured as the table says."""

from __future__ import annotations

import dataclasses
import json
import os
from pathlib import Path

import pytest

from benchmarks import neighbours
from benchmarks.neighbours import ROWS, Taken, Task, measure, report
from tests.media import write_picture


@pytest.fixture
def task(tiny: Path, tmp_path: Path) -> Task:
    pictures = [write_picture(tmp_path / f"{number}.png", 60, 40, seed=number) for number in (1, 2)]
    return Task(tiny, pictures, 3, tmp_path)


@pytest.mark.parametrize("row", ROWS[1:])
def test_a_run_in_company_is_timed_and_knows_what_was_left(task: Task, row: str) -> None:
    taken = measure(task, "vlmbatch", row)
    assert taken.seconds > 0
    assert 0 < taken.left < 1
    rows = (task.folder / "vlmbatch-0.jsonl").read_text().splitlines()
    assert [json.loads(line)["status"] for line in rows] == ["ok", "ok"]
    assert (task.folder / "vlmbatch-1.jsonl").exists() is (row == "two runs")
    assert not list(Path("/sys/fs/cgroup").glob(f"*/vlmbatch-neighbours-{os.getpid()}"))


def test_both_sides_give_the_same_words(task: Task) -> None:
    for side in ("vlmbatch", "generate"):
        measure(task, side, "quiet")
    found = json.loads((task.folder / "generate-0.jsonl").read_text())
    rows = map(json.loads, (task.folder / "vlmbatch-0.jsonl").read_text().splitlines())
    assert [row["new_tokens"] for row in rows] == [len(tokens) for tokens in found.values()]
    assert list(found) == [path.name for path in task.pictures]


def test_a_failed_run_is_no_figure(task: Task) -> None:
    nowhere = dataclasses.replace(task, model=task.folder / "nowhere")
    with pytest.raises(RuntimeError, match="nowhere"):
        measure(nowhere, "vlmbatch", "quiet")


def test_without_control_groups_half_the_cores_are_named(
    task: Task, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(neighbours, "CONTROL_GROUPS", ())
    assert 0 < measure(task, "vlmbatch", "half quota").left <= 1


def test_a_line_has_medians_and_the_speed_of_what_was_left() -> None:
    alone = [Taken(10.0, 1.0), Taken(11.0, 1.0), Taken(9.0, 1.0)]
    line = report("busy core", "vlmbatch", alone, [Taken(20.0, 0.5), Taken(18.0, 0.6)])
    assert line.split()[-3:] == ["0.53", "0.55", "0.96"]
    assert " 19.0 s (18.0 to 20.0) " in line
