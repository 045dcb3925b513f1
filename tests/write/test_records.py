"""Rows of one picture or video after the other, whatever their order in OUTPUT."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.write.rows import failed, record, store
from vlmbatch.core import Record
from vlmbatch.errors import OutputError
from vlmbatch.write import read_by_file, read_seen
from vlmbatch.write.records import file_name


def frame(video: str, number: int, text: str, **changes: object) -> Record:
    start = float(number)
    changes = {"time_seconds": start, "end_seconds": start + 1, **changes}
    name = f"{video}.mp4"
    return record(number, text, id=f"{name}#t={start:.3f}", source=f"/data/{name}", **changes)


def test_pages_and_stretches_belong_to_their_file() -> None:
    assert [
        file_name(id)
        for id in (
            "a.mp4#t=1.000",
            "a.mp4#t=1.000-2.500",
            "b.pdf#page=3",
            "x/a.jpg",
            "a#t=x.jpg",
            "p/a.jpg#2",
        )
    ] == [*("a.mp4", "a.mp4", "b.pdf", "x/a.jpg", "a#t=x.jpg", "p/a.jpg#2")]


def test_rows_of_files_that_alternate_in_output_come_together(output: Path) -> None:
    for video in ("b", "a"):  # two runs, each with rows of its own from index 0
        with store(output) as rows:
            for number in range(3):
                rows.write(frame(video, number, f"{video}{number}"))
    found = read_by_file(output, lambda row: row["status"] == "ok")
    assert [(name, [row["text"] for row in group]) for name, group in found] == [
        ("a.mp4", ["a0", "a1", "a2"]),
        ("b.mp4", ["b0", "b1", "b2"]),
    ]


def test_only_chosen_rows_come(output: Path) -> None:
    with store(output) as rows:
        rows.write(record(0))
        rows.write(failed(1))
        rows.write(record(2, task="ocr"))
    found = read_by_file(output, lambda row: row["status"] == "ok" and row["task"] == "caption")
    assert [name for name, _ in found] == ["00000.jpg"]


def test_a_run_that_saw_some_frames_has_all_answers_to_its_question(output: Path) -> None:
    with store(output) as rows:
        for number in range(3):
            rows.write(frame("a", number, f"a{number}"))
            rows.write(frame("a", number, "other", prompt="Another question?"), question=1)
            rows.write(frame("z", number, "unseen", index=9))
    rows = store(output)
    rows.keep("a.mp4#t=0.000", "caption", frame("a", 0, "").prompt, 0)
    rows.write(frame("b", 0, "b0", index=1))
    rows.close()
    assert [(name, [row["text"] for row in group]) for name, group in read_seen(rows)] == [
        ("a.mp4", ["a0", "a1", "a2"]),
        ("b.mp4", ["b0"]),
    ]


def test_an_output_that_is_not_there_is_said_at_once(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="No such file"):
        read_by_file(tmp_path / "none.jsonl", lambda row: True)
