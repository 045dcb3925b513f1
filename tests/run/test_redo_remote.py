"""Corrections and ``--redo`` over an OUTPUT behind a URL, from several machines."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec
import pytest

from tests.run.jobs import job, start
from vlmbatch.correct import correct_output
from vlmbatch.engine.scripted import ScriptedEngine
from vlmbatch.errors import OutputError
from vlmbatch.write import local_copy, read_records, read_runs


@pytest.fixture(params=["jsonl", "csv", "parquet"])
def url(request: pytest.FixtureRequest) -> Iterator[str]:
    yield f"memory://bucket/out.{request.param}"
    fsspec.filesystem("memory").rm("/bucket", recursive=True)


def found(url: str) -> dict[str, dict[str, Any]]:
    with local_copy(url) as path:
        return {row["id"]: row for row in read_records(path)}


def test_rows_behind_a_url_are_corrected_and_asked_again(photos: Path, url: str) -> None:
    def on(machine: str, **values: Any) -> list[str]:
        """What a run on a machine asks about."""
        where = {"output": url, "staging_dir": str(photos.parent / machine)}
        outcome, engine = start(
            job(photos, **where, **values), ScriptedEngine(lambda key, question: f"{key} {machine}")
        )
        assert outcome.error is None
        return sorted(key for key, _ in engine.answered)

    assert len(on("one", limit=5)) == 5
    table = photos.parent / "corrections.csv"
    table.write_text("id,text\n01.png,by hand\n")
    assert correct_output(url, table, staging_dir=str(photos.parent / "two")).texts == 1
    ids = photos.parent / "ids.txt"
    ids.write_text("01.png\n03.png\n")
    assert on("three", redo=[f"ids:{ids}"]) == ["03.png"]
    assert on("one", redo=["stale"], max_new_tokens=9) == ["00.png", "02.png", "03.png", "04.png"]
    rows = found(url)
    assert rows["01.png"]["text"] == "by hand"
    assert rows["01.png"]["text_original"] == "01.png one"
    assert len(rows) == 5, "no new rows"
    assert on("two", redo=["edited"], max_new_tokens=9) == ["01.png"]
    assert found(url)["01.png"]["text"] == "01.png two"
    assert len(on("two", max_new_tokens=9)) == 14
    with local_copy(url) as path:
        assert [run["rows"] for run in read_runs(path)] == [5, 1, 4, 1, 15]


def test_other_settings_are_refused_behind_a_url_too(photos: Path, url: str) -> None:
    where = {"output": url, "staging_dir": str(photos.parent / "one")}
    start(job(photos, **where, limit=2))
    with pytest.raises(OutputError, match="max_new_tokens: 64 there, 9 here"):
        start(job(photos, **where, max_new_tokens=9))
    with pytest.raises(OutputError, match=r"pages: none there, 1 here"):
        start(job(photos, **where, redo=["errors"], pages="1"))
