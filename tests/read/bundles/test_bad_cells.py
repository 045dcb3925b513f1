"""One bad cell is one error row, in every format; a value that cannot be carried is null."""

from __future__ import annotations

import datetime
import json
import logging
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.media import write_picture
from tests.read.bundles.test_archives import error, write_tar, write_zip
from tests.read.bundles.test_manifests import write_jsonl
from vlmbatch.core import Item
from vlmbatch.errors import ItemError
from vlmbatch.job import Job
from vlmbatch.read import Reader, open_reader

DEEP = "[" * 100_000 + "]" * 100_000
"""More levels than any parser follows."""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_picture(tmp_path / "a.png")
    return tmp_path


def read(path: Path, **options: Any) -> tuple[Reader, list[Item]]:
    reader = open_reader(Job(inputs=(str(path),), **options))
    return reader, list(reader)


def failures(found: list[Item]) -> dict[str, str]:
    """The errors by id."""
    failed = {}
    for item in found:
        try:
            item.load()
        except ItemError as exc:
            failed[item.id] = str(exc)
    return failed


def text_column(cells: list[bytes]) -> pa.Array:
    """A column of text whose cells need not be UTF-8, as careless writers make it."""
    return pa.Array.from_buffers(
        pa.string(), len(cells), pa.array(cells, pa.binary()).buffers(), null_count=0
    )


BAD_LINES = [
    '{"path": {"bytes": [137, 80]}, "id": "bad"}',
    '{"path": "file://[2024]/a.png", "id": "bad"}',
    '{"path": "a\\u0000.png", "id": "bad"}',
    '{"path": "\\ud800.png", "id": "bad"}',
    '{"path": true, "id": "bad"}',
    '{"path": {"bytes": 7}, "id": "bad"}',
    '{"path": {"path": 7}, "id": "bad"}',
    '{"path": {}, "id": "bad"}',
    '{"path": NaN, "id": "bad"}',
    '{"path": "data:", "id": "bad"}',
    '{"path": "https://[::1/a.png", "id": "bad"}',
]


@pytest.mark.parametrize("line", BAD_LINES)
def test_a_bad_line_of_json_is_one_error_with_its_id(folder: Path, line: str) -> None:
    good = [json.dumps({"path": "a.png", "id": str(number)}) for number in range(60)]
    _, found = read(write_jsonl(folder / "t.jsonl", [*good[:50], line, *good[50:]]))
    assert [item.id for item in found] == [*map(str, range(50)), "bad", *map(str, range(50, 60))]
    assert list(failures(found)) == ["bad"]


@pytest.mark.parametrize(
    "line", [DEEP, f'{{"path": "a.png", "more": {DEEP}}}', "1" * 10_000, '"\\u0000"', "nul", "{"]
)
def test_a_line_that_cannot_be_parsed_is_one_error(folder: Path, line: str) -> None:
    good = {"path": "a.png", "id": "x"}
    _, found = read(write_jsonl(folder / "t.jsonl", [good, line, {**good, "id": "y"}]))
    assert [item.id for item in found if item.id not in failures(found)] == ["x", "y"]
    assert len(found) == 3


def test_an_id_or_question_that_is_no_text_is_one_row(folder: Path) -> None:
    rows = [
        {"path": "a.png", "question": "Why?", "id": "first"},
        {"path": "a.png", "question": {"en": "Why?"}, "id": "object"},
        {"path": "a.png", "question": "\ud800", "id": "half a character"},
        {"path": "a.png", "question": "a <image>?", "id": "token"},
        {"path": "a.png", "question": "Who?", "id": {"deep": []}},
    ]
    _, found = read(write_jsonl(folder / "t.jsonl", rows), task="vqa")
    assert set(failures(found)) == {"object", "half a character", "token"}
    assert len(found) == 5


def test_a_url_that_is_none_in_a_list_is_one_error(folder: Path) -> None:
    (folder / "list.txt").write_text("a.png\nfile://[2024]/a.png\nfile://x/%00.png\na.png/b.png\n")
    _, found = read(folder / "list.txt")
    assert len(found) == 4
    assert len(failures(found)) == 3


def test_text_that_is_not_utf8_costs_its_own_row_of_a_parquet_file(folder: Path) -> None:
    cells = [b"a.png"] * 50 + [b"caf\xe9.png"] + [b"a.png"] * 49
    ids = [f"r{number}" for number in range(100)]
    pq.write_table(pa.table({"path": text_column(cells), "id": ids}), folder / "t.parquet")
    _, found = read(folder / "t.parquet")
    assert [item.id for item in found] == ids
    assert list(failures(found)) == ["r50"]
    assert "cell cannot be read: 'utf-8'" in failures(found)["r50"]


def test_values_that_cannot_be_carried_are_null_counted_and_the_picture_is_asked_about(
    folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    far = pa.array([0, 400_000_000_000, None], pa.timestamp("s"))
    notes = text_column([b"caf\xe9", b"b", b"c"])
    table = pa.table({"path": ["a.png"] * 3, "id": list("xyz"), "when": far, "note": notes})
    pq.write_table(table, folder / "t.parquet")
    with caplog.at_level(logging.WARNING):
        reader, found = read(folder / "t.parquet", keep=("when", "note"))
    assert failures(found) == {}
    assert [dict(item.extra) for item in found] == [
        {"when": datetime.datetime(1970, 1, 1), "note": None},
        {"when": None, "note": "b"},
        {"when": None, "note": "c"},
    ]
    assert reader.counts.values_not_carried == 2
    assert caplog.messages == ["2 values of --keep cannot be carried and are null in OUTPUT"]


def test_a_value_nested_too_deeply_to_be_written_is_null(folder: Path) -> None:
    rows = ['{"path": "a.png", "more": ' + "[" * 70 + "]" * 70 + "}"]
    reader, (item,) = read(write_jsonl(folder / "t.jsonl", rows), keep=("more",))
    assert item.extra == {"more": None}
    assert reader.counts.values_not_carried == 1
    assert item.load()


def test_a_damaged_group_of_a_parquet_file_costs_its_own_rows(folder: Path) -> None:
    table = pa.table({"path": ["a.png"] * 9, "id": [f"r{number}" for number in range(9)]})
    path = folder / "t.parquet"
    pq.write_table(table, path, row_group_size=3, compression="none", use_dictionary=False)
    place = pq.read_metadata(path).row_group(1).column(0).data_page_offset
    data = bytearray(path.read_bytes())
    data[place : place + 20] = b"\xff" * 20
    path.write_bytes(data)
    _, found = read(path)
    assert [item.id for item in found] == [
        *("r0", "r1", "r2"),
        *(f"t.parquet#row={number}" for number in (3, 4, 5)),
        *("r6", "r7", "r8"),
    ]
    assert len(failures(found)) == 3


def test_a_quote_that_is_never_closed_costs_its_own_row(folder: Path) -> None:
    lines = ["path,note", "a.png,x", 'a.png,"y', "a.png,z", 'a.png,"two\nlines"', "a.png,w"]
    (folder / "t.csv").write_text("\n".join(lines) + "\n")
    _, found = read(folder / "t.csv", keep=("note",))
    notes = [item.extra["note"] for item in found if item.id not in failures(found)]
    assert notes[0] == "x"
    assert notes[-1] == "w"
    (folder / "t.csv").write_text("\n".join(["path,note", 'a.png,"y', *["a.png,z"] * 51]))
    _, found = read(folder / "t.csv")
    assert list(failures(found).values()) == ["a quote that is never closed"]
    assert len(found) == 2  # the other rows name one path, which is taken once


@pytest.mark.parametrize("kind", ["zip", "tar", "tar.gz"])
@pytest.mark.parametrize("sidecar", [DEEP.encode(), b"\xff\xfe", b"[1", b'{"label": 1e999999}'])
def test_a_bad_sidecar_costs_its_own_sample(folder: Path, kind: str, sidecar: bytes) -> None:
    data = (folder / "a.png").read_bytes()
    entries = [("0.json", sidecar), ("0.png", data), ("1.png", data), ("1.json", b'{"label": 7}')]
    write = write_zip if kind == "zip" else write_tar
    _, found = read(write(folder / f"a.{kind}", entries), keep=("label",))
    assert [item.extra["label"] for item in found][1] == 7
    assert found[1].load()
    if not sidecar.startswith(b"{"):
        assert error(found[0]) == "0.json beside it: not JSON"


def test_a_whole_sidecar_that_is_nested_too_deeply_is_null(folder: Path) -> None:
    data = (folder / "a.png").read_bytes()
    deep = b'{"label": 1, "more": ' + b"[" * 70 + b"]" * 70 + b"}"
    path = write_zip(folder / "a.zip", [("0.json", deep), ("0.png", data)])
    reader, (item,) = read(path, keep=("json=all", "label"))
    assert item.extra == {"all": None, "label": 1}
    assert reader.counts.values_not_carried == 1
