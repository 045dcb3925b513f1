"""Lists and tables as spreadsheets and shells write them: encodings, delimiters, headers."""

from __future__ import annotations

import codecs
from pathlib import Path
from typing import Any

import pytest

from tests.media import write_picture
from vlmbatch.core import Item
from vlmbatch.errors import ItemError, JobError
from vlmbatch.job import Job
from vlmbatch.read import open_reader

ENCODINGS = {
    "utf-8": b"",
    "utf-8-sig": b"",
    "utf-16-le": codecs.BOM_UTF16_LE,
    "utf-16-be": codecs.BOM_UTF16_BE,
    "utf-32-le": codecs.BOM_UTF32_LE,
    "utf-32-be": codecs.BOM_UTF32_BE,
}
"""Encodings, and the byte order mark that Python does not write by itself."""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("größe.png", "b;c.png", "d.png"):
        write_picture(tmp_path / name)
    return tmp_path


def write(path: Path, text: str, encoding: str = "utf-8") -> Path:
    path.write_bytes(ENCODINGS[encoding] + text.encode(encoding))
    return path


def items(path: Path, **options: Any) -> list[Item]:
    return list(open_reader(Job(inputs=(str(path),), **options)))


def ids(found: list[Item]) -> list[str]:
    """The ids of those that can be loaded."""
    loaded = []
    for item in found:
        try:
            item.load()
        except ItemError:
            continue
        loaded.append(item.id)
    return loaded


@pytest.mark.parametrize("encoding", ENCODINGS)
@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("list.txt", "größe.png\r\nd.png\r\n"),
        ("list.txt", "größe.png\nd.png"),
        ("t.csv", "path,note\r\ngröße.png,x\r\nd.png,y\r\n"),
        ("t.tsv", "path\tnote\ngröße.png\tx\nd.png\ty\n"),
        ("t.jsonl", '{"path": "größe.png"}\n"d.png"\n'),
    ],
)
def test_a_byte_order_mark_says_the_encoding(
    folder: Path, encoding: str, name: str, text: str
) -> None:
    assert ids(items(write(folder / name, text, encoding))) == ["größe.png", "d.png"]


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("t.csv", "id;path;note\n1;d.png;a, b, c\n"),
        ("t.csv", "id,path,note\n1,d.png,a; b; c\n"),
        ("t.csv", "id\tpath\tnote\n1\td.png\ta, b; c\n"),
        ("t.tsv", "id\tpath\tnote\n1\td.png\ta, b; c\n"),
        ("t.tsv", "id,path\n1,d.png\n"),
        ("t.csv", "path;a note, with a comma, and another\nd.png;x\n"),
        ("t.csv", "sep=;\r\nid;path\r\n1;d.png\r\n"),
        ("t.csv", 'id;"path"\n1;"d.png"\n'),
        ("t.csv", "path\nd.png\n"),
        ("t.csv", "Path;Größe;Größe, außen\nd.png;1,5;2,5\n"),
    ],
)
def test_the_header_decides_the_delimiter(folder: Path, name: str, text: str) -> None:
    assert len(ids(items(write(folder / name, text)))) == 1


def test_a_column_that_was_chosen_decides_the_delimiter(folder: Path) -> None:
    path = write(folder / "t.csv", "Bild;a,b,c,d\nd.png;1\n")
    assert ids(items(path, path_column="Bild")) == ["d.png"]


def test_a_list_of_paths_has_no_delimiter(folder: Path) -> None:
    assert ids(items(write(folder / "list.txt", "b;c.png\nd.png\n"))) == ["b;c.png", "d.png"]


@pytest.mark.parametrize(
    ("name", "text"),
    [("t.csv", "path,id,path\nd.png,1,d.png\n"), ("t.tsv", "path\tnote\tnote\nd.png\t1\t2\n")],
)
def test_a_column_named_twice_is_refused(folder: Path, name: str, text: str) -> None:
    with pytest.raises(JobError, match=rf"{name}: two columns are named '(path|note)'; rename"):
        items(write(folder / name, text))


def test_columns_without_a_name_are_left_out(folder: Path) -> None:
    assert ids(items(write(folder / "t.csv", "path,note,,\nd.png,x,,\n"))) == ["d.png"]
