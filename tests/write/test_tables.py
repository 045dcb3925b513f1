"""``vlmbatch.read``: an OUTPUT of any format as the same pyarrow table."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pyarrow
import pytest
from fsspec.implementations.memory import MemoryFileSystem

import vlmbatch
from tests.write.rows import SUFFIXES, failed, record
from vlmbatch.write import row_of
from vlmbatch.write.columns import carried_kinds
from vlmbatch.write.formats import FORMATS
from vlmbatch.write.parquet import schema

RECORDS = [
    record(0, "first", extra={"price": 1.5, "label": "a"}),
    dataclasses.replace(failed(1), text=None),
    record(2, "é\n🙂", extra={"price": None, "label": "b"}, time_seconds=1.25, media="frame"),
]


def write(path: Path, records: list[vlmbatch.Record]) -> Path:
    rows = [row_of(each) for each in records]
    with open(path, "wb") as file:
        FORMATS[path.suffix].write_rows(file, rows, None, carried_kinds(rows))
    return path


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_rows_are_the_same_table_in_every_format(tmp_path: Path, suffix: str) -> None:
    table = vlmbatch.read(write(tmp_path / f"out.{suffix}", RECORDS))
    assert isinstance(table, pyarrow.Table)
    assert table.schema.names[: len(schema())] == schema().names
    assert table.select(schema().names).schema.equals(schema())
    assert table["text"].to_pylist() == ["first", None, "é\n🙂"]
    assert table["error"].to_pylist()[1]
    assert table["time_seconds"].to_pylist() == [None, None, 1.25]
    assert table["created_at"][0].as_py().isoformat() == "2026-01-31T12:00:00.123000+00:00"
    carried = [("1.5", "a"), (None, None), (None, "b")]
    if suffix != "csv":  # which knows texts only
        carried = [(1.5, "a"), (None, None), (None, "b")]  # type: ignore[list-item]
    assert (
        list(zip(*(table[name].to_pylist() for name in ("price", "label")), strict=True)) == carried
    )


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_some_columns_in_the_order_asked_for(tmp_path: Path, suffix: str) -> None:
    path = write(tmp_path / f"out.{suffix}", RECORDS)
    assert vlmbatch.read(path, ["text", "id"]).to_pydict() == {
        "text": ["first", None, "é\n🙂"],
        "id": ["00000.jpg", "00001.jpg", "00002.jpg"],
    }
    assert vlmbatch.read(str(path), "label")["label"].to_pylist() == ["a", None, "b"]
    with pytest.raises(vlmbatch.OutputError, match="has no column 'txet'; it has id, source"):
        vlmbatch.read(path, ["txet"])


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_an_output_without_rows_is_an_empty_table(tmp_path: Path, suffix: str) -> None:
    table = vlmbatch.read(write(tmp_path / f"out.{suffix}", []))
    assert (table.num_rows, table.schema.names) == (0, schema().names)


def test_more_rows_than_a_group_come_in_order(tmp_path: Path) -> None:
    path = write(tmp_path / "out.jsonl", [record(number) for number in range(9000)])
    assert vlmbatch.read(path, ["index"])["index"].to_pylist() == list(range(9000))


def test_an_output_in_a_store(tmp_path: Path) -> None:
    store = MemoryFileSystem()
    store.pipe("/tables/out.jsonl", write(tmp_path / "out.jsonl", RECORDS).read_bytes())
    assert vlmbatch.read("memory://tables/out.jsonl").num_rows == 3
    store.rm("/tables", recursive=True)
    with pytest.raises(vlmbatch.OutputError, match="no such file"):
        vlmbatch.read("memory://tables/out.jsonl")


def test_what_is_no_output_is_said(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text("{}\n")
    for name, message in (
        ("a.jsonl", "was not written by vlmbatch"),
        ("gone.csv", "cannot read"),
        ("a.txt", "is none of"),
    ):
        with pytest.raises(vlmbatch.OutputError, match=message):
            vlmbatch.read(tmp_path / name)
