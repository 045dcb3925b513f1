"""Tables with a column for each question, and of several OUTPUTs."""

from __future__ import annotations

import csv
import dataclasses
import io
import json
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner, Result

from tests.write.rows import failed, record, store
from vlmbatch.cli.main import cli
from vlmbatch.errors import JobError


def export(*arguments: object) -> Result:
    result = CliRunner().invoke(cli, ["export", *map(str, arguments)], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result


def table(*arguments: object) -> list[dict[str, str]]:
    found = export(*arguments, "--to", "csv", "-o", "-").stdout
    return list(csv.DictReader(io.StringIO(found)))


def write(path: Path, *rows: Any, **options: Any) -> Path:
    with store(path, **options) as open_store:
        for number, row in enumerate(rows):
            open_store.write(row, question=number)
    return path


def asked(number: int, prompt: str, text: str, **changes: Any) -> Any:
    return record(number, text, task="vqa", prompt=prompt, **changes)


@pytest.fixture
def output(tmp_path: Path) -> Path:
    """Two tasks about three pictures, with a named question and a carried column."""
    named = {"extra": {"label": 3, "question_name": "colour"}}
    return write(
        tmp_path / "out.jsonl",
        record(0, "zero", extra={"label": 3}),
        asked(0, "Which colour?", "red", **named),
        asked(0, "Is it round?", "yes", extra={"label": 3}),
        failed(1),
        asked(1, "Which colour?", "blue", **named),
        asked(2, "Is it round?", "no"),
        keep=("label", "question_name"),
    )


def test_a_wide_table_has_a_column_for_each_question(output: Path) -> None:
    rows = table(output, "--wide")
    assert list(rows[0])[:2] == ["id", "source"]
    assert list(rows[0])[-4:] == ["label", "caption", "colour", "Is it round?"]
    found = [
        [row[name] for name in ("id", "label", "caption", "colour", "Is it round?")] for row in rows
    ]
    assert found == [
        ["00000.jpg", "3", "zero", "red", "yes"],
        ["00001.jpg", "3", "", "blue", ""],
        ["00002.jpg", "", "", "", "no"],
    ]
    assert "1 error row: no text in these cells" in export(
        output, "--wide", "--to", "csv", "-o", "-"
    ).stderr  # fmt: skip


@pytest.mark.parametrize("form", ["jsonl", "parquet"])
def test_columns_order_and_rows_of_a_wide_table_are_chosen(
    output: Path, tmp_path: Path, form: str
) -> None:
    target = tmp_path / f"wide.{form}"
    chosen = ("--columns", "colour,id,label", "--sort", "colour", "--limit", 2, "-o", target)
    assert "2 rows -> " in export(output, "--wide", "--to", form, *chosen).stderr
    expected = [
        {"colour": "blue", "id": "00001.jpg", "label": 3},
        {"colour": "red", "id": "00000.jpg", "label": 3},
    ]
    if form == "parquet":
        assert pq.read_table(target).to_pylist() == expected
    else:
        assert [json.loads(line) for line in target.read_text().splitlines()] == expected


def test_two_prompts_of_a_task_have_columns_of_their_own(tmp_path: Path) -> None:
    short = record(0, "short", prompt="In one word.")
    output = write(tmp_path / "out.jsonl", record(0, "long"), short)
    [row] = table(output, "--wide")
    assert (row["Describe this image in one sentence."], row["In one word."]) == ("long", "short")


def test_what_no_column_can_hold_is_refused(tmp_path: Path) -> None:
    output = write(
        tmp_path / "a.jsonl",
        asked(0, "Which colour?", "red", extra={"question_name": "x"}),
        asked(0, "Is it round?", "yes", extra={"question_name": "x"}),
        keep=("question_name",),
    )
    ask_id = write(tmp_path / "b.jsonl", asked(0, "id", "5"))
    for path, arguments, said in (
        (output, (), "00000.jpg has two answers for the column 'x', to 'Which colour?' and 'Is it"),
        (ask_id, (), "a question is called 'id'"),
        (output, ("--prompt", "Is it round?", "--columns", "y"), "has no column 'y'; it has id, "),
    ):
        result = CliRunner().invoke(
            cli, ["export", str(path), "--wide", "--to", "csv", "-o", "-", *arguments]
        )
        assert isinstance(result.exception, JobError)
        assert said in str(result.exception)


def test_several_outputs_are_one_table_and_what_is_there_twice_is_said(
    output: Path, tmp_path: Path
) -> None:
    other = write(tmp_path / "other.parquet", record(0, "other zero"), record(9, "nine"))
    target = tmp_path / "both.jsonl"
    said = export(output, other, "--to", "jsonl", "-o", target).stderr
    assert "1 row is in several OUTPUTs, such as 00000.jpg (caption: Describe" in said
    assert "8 rows -> " in said
    rows = [json.loads(line) for line in target.read_text().splitlines()]
    assert [row["output"] for row in rows] == [str(output)] * 6 + [str(other)] * 2
    assert table(output, other, "--columns", "text,output", "--task", "caption") == [
        {"text": "zero", "output": str(output)},
        {"text": "picture 1", "output": str(output)},
        {"text": "other zero", "output": str(other)},
        {"text": "nine", "output": str(other)},
    ]


def test_answers_of_several_outputs_stand_side_by_side_in_a_wide_table(
    output: Path, tmp_path: Path
) -> None:
    other = write(tmp_path / "other.csv", record(0, "other zero"), record(9, "nine"))
    rows = table(output, other, "--wide")
    columns = [f"caption ({output})", f"caption ({other})", "colour"]
    assert [name for name in rows[0] if "(" in name or name == "colour"] == columns
    assert [[row[name] for name in columns] for row in rows] == [
        ["zero", "other zero", "red"],
        ["", "", "blue"],
        ["", "", ""],
        ["", "nine", ""],
    ]


def test_files_of_the_same_id_are_rows_of_their_own(tmp_path: Path) -> None:
    one = write(tmp_path / "one.jsonl", record(0, "first"))
    other = write(tmp_path / "two.jsonl", record(0, "second", source="/other/00000.jpg"))
    assert [row["caption"] for row in table(one, other, "--wide")] == ["first", "second"]
    said = export(one, other, "--wide", "--to", "csv", "-o", "-").stderr
    assert "1 id has several files: each file has its row" in said


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--to", "txt", "--wide"], "--wide goes with tables, not with --to txt"),
        (["--to", "csv", "--link"], "--link goes with --to imagefolder"),
        (["two.jsonl", "--to", "csv"], "several OUTPUTs have no name together: give -o"),
        (["two.jsonl", "--to", "srt", "-o", "x"], "--to srt takes one OUTPUT at a time, not 2"),
        (["out.jsonl", "--to", "csv", "-o", "x.csv"], "out.jsonl is given twice"),
        (["two.jsonl", "--to", "csv", "-o", "x.csv"], "has a column 'output'"),
        (["--to", "imagefolder", "-o", "-"], "writes a folder of this disk, not -"),
    ],
)
def test_what_does_not_go_together_is_refused(
    output: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], said: str
) -> None:
    monkeypatch.chdir(tmp_path)
    carried = dataclasses.replace(record(0), extra={"output": "x"})
    write(tmp_path / "two.jsonl", carried, keep=("output",))
    result = CliRunner().invoke(cli, ["export", output.name, *arguments])
    assert isinstance(result.exception, JobError)
    assert said in str(result.exception)
    assert not (tmp_path / "x.csv").exists()
