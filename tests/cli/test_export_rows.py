"""Which rows and columns ``export`` takes."""

from __future__ import annotations

import csv
import dataclasses
import json
import subprocess
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner, Result

from tests.write.rows import bare, failed, record, store
from vlmbatch.cli.main import cli
from vlmbatch.errors import JobError


def call(*arguments: object) -> Result:
    result = CliRunner().invoke(
        cli, [str(argument) for argument in arguments], catch_exceptions=False
    )
    assert result.exit_code == 0, result.output
    return result


@pytest.fixture
def output(tmp_path: Path) -> Path:
    """Two tasks, two questions, every status."""
    path = tmp_path / "out.parquet"
    with store(path) as rows:
        rows.write(record(0, "zero"))
        rows.write(dataclasses.replace(failed(1), text=""))
        rows.write(record(2, "two", status="similar", similar_to="00000.jpg"))
        rows.write(record(3, "red", task="vqa", prompt="Which colour?"))
        rows.write(record(3, "yes", task="vqa", prompt="Is it round?"), question=1)
    return path


@pytest.mark.parametrize(
    ("filters", "texts"),
    [
        ([], ["zero", "", "two", "red", "yes"]),
        (["--task", "vqa"], ["red", "yes"]),
        (["--prompt", "Is it round?"], ["yes"]),
        (["--prompt", "Is it round?", "--prompt", "Which colour?"], ["red", "yes"]),
        (["--status", "ok"], ["zero", "red", "yes"]),
        (["--status", "similar", "--status", "error"], ["", "two"]),
        (["--status", "ok", "--task", "caption"], ["zero"]),
        (["--task", "ocr"], []),
    ],
)
@pytest.mark.parametrize("form", ["jsonl", "csv"])
def test_filters_say_which_rows_are_taken(
    output: Path, tmp_path: Path, filters: list[str], texts: list[str], form: str
) -> None:
    target = tmp_path / f"some.{form}"
    said = call("export", output, "--to", form, "-o", target, *filters).stderr
    assert (
        said.splitlines(keepends=True)[-1]
        == f"{len(texts)} row{'' if len(texts) == 1 else 's'} -> {target}\n"
    )
    if form == "jsonl":
        assert [json.loads(line)["text"] for line in target.read_text().splitlines()] == texts
    else:
        with open(target, newline="") as file:
            assert [row["text"] for row in csv.DictReader(file)] == texts


def test_texts_are_made_of_the_rows_that_are_taken(output: Path, tmp_path: Path) -> None:
    call("export", output, "--to", "txt", "-o", tmp_path / "texts", "--prompt", "Which colour?")
    assert {path.name: path.read_text() for path in (tmp_path / "texts").glob("*.txt")} == {
        "00003.txt": "red\n"
    }
    call("export", output, "--to", "txt", "-o", tmp_path / "one.txt", "--prompt", "Is it round?")
    assert (tmp_path / "one.txt").read_text() == "yes\n"


def test_carried_columns_come_along(tmp_path: Path) -> None:
    with store(tmp_path / "out.jsonl", keep=("label", "tags", "none")) as rows:
        rows.write(record(0, extra={"label": 7, "tags": ["a", "b"], "none": None}))
        rows.write(failed(1))
        rows.write(record(2, extra={"label": 8.5, "tags": None, "none": None}))
    for form in ("parquet", "csv"):
        call("export", tmp_path / "out.jsonl", "--to", form)
    table = pq.read_table(tmp_path / "out.parquet")
    assert table.column_names[-3:] == ["label", "tags", "none"]
    assert [table[name].to_pylist() for name in ("label", "tags")] == [
        [7.0, None, 8.5],
        ['["a", "b"]', None, None],
    ]
    with open(tmp_path / "out.csv", newline="") as file:
        assert [(row["label"], row["tags"]) for row in csv.DictReader(file)] == [
            ("7", '["a", "b"]'),
            ("", ""),
            ("8.5", ""),
        ]


@pytest.mark.parametrize("suffix", ["jsonl", "parquet", "csv"])
def test_rows_without_figures_are_counted_and_exported_as_they_are(
    tmp_path: Path, suffix: str
) -> None:
    output = tmp_path / f"out.{suffix}"
    with store(output) as rows:
        rows.write(bare(0))
        rows.write(bare(1, status="error", error_type="ReadError", text=None, engine="", model=""))
    figures = json.loads(call("stats", output, "--json").stdout)
    assert (figures["rows"], figures["tiles"], figures["new_tokens"]) == (2, 0, 0)
    assert figures["models"] == {"demo (torch)": 1, "no model": 1}
    assert "1 row by demo (torch)" in call("stats", output).stdout
    call("export", output, "--to", "jsonl", "-o", tmp_path / "again.jsonl")
    for line in (tmp_path / "again.jsonl").read_text().splitlines():
        assert (json.loads(line)["batch_size"], json.loads(line)["decode_seconds"]) == (None, None)


@pytest.mark.parametrize("form", ["jsonl", "csv"])
@pytest.mark.parametrize("closed", [True, False])
def test_a_stdout_that_cannot_be_written_to_is_one_line(
    output: Path, form: str, closed: bool
) -> None:
    if not closed and not Path("/dev/full").exists():
        pytest.skip("no device that is full")
    shell = f'exec "$@" {">&-" if closed else ">/dev/full"}'
    command = [sys.executable, "-m", "vlmbatch", "export", output, "--to", form, "-o", "-"]
    result = subprocess.run(
        ["sh", "-c", shell, "sh", *command], capture_output=True, text=True, check=False
    )
    assert result.returncode == 1
    assert result.stderr.startswith("vlmbatch: cannot write to stdout: ")
    assert result.stderr.count("\n") == 1


def test_columns_order_and_number_of_rows_are_chosen(tmp_path: Path) -> None:
    path = tmp_path / "out.jsonl"
    with store(path) as rows:
        for number, sure in enumerate([-0.5, None, -2.0, -1.0]):
            page = dataclasses.replace(
                record(number, f"text {number}", id=f"d.pdf#page={number + 1}"), mean_logprob=sure
            )
            rows.write(page)
        rows.write(record(4, "photo", id="p.jpg", mean_logprob=-3.0))
    chosen = ("--columns", "id,page,text", "--sort", "mean_logprob", "--limit", 4, "-o")
    expected = [
        {"id": "p.jpg", "page": None, "text": "photo"},
        {"id": "d.pdf#page=3", "page": 3, "text": "text 2"},
        {"id": "d.pdf#page=4", "page": 4, "text": "text 3"},
        {"id": "d.pdf#page=1", "page": 1, "text": "text 0"},
    ]
    call("export", path, "--to", "parquet", *chosen, tmp_path / "x.parquet")
    assert pq.read_table(tmp_path / "x.parquet").to_pylist() == expected
    call("export", path, "--to", "jsonl", *chosen, tmp_path / "x.jsonl")
    found = [json.loads(line) for line in (tmp_path / "x.jsonl").read_text().splitlines()]
    assert found == expected
    assert [list(row) for row in found] == [["id", "page", "text"]] * 4
    said = call("export", path, "--to", "csv", *chosen, "-").stdout.splitlines()
    assert said[:2] == ["id,page,text", "p.jpg,,photo"]
    last = call("export", path, "--to", "csv", "--sort", "mean_logprob", "-o", "-").stdout
    assert last.splitlines()[-1].startswith("d.pdf#page=2,")  # a row without a value


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--to", "csv", "--columns", "id,colour"], "no column 'colour'; it has id, source"),
        (["--to", "csv", "--sort", "colour"], "no column 'colour'"),
        (["--to", "txt", "--limit", "2"], "go with tables, not with --to txt"),
    ],
)
def test_a_layout_that_there_is_not_is_refused(
    output: Path, arguments: list[str], said: str
) -> None:
    result = CliRunner().invoke(cli, ["export", str(output), *arguments])
    assert isinstance(result.exception, JobError)
    assert said in str(result.exception)
