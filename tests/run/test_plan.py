"""``--dry-run``: how many items are new, changed, asked again or done, without a trace."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec
import pytest

from tests.media import write_picture, write_video
from tests.run.jobs import job, rows, start
from tests.write.rows import record, store
from vlmbatch.errors import OutputError
from vlmbatch.job import Job
from vlmbatch.run.plan import plan_items


@pytest.fixture(params=["out.jsonl", "out.csv", "out.parquet", "memory://bucket/out.jsonl"])
def output(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[dict[str, Any]]:
    """The options of an OUTPUT, on this disk or behind a URL."""
    if "://" not in request.param:
        yield {"output": str(tmp_path / request.param)}
        return
    yield {"output": request.param, "staging_dir": str(tmp_path / "staging")}
    fsspec.filesystem("memory").rm("/bucket", recursive=True)


def planned(asked: Job) -> dict[str, int]:
    """What is not zero of a plan that is not refused."""
    found = dataclasses.asdict(plan_items(asked))
    assert found.pop("refusal") is None
    return {name: count for name, count in found.items() if count}


def traces(folder: Path) -> dict[str, tuple[int, bytes]]:
    return {
        str(path): (path.stat().st_mtime_ns, path.read_bytes())
        for path in folder.rglob("*")
        if path.is_file()
    }


def test_items_are_new_changed_or_done(photos: Path, output: dict[str, Any]) -> None:
    asked = job(photos, **output)
    assert planned(asked) == {"items": 20, "new": 20}
    start(job(photos, **output, limit=15))
    write_picture(photos / "00.png", seed=99)  # another content
    os.utime(photos / "01.png", (1, 1))  # touched only
    before = traces(photos.parent)
    assert planned(asked) == {"items": 20, "new": 5, "changed": 1, "done": 14}
    retried = dataclasses.replace(asked, retry_errors=True)
    assert planned(retried) == {"items": 20, "new": 5, "changed": 1, "again": 1, "done": 13}
    assert planned(dataclasses.replace(asked, redo=("errors",)))["again"] == 1
    assert planned(dataclasses.replace(asked, overwrite=True)) == {"items": 20, "new": 20}
    assert planned(dataclasses.replace(asked, limit=3)) == {"items": 3, "changed": 1, "done": 2}
    assert traces(photos.parent) == before
    outcome, engine = start(asked)
    assert len(engine.answered) == outcome.summary["rows"] == 6, "as it was said"
    assert planned(asked) == {"items": 20, "done": 20}


def test_an_item_with_a_question_more_is_new(photos: Path) -> None:
    about = {"task": "vqa", "questions": ["Who?"]}
    start(job(photos, **about))
    assert planned(job(photos, **about)) == {"items": 20, "done": 20}
    assert planned(job(photos, task="vqa", questions=["Who?", "Why?"])) == {"items": 20, "new": 20}


def test_frames_are_compared_by_their_packets(tmp_path: Path) -> None:
    write_video(tmp_path / "v" / "a.mp4", 30)
    frames = job(tmp_path / "v", media="video", fps=1)
    start(frames)
    done = len(rows(frames))
    assert planned(frames) == {"items": done, "done": done}
    os.utime(tmp_path / "v" / "a.mp4", (1, 1))
    assert planned(frames) == {"items": done, "done": done}
    write_video(tmp_path / "v" / "a.mp4", 40)
    assert planned(frames)["changed"] == done


def test_a_run_that_is_going_is_looked_at(photos: Path) -> None:
    with store(photos.parent / "out.jsonl", prompt="What?") as held:
        held.write(record(0, id="00.png", prompt="What?"))
        held.commit()
        same = job(photos, prompt="What?", model="demo")
        assert planned(same) == {"items": 20, "done": 1, "new": 19}
        other = plan_items(job(photos, prompt="What?", model="some/other"))
        assert "model: demo there, some/other here" in (other.refusal or "")


def test_other_settings_are_named(photos: Path) -> None:
    start(job(photos))
    plan = plan_items(job(photos, detail="low", max_new_tokens=9))
    assert plan.items == 20
    assert plan.refusal is not None
    assert "detail: full there, low here; max_new_tokens: 64 there, 9 here" in plan.refusal


def test_another_column_of_ids_is_refused_by_run_and_plan(photos: Path) -> None:
    table = photos.parent / "table.csv"
    table.write_text(
        "id,name,path\n" + "".join(f"i{n},n{n},photos/{n:02d}.png\n" for n in range(5))
    )
    start(job(table))
    other = job(table, id_column="name")
    with pytest.raises(OutputError, match="id_column: none there, name here"):
        start(other)
    assert "id_column: none there, name here" in (plan_items(other).refusal or "")
    assert [row["id"] for row in rows(other)] == [f"i{n}" for n in range(5)]
