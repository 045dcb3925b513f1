"""Whatever stands in a manifest or archive: opening it may be refused, and every other fault is an
Item that fails.
"""

from __future__ import annotations

import io
import json
import os
import tarfile
import zipfile
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.media import write_picture
from tests.read.bundles.test_archives import PACKERS
from vlmbatch.errors import ItemError, JobError
from vlmbatch.job import Job
from vlmbatch.read import open_reader

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")

QUICK = settings(
    max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)

JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.sampled_from(["a.png", "data:,x", "file://[x]/a", "https://[/x", "a\0b", "\ud800", "=/"])
    | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["bytes", "path", "x"]), inner, max_size=2)
    ),
    max_leaves=6,
)
ROW = st.dictionaries(
    st.sampled_from(["path", "image", "url", "bytes", "id", "question", "label"]), JSON
)
BYTES = st.one_of(
    st.binary(max_size=300), st.text(max_size=200).map(lambda text: text.encode("utf-8", "replace"))
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("fuzz")
    write_picture(root / "a.png")
    return root


def check(path: Path, **options: Any) -> int | None:
    """Reads a file in all ways; gives the number of Items, or None if it was refused."""
    messages: list[str] = []
    number = read(path, messages, **options)
    assert all(len(message.splitlines()) == 1 for message in messages)
    return number


def read(path: Path, messages: list[str], **options: Any) -> int | None:
    job = Job(inputs=(str(path),), **options)
    try:
        reader = open_reader(job)
        counted = sum(1 for _ in open_reader(job, names_only=True))
    except JobError as refusal:
        messages.append(str(refusal))
        return None
    found = list(reader)
    assert len(found) <= counted  # a path given twice counts twice where cells are not read
    assert len({(item.id, item.questions) for item in found}) == len(found)
    for item in found:
        assert item.id.encode()
        assert item.source.encode()
        assert json.dumps(dict(item.extra), default=str)
        try:
            item.load()
        except ItemError as failure:
            messages.append(str(failure))
    return len(found)


@pytest.mark.parametrize(
    "suffix", ["txt", "csv", "tsv", "jsonl", "parquet", "zip", "tar", "tar.gz", "tgz"]
)
@QUICK
@given(data=BYTES)
def test_any_bytes(folder: Path, suffix: str, data: bytes) -> None:
    (folder / f"any.{suffix}").write_bytes(data)
    check(folder / f"any.{suffix}")


@QUICK
@given(rows=st.lists(ROW, min_size=1, max_size=6))
def test_any_rows_of_json(folder: Path, rows: list[dict[str, Any]]) -> None:
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    asked = {"task": "vqa", "questions": ("What?",)}
    keys = {key for row in rows for key in row}
    for options in ({}, asked, {"keep": ("label",)} if "label" in keys else {}):
        number = check(folder / "rows.jsonl", **options)
        assert number is None or number <= len(rows)


@QUICK
@given(
    rows=st.lists(st.lists(st.text(alphabet='ab.png,;"\n\r\t\0\ufeff ', max_size=8), max_size=4)),
    header=st.sampled_from(["path,id", "path;id", "path", "path\tid", "path,path", 'path,"id']),
)
def test_any_csv(folder: Path, rows: list[list[str]], header: str) -> None:
    text = "\n".join([header, *(",".join(row) for row in rows)])
    (folder / "t.csv").write_bytes(text.encode())
    check(folder / "t.csv")


CELLS: dict[str, tuple[pa.DataType, st.SearchStrategy[Any]]] = {
    "text": (pa.string(), st.text(max_size=9) | st.just("a.png")),
    "large text": (pa.large_string(), st.text(max_size=9)),
    "bytes": (pa.binary(), st.binary(max_size=20)),
    "fixed bytes": (pa.binary(4), st.binary(min_size=4, max_size=4)),
    "numbers": (pa.int64(), st.integers(-(2**63), 2**63 - 1)),
    "floats": (pa.float32(), st.floats(width=32)),
    "days": (pa.date32(), st.integers(-(2**31), 2**31 - 1)),
    "seconds": (pa.timestamp("s"), st.integers(-(2**53), 2**53)),
    "nanoseconds": (pa.timestamp("ns", "UTC"), st.integers(-(2**63) + 1, 2**63 - 1)),
    "durations": (pa.duration("s"), st.integers(-(2**63) + 1, 2**63 - 1)),
    "lists": (pa.list_(pa.string()), st.lists(st.text(max_size=3), max_size=2)),
    "decimals": (pa.decimal128(5, 2), st.decimals(-99, 99, places=2)),
    "maps": (pa.map_(pa.string(), pa.int32()), st.lists(st.tuples(st.text(), st.just(1)))),
    "structs": (
        pa.struct([("bytes", pa.binary()), ("path", pa.string())]),
        st.fixed_dictionaries({"bytes": st.none() | st.binary(max_size=9), "path": st.text()}),
    ),
}


@pytest.mark.parametrize("kind", CELLS)
@pytest.mark.parametrize("role", ["path", "id", "question", "label"])
@settings(parent=QUICK, max_examples=8)
@given(data=st.data())
def test_any_type_of_a_parquet_column(
    folder: Path, kind: str, role: str, data: st.DataObject
) -> None:
    arrow, strategy = CELLS[kind]
    cells = data.draw(st.lists(st.none() | strategy, min_size=1, max_size=5))
    columns: dict[str, Any] = {"path": ["a.png"] * len(cells), role: pa.array(cells, arrow)}
    pq.write_table(pa.table(columns), folder / "t.parquet")
    options: dict[str, Any] = {"keep": ("label",)} if role == "label" else {}
    number = check(folder / "t.parquet", path_column="path", **options)
    if role != "path":
        assert number is not None


@pytest.mark.parametrize("size", [1, 5])
@QUICK
@given(data=st.data())
def test_a_parquet_file_with_some_bytes_overwritten(
    folder: Path, size: int, data: st.DataObject
) -> None:
    table = pa.table({"path": ["a.png"] * 20, "id": [f"{number}" for number in range(20)]})
    pq.write_table(table, folder / "whole.parquet", row_group_size=5)
    content = bytearray((folder / "whole.parquet").read_bytes())
    place = data.draw(st.integers(0, len(content) - size))
    content[place : place + size] = data.draw(st.binary(min_size=size, max_size=size))
    (folder / "hurt.parquet").write_bytes(content)
    check(folder / "hurt.parquet")


NAMES = st.sampled_from(
    ["a.png", "b/c.pdf", "../up.png", "/abs.png", "c:x.png", "a.json", "a.txt", "é.png", ".h.png"]
) | st.text(max_size=6).map(lambda text: text.replace("\0", "") + ".png")
CONTENTS = st.binary(max_size=40) | st.sampled_from([b'{"label": [1]}', b"%PDF-1.4", b"[" * 9_000])


@pytest.mark.parametrize("kind", ["zip", *PACKERS])
@settings(parent=QUICK, max_examples=15)
@given(data=st.data(), entries=st.lists(st.tuples(NAMES, CONTENTS), max_size=5))
def test_any_archive_whole_and_damaged(
    folder: Path, kind: str, data: st.DataObject, entries: list[tuple[str, bytes]]
) -> None:
    held = io.BytesIO()
    if kind == "zip":
        with zipfile.ZipFile(held, "w", zipfile.ZIP_DEFLATED) as archive:
            for name, content in entries:
                archive.writestr(name.encode("utf-8", "replace").decode(), content)
    else:
        with tarfile.open(fileobj=held, mode="w") as tar:
            for name, content in entries:
                info = tarfile.TarInfo(os.fsdecode(name.encode("utf-8", "replace")))
                info.type = data.draw(
                    st.sampled_from([tarfile.REGTYPE, tarfile.LNKTYPE, tarfile.SYMTYPE])
                )
                info.linkname = data.draw(NAMES).encode("utf-8", "replace").decode()
                info.size = len(content) if info.type == tarfile.REGTYPE else 0
                tar.addfile(info, io.BytesIO(content))
    whole = held.getvalue() if kind == "zip" else PACKERS[kind](held.getvalue())
    path = folder / f"any.{kind}"
    path.write_bytes(whole)
    check(path, keep=("label", "json=all"))
    check(path)
    place = data.draw(st.integers(0, len(whole) - 1))
    hurt = bytearray(whole)
    hurt[place : place + 3] = data.draw(st.binary(max_size=3))
    path.write_bytes(hurt)
    check(path, keep=("label",), task="vqa", questions=("What?",))
