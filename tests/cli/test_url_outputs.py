"""Commands that read an OUTPUT take a URL too."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import fsspec
import pytest
from click.testing import CliRunner, Result

from tests.write.rows import record, store
from vlmbatch.cli.main import cli

URL = "memory://bucket/run.parquet"


@pytest.fixture(autouse=True)
def output(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """An OUTPUT of two rows in a store, and nothing in the current folder."""
    with store(tmp_path / "run.parquet") as rows:
        for number in range(2):
            rows.write(record(number))
    files = fsspec.filesystem("memory")
    files.pipe("/bucket/run.parquet", (tmp_path / "run.parquet").read_bytes())
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    yield
    files.rm("/bucket", recursive=True)


def call(*arguments: str) -> Result:
    result = CliRunner().invoke(cli, arguments, catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result


def test_stats() -> None:
    assert json.loads(call("stats", URL, "--json").stdout)["items"] == 2
    assert call("stats", URL).stdout.startswith(f"{URL}: 2 items, 2 rows\n")


def test_export_writes_to_the_current_folder() -> None:
    call("export", URL, "--to", "jsonl")
    assert [json.loads(line)["text"] for line in Path("run.jsonl").read_text().splitlines()] == ["picture 0", "picture 1"]
    for _ in range(2):
        call("export", URL, "--to", "txt", "-o", "texts")  # the second time it knows its own files
    assert Path("texts/00001.txt").read_text() == "picture 1\n"
    assert sorted(path.name for path in Path().iterdir()) == ["run.jsonl", "run.parquet.sidecars", "texts"]


def test_eval_against_another() -> None:
    Path("right.csv").write_text("id,answer\n00000.jpg,picture 0\n00001.jpg,a cat\n")
    found = json.loads(call("eval", URL, "--reference", "right.csv", "--against", URL, "--metric", "exact", "--json").stdout)
    assert found["all"]["scores"]["exact"]["value"] == 0.5
    assert found["output"] == URL
