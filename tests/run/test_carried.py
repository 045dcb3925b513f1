"""Manifests and archives through the whole pipeline: carried columns in every format and across
resumes, own questions, bad rows, memory.
"""

from __future__ import annotations

import datetime
import json
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.media import write_picture
from tests.write.rows import record, store
from vlmbatch.core import RECORD_FIELDS, Conversation, Item, Question, Request
from vlmbatch.engine.scripted import ScriptedEngine
from vlmbatch.errors import JobError, OutputError
from vlmbatch.job import Job
from vlmbatch.run import pipeline
from vlmbatch.run.pipeline import Run
from vlmbatch.run.plan import count_items
from vlmbatch.write import read_records
from vlmbatch.write.columns import common_kind, kind_of

SUFFIXES = ("jsonl", "parquet", "csv")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for number in range(4):
        write_picture(tmp_path / f"{number}.png", seed=number)
    return tmp_path


def manifest(folder: Path, *rows: dict[str, Any]) -> Path:
    path = folder / "rows.jsonl"
    path.write_text(
        "".join(
            json.dumps({"path": f"{number}.png", **row}) + "\n" for number, row in enumerate(rows)
        )
    )
    return path


def job(folder: Path, output: str = "out.jsonl", source: str = "rows.jsonl", **values: Any) -> Job:
    return Job.from_dict(
        {"inputs": [str(folder / source)], "output": str(folder / output), **values}
    )


def start(job: Job) -> tuple[list[str], list[dict[str, Any]]]:
    """The items that were prepared, and the rows of OUTPUT."""
    engine = ScriptedEngine()
    outcome = Run(job, engine=engine).start()
    assert outcome.error is None
    return sorted(engine.prepared), list(read_records(Path(job.output_path)))


MIXED = [
    {"n": 1, "x": 1, "s": "a", "flag": True, "any": [1, "é"]},
    {"n": None, "x": 2.5, "s": "", "flag": None, "any": {"k": None}},
    {"n": 2**40},
    {"n": -3, "any": "text"},
]


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_carried_columns_stand_behind_the_others_with_their_types(
    folder: Path, suffix: str
) -> None:
    manifest(folder, *MIXED)
    _, rows = start(job(folder, f"out.{suffix}", keep=["n", "x=score", "s", "flag", "any"]))
    assert tuple(rows[0]) == (*RECORD_FIELDS, "n", "score", "s", "flag", "any")
    found = [[row[name] for name in ("n", "score", "s", "flag", "any")] for row in rows]
    if suffix == "jsonl":
        assert found == [
            [row.get(name) for name in ("n", "x", "s", "flag", "any")] for row in MIXED
        ]
    elif suffix == "parquet":
        types = pq.read_schema(folder / "out.parquet")
        assert [str(types.field(name).type) for name in ("n", "score", "s", "flag", "any")] == [
            "int64",
            "double",
            "string",
            "bool",
            "string",
        ]
        assert found[:2] == [[1, 1.0, "a", True, '[1, "é"]'], [None, 2.5, "", None, '{"k": null}']]
        assert found[2:] == [[2**40, None, None, None, None], [-3, None, None, None, "text"]]
    else:
        assert found[0] == ["1", "1", "a", "true", '[1, "é"]']
        assert found[2] == [str(2**40), None, None, None, None]


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_carried_columns_survive_a_resume_and_a_crash(folder: Path, suffix: str) -> None:
    manifest(folder, *({"n": number} for number in range(4)))
    again = job(folder, f"out.{suffix}", keep=["n"])
    assert start(job(folder, f"out.{suffix}", keep=["n"], limit=2))[0] == ["0.png", "1.png"]
    prepared, rows = start(again)
    assert prepared == ["2.png", "3.png"]
    assert [str(row["n"]) for row in rows] == ["0", "1", "2", "3"]
    before = (folder / f"out.{suffix}").read_bytes()
    assert start(again)[0] == []
    assert (folder / f"out.{suffix}").read_bytes() == before
    manifest(folder, *({"n": number if number != 2 else "two"} for number in range(4)))
    prepared, rows = start(again)
    assert prepared == ["2.png"]
    assert [str(row["n"]) for row in rows] == ["0", "1", "two", "3"]


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_rows_of_a_killed_run_keep_what_they_carried(tmp_path: Path, suffix: str) -> None:
    output = tmp_path / f"out.{suffix}"
    killed = store(output, keep=("a", "b=c"))
    killed.write(record(0, extra={"a": 1, "c": None}))
    killed.write(record(1, extra={"a": 2.5, "c": "\udcff"}))
    killed.commit()
    killed.abandon()
    with store(output, keep=("a", "b=c")) as resumed:
        resumed.write(record(2, extra={"a": None, "c": "x"}))
    rows = list(read_records(output))
    expected = (
        [("1", None), ("2.5", "\\udcff"), (None, "x")]
        if suffix == "csv"
        else [(1, None), (2.5, "\\udcff"), (None, "x")]
    )
    assert [(row["a"], row["c"]) for row in rows] == expected
    with pytest.raises(OutputError, match=r'keep: \["a", "b=c"\] there, \["a"\] here'):
        store(output, keep=("a",))


def test_times_bytes_and_what_is_no_number_are_carried_as_json_can_hold_them(folder: Path) -> None:
    columns = {
        "day": [datetime.date(2026, 1, 31)],
        "at": [datetime.datetime(2026, 1, 31, 12)],
        "raw": [b"\x00\xff"],
        "nan": [float("nan")],
        "big": [2.0],
    }
    pq.write_table(pa.table({"path": ["0.png"], **columns}), folder / "rows.parquet")
    _, rows = start(job(folder, source="rows.parquet", path_column="path", keep=list(columns)))
    assert [rows[0][name] for name in columns] == [
        "2026-01-31",
        "2026-01-31T12:00:00",
        "AP8=",
        None,
        2.0,
    ]


def test_kinds_widen_until_every_value_fits() -> None:
    assert [kind_of(value) for value in (None, True, 1, 2**63, 1.5, "a", [1])] == [
        None,
        "bool",
        "int64",
        "string",
        "float64",
        "string",
        "string",
    ]
    assert common_kind(None, "int64") == common_kind("int64", None) == "int64"
    assert common_kind("int64", "float64") == "float64"
    assert common_kind("bool", "int64") == "string"


def test_rows_are_asked_their_own_questions_or_the_jobs(folder: Path) -> None:
    manifest(
        folder,
        {"question": "Why?"},
        {"question": ["Who?", "Where?"]},
        {"question": None},
        {"path": "gone.png", "question": "When?"},
    )
    _, rows = start(job(folder, task="vqa", questions=["What?"]))
    assert [(row["id"], row["prompt"], row["status"]) for row in rows] == [
        ("0.png", "Why?", "ok"),
        ("1.png", "Who?", "ok"),
        ("1.png", "Where?", "ok"),
        ("2.png", "What?", "ok"),
        ("gone.png", "When?", "error"),
    ]


def test_a_row_without_any_question_is_an_error_row(folder: Path) -> None:
    manifest(folder, {"question": "Why?"}, {"question": ""}, {"path": None, "question": None})
    _, rows = start(job(folder, task="vqa"))
    assert [(row["id"], row["prompt"], row["error"]) for row in rows] == [
        ("0.png", "Why?", None),
        ("1.png", "", "it has no question, and the job has none"),
        ("rows.jsonl#row=2", "", "the row has nothing in its column 'path'"),
    ]


def test_questions_are_still_needed_where_no_row_can_have_them(folder: Path) -> None:
    with pytest.raises(JobError, match="a manifest with a column of questions"):
        job(folder, source="0.png", task="vqa")
    with pytest.raises(JobError, match="question_column goes with the task vqa"):
        job(folder, question_column="q")


@pytest.mark.parametrize("keep", [["a", "a"], [""], ["a", "b=a"], ["=x"]])
def test_what_is_kept_must_have_names_of_its_own(folder: Path, keep: list[str]) -> None:
    with pytest.raises(JobError, match="keep"):
        manifest(folder, {"a": 1})
        Run(job(folder, keep=keep), engine=ScriptedEngine())


def test_items_of_a_table_of_pictures_are_counted_without_them(folder: Path) -> None:
    pq.write_table(
        pa.table({"image": [(folder / f"{number}.png").read_bytes() for number in range(4)]}),
        folder / "rows.parquet",
    )
    assert count_items(job(folder, source="rows.parquet")) == 4
    prepared, rows = start(job(folder, source="rows.parquet"))
    assert (
        prepared
        == [row["id"] for row in rows]
        == [f"rows.parquet#row={number}" for number in range(4)]
    )
    table = pa.table({"image": [(folder / f"{number}.png").read_bytes() for number in (0, 3, 2)]})
    pq.write_table(table, folder / "rows.parquet")
    assert start(job(folder, source="rows.parquet"))[0] == ["rows.parquet#row=1"]


def test_waiting_pictures_of_a_table_are_bounded_by_their_bytes(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    count, workers, most_waiting = 60, 8, 4
    held = (folder / "0.png").read_bytes()
    pq.write_table(pa.table({"image": [held] * count}), folder / "rows.parquet")
    monkeypatch.setattr(pipeline, "HELD_BYTES", most_waiting * len(held))
    changed, listed, prepared = threading.Condition(), [0], [0]
    ahead = []

    class WaitForTheReader(ScriptedEngine):
        def prepare(self, conversation: Conversation, questions: Sequence[Question]) -> Request:
            with changed:
                prepared[0] += 1
                enough = min(count, prepared[0] + most_waiting)
                assert changed.wait_for(lambda: listed[0] >= enough, 60)
                ahead.append(listed[0] - prepared[0])
            return super().prepare(conversation, questions)

    running = Run(
        job(folder, source="rows.parquet", read_workers=workers), engine=WaitForTheReader()
    )
    reader = running.reader

    class CountItems:
        counts = reader.counts

        def __iter__(self) -> Iterator[Item]:
            for item in reader:
                with changed:
                    listed[0] += 1
                    changed.notify_all()
                yield item

    running.reader = CountItems()
    assert running.start().exit_code == 0
    # A worker holds one, and the reader has one in its hand.
    assert most_waiting <= max(ahead) <= workers + most_waiting + 1
