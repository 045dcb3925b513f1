"""``OUTPUT.runs.jsonl`` has a line for each run; the summary is that of the last run with work."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import fsspec
import pytest

from tests.run.jobs import job, rows, start
from vlmbatch.engine.scripted import ScriptedEngine
from vlmbatch.run.pipeline import Run
from vlmbatch.write import local_copy, read_runs, read_summary

BUCKET = "memory://bucket"


@pytest.fixture
def bucket() -> Iterator[str]:
    yield BUCKET
    fsspec.filesystem("memory").rm("/bucket", recursive=True)


def test_each_run_has_a_line(photos: Path) -> None:
    output = photos.parent / "out.jsonl"
    first, _ = start(job(photos, limit=3))
    second, _ = start(job(photos))
    nothing, _ = start(job(photos))
    empty, _ = start(job(photos, include=["*.gif"]))
    lines = read_runs(output)
    assert [line["run_id"] for line in lines] == [
        outcome.summary["run_id"] for outcome in (first, second, nothing, empty)
    ]
    assert [line["exit_code"] for line in lines] == [0, 3, 0, 66]
    assert [line["rows"] for line in lines] == [3, 17, 0, 0]
    assert [line["kept"]["rows"] for line in lines] == [0, 3, 20, 0]
    assert lines[1]["status"] == {"ok": 16, "error": 1}
    assert lines[1]["errors"] == {"DecodeError": 1}
    assert (lines[1]["engine"], lines[1]["device"]) == ("scripted", "cpu")
    assert "--include left 0 of 20" in lines[3]["error"]
    assert {row["run_id"] for row in rows(job(photos))} == {lines[0]["run_id"], lines[1]["run_id"]}


def test_a_run_with_nothing_to_do_leaves_the_last_summary_alone(photos: Path) -> None:
    output = photos.parent / "out.jsonl"
    first, _ = start(job(photos))
    nothing, _ = start(job(photos))
    assert nothing.summary["rows"] == 0
    summary = read_summary(output)
    assert summary is not None
    assert (summary["run_id"], summary["rows"]) == (first.summary["run_id"], 20)
    again, _ = start(job(photos, retry_errors=True))
    summary = read_summary(output)
    assert summary is not None
    assert (summary["run_id"], summary["rows"]) == (again.summary["run_id"], 1)


def test_a_line_that_a_power_cut_left_half_written_stays_alone(photos: Path) -> None:
    output = photos.parent / "out.jsonl"
    start(job(photos))
    path = photos.parent / "out.jsonl.runs.jsonl"
    path.write_bytes(path.read_bytes()[:-20])
    second, _ = start(job(photos))
    assert [line["run_id"] for line in read_runs(output)] == [second.summary["run_id"]]
    assert len(path.read_text().splitlines()) == 2


def test_a_run_that_could_not_begin_leaves_no_line(photos: Path, tmp_path: Path) -> None:
    class Broken(ScriptedEngine):
        def run(self, source: object) -> Iterator[object]:  # type: ignore[override]
            raise RuntimeError("no")

    # The row of a broken picture needs no engine, and may be there first.
    outcome = Run(job(photos, exclude=["07.png"]), engine=Broken()).start()
    assert outcome.exit_code == 1
    assert not list(tmp_path.glob("out.jsonl.runs*"))


def test_behind_a_url_the_lines_of_all_machines_are_kept(photos: Path, bucket: str) -> None:
    output = f"{bucket}/out.parquet"
    started = [
        start(job(photos, output=output, staging_dir=str(photos.parent / machine), **values))[0]
        for machine, values in (
            ("one", {"limit": 3}),
            ("two", {}),
            ("two", {}),
            ("one", {}),
            ("one", {"redo": ["errors"], "max_new_tokens": 5}),
        )
    ]
    with local_copy(output) as path:
        lines = read_runs(path)
        summary = read_summary(path)
    assert [line["run_id"] for line in lines] == [run.summary["run_id"] for run in started]
    assert [line["rows"] for line in lines] == [3, 17, 0, 0, 1]
    assert summary is not None
    assert summary["run_id"] == started[-1].summary["run_id"]
    assert all(json.loads(json.dumps(line)) for line in lines)
