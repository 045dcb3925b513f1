"""Documents are their pages wherever they lie: in archives, cells of tables, behind URLs."""

from __future__ import annotations

import base64
import gc
import json
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.read.bundles.test_archives import PACKERS, error, write_tar, write_zip
from tests.read.pictures.test_pages import colour_of, items, write_pages
from vlmbatch.core import Item
from vlmbatch.job import Job
from vlmbatch.read import open_reader

Wrap = Callable[[Path, str, bytes], str]
"""Puts a file of a name and bytes into a folder, somehow; returns the INPUT."""


def in_archive(kind: str) -> Wrap:
    def wrap(folder: Path, name: str, data: bytes) -> str:
        write = write_zip if kind == "zip" else write_tar
        return str(write(folder / f"a.{kind}", [(name, data)]))

    return wrap


def in_struct(folder: Path, name: str, data: bytes) -> str:
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    table = pa.table({"image": pa.array([{"bytes": data, "path": name}], kind)})
    pq.write_table(table, folder / "struct.parquet")
    return str(folder / "struct.parquet")


def in_bytes(folder: Path, name: str, data: bytes) -> str:
    pq.write_table(pa.table({"id": [name], "page": [data]}), folder / "bytes.parquet")
    return str(folder / "bytes.parquet")


def in_base64(folder: Path, name: str, data: bytes) -> str:
    row = {"id": name, "image": base64.b64encode(data).decode()}
    (folder / "t.jsonl").write_text(json.dumps(row))
    return str(folder / "t.jsonl")


def in_manifest(folder: Path, name: str, data: bytes) -> str:
    (folder / name).write_bytes(data)
    (folder / "list.txt").write_text(f"{name}\n")
    return str(folder / "list.txt")


def in_store(folder: Path, name: str, data: bytes) -> str:
    fsspec.filesystem("memory").pipe(f"/documents/{name}", data)
    return f"memory://documents/{name}"


WRAPS: dict[str, Wrap] = {
    **{kind: in_archive(kind) for kind in ("zip", *PACKERS)},
    "struct": in_struct,
    "bytes": in_bytes,
    "base64": in_base64,
    "manifest": in_manifest,
    "store": in_store,
}


@pytest.fixture(params=WRAPS)
def wrap(request: pytest.FixtureRequest) -> Iterator[Wrap]:
    yield WRAPS[request.param]
    store = fsspec.filesystem("memory")
    if store.exists("/documents"):
        store.rm("/documents", recursive=True)


@pytest.fixture
def copies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where temporary copies are made."""
    (tmp_path / "copies").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "copies"))
    return tmp_path / "copies"


def document(tmp_path: Path, name: str = "d.pdf", count: int = 3) -> bytes:
    path = write_pages(tmp_path / "made" / name, count)
    return path.read_bytes()


def pages_of(found: list[Item]) -> list[tuple[str, int]]:
    """The end of each id, and the colour that its page has."""
    return [(item.id.partition("d.")[2], colour_of(item)) for item in found]


def test_a_document_is_its_pages(tmp_path: Path, wrap: Wrap, copies: Path) -> None:
    given = wrap(tmp_path, "d.pdf", document(tmp_path))
    assert pages_of(items(given)) == [(f"pdf#page={number}", number) for number in (1, 2, 3)]
    gc.collect()
    assert list(copies.iterdir()) == []


@pytest.mark.parametrize("name", ["d.pdf", "d.tif", "d.gif"])
def test_pages_that_are_asked_for(tmp_path: Path, wrap: Wrap, name: str) -> None:
    given = wrap(tmp_path, name, document(tmp_path, name))
    suffix = name.partition(".")[2]
    assert pages_of(items(given, pages="2-3")) == [
        (f"{suffix}#page=2", 2),
        (f"{suffix}#page=3", 3),
    ]
    assert pages_of(items(given, pages="1")) == [(suffix, 1)]


def test_pages_are_counted_without_being_drawn(tmp_path: Path, wrap: Wrap) -> None:
    given = wrap(tmp_path, "d.pdf", document(tmp_path))
    counted = list(open_reader(Job(inputs=(given,)), names_only=True))
    assert [item.id for item in counted] == [item.id for item in items(given)]
    several = list(open_reader(Job(inputs=(given,), pages="2-"), names_only=True))
    assert [item.id for item in several] == [item.id for item in items(given, pages="2-")]


def test_a_broken_document_is_one_error(tmp_path: Path, wrap: Wrap) -> None:
    (item,) = items(wrap(tmp_path, "d.pdf", b"%PDF-1.7 and no more" + bytes(100)))
    assert error(item).startswith("broken PDF")


def test_a_document_is_held_on_the_disk_not_in_memory(tmp_path: Path, wrap: Wrap) -> None:
    found = items(wrap(tmp_path, "d.pdf", document(tmp_path)))
    assert [item.held_bytes for item in found] == [0, 0, 0]


@pytest.mark.parametrize("name", ["report", "d.png"])
def test_a_document_whose_name_hides_it_is_not_cut_to_its_first_page_in_silence(
    tmp_path: Path, name: str
) -> None:
    given = in_store(tmp_path, name, document(tmp_path))
    (item,) = items(given)
    assert error(item).startswith("a PDF of 3 pages whose name does not say so; name it .pdf")
    assert colour_of(items(given, pages="1")[0]) == 1
    assert colour_of(items(in_store(tmp_path, name, document(tmp_path, count=1)))[0]) == 1
    fsspec.filesystem("memory").rm("/documents", recursive=True)


def test_a_file_without_an_extension_is_known_by_its_first_bytes(tmp_path: Path) -> None:
    (tmp_path / "scan").write_bytes(document(tmp_path))
    assert [item.id for item in items(tmp_path / "scan")] == [
        f"scan#page={number}" for number in (1, 2, 3)
    ]


def test_several_documents_in_a_table_are_several(tmp_path: Path) -> None:
    data: list[Any] = [document(tmp_path), document(tmp_path, "d.png", 1), document(tmp_path)]
    pq.write_table(pa.table({"id": ["a", "b", "c"], "page": data}), tmp_path / "t.parquet")
    expected = ["a#page=1", "a#page=2", "a#page=3", "b", "c#page=1", "c#page=2", "c#page=3"]
    found = items(tmp_path / "t.parquet")
    assert [item.id for item in found] == expected
    assert [item.place[0] for item in found] == [0, 0, 0, 1, 2, 2, 2]
    counted = open_reader(Job(inputs=(str(tmp_path / "t.parquet"),)), names_only=True)
    assert [item.id for item in counted] == expected


@pytest.mark.parametrize("kind", ["zip", "tar"])
def test_pages_that_wait_to_be_shuffled_keep_no_copies(
    tmp_path: Path, copies: Path, kind: str
) -> None:
    write = write_zip if kind == "zip" else write_tar
    entries = [(f"{number}/d.pdf", document(tmp_path)) for number in range(4)]
    found = items(write(tmp_path / f"a.{kind}", entries), shuffle=True)
    gc.collect()
    assert list(copies.iterdir()) == []
    assert pages_of(found[:3]) == [(f"pdf#page={number}", number) for number in (1, 2, 3)]
