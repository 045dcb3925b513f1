"""A folder of pictures with ``metadata.jsonl``, which ``datasets`` loads as an ``imagefolder``.

The names of files and folders say splits there: one called ``test_1.jpg`` would become the test
split, and the rest would be left out. Inside a folder ``train`` only names of folders count. So
pictures with such names go there, side by side.
(huggingface/datasets, ``data_files.py``, ``SPLIT_KEYWORDS``.)
"""

from __future__ import annotations

import collections
import dataclasses
import json
import os
import re
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from vlmbatch.errors import NothingFound, OutputError
from vlmbatch.export.wide import WideTable
from vlmbatch.urls import is_url
from vlmbatch.write.atomic import reason, replacing
from vlmbatch.write.columns import Row, as_text
from vlmbatch.write.sources import find_outer, find_source

METADATA = "metadata.jsonl"
TRAIN = "train"
MARKER = ".vlmbatch-export"
"""Empty file in a folder that an export made. ``datasets`` leaves hidden files alone."""

_SPLIT = re.compile(
    r"(?:^|[-._ 0-9/])"
    r"(?:train|training|validation|valid|dev|val|test|testing|eval|evaluation)"
    r"(?:[-._ 0-9/]|$)"
)


@dataclasses.dataclass(frozen=True)
class Written:
    """The end of an export.

    Attributes:
        pictures: Number of pictures in the folder.
        without_answer: Number of pictures that were left out as they have no answer.
        without_file: Number of items that are no picture file of this disk.
        why_no_file: Number of these by reason.
        in_train: Whether the pictures are in a folder ``train``.
    """

    pictures: int
    without_answer: int
    without_file: int
    why_no_file: Mapping[str, int]
    in_train: bool


def write_image_folder(
    table: WideTable, folder: Path, *, link: bool = False, overwrite: bool = False
) -> Written:
    """Write a folder of pictures and answers.

    Args:
        table: The answers.
        folder: The folder; a new one, or an empty one.
        link: Make symbolic links, not copies.
        overwrite: Whether a folder that an export wrote is replaced.

    Raises:
        NothingFound: No item is a picture file with an answer.
        OutputError: It holds something, or cannot be written.
    """
    found: list[tuple[bytes, Row]] = []
    without_answer, why_no_file = 0, collections.Counter[str]()
    for row in table.rows():
        source = find_source(row["source"]) if row["media"] == "image" else None
        has_answer = any(row[name] is not None for name in table.answer_columns)
        if source is None or "#page=" in row["id"]:
            why_no_file[_why_no_file(row) if has_answer else "an error row"] += 1
        elif not has_answer:
            without_answer += 1
        else:
            found.append((source, row))
    without_file = why_no_file.total()
    if not found:
        reasons = f": {listed(why_no_file)}" if why_no_file else ""
        raise NothingFound(
            f"no picture with an answer for {folder}: {without_file} without a picture file here "
            f"(a source counts from the folder in which its run was started){reasons}; "
            f"{without_answer} without an answer"
        )
    names = [_name(row["id"]) for _, row in found]
    in_train = any(map(_SPLIT.search, names))
    if in_train:
        names = _flat(names)
    root = folder / TRAIN if in_train else folder
    try:
        _make_way(folder, overwrite, (source for source, _ in found))
        for name, (source, _) in zip(names, found, strict=True):
            _put(source, root / name, link)
        root.mkdir(parents=True, exist_ok=True)
        with replacing(root / METADATA) as file:
            for name, (_, row) in zip(names, found, strict=True):
                line = {"file_name": name, **_values(table, row)}
                file.write(json.dumps(line, ensure_ascii=False).encode() + b"\n")
    except OSError as error:
        raise OutputError(f"cannot write {folder}: {reason(error)}") from error
    return Written(len(found), without_answer, without_file, why_no_file, in_train)


def listed(reasons: Mapping[str, int]) -> str:
    """Return counts and what they count, for a message."""
    return ", ".join(f"{count} {reason}" for reason, count in reasons.items())


def _why_no_file(row: Row) -> str:
    if row["media"] != "image":
        return "of a video"
    if "#page=" in row["id"]:
        return "a page of a document"
    if is_url(row["source"]):
        return "behind a URL"
    return "inside an archive or a table" if find_outer(row["source"]) else "not found"


def _values(table: WideTable, row: Row) -> dict[str, Any]:
    """Return the columns of a picture: carried ones, and its answers. The only one is ``text``."""
    carried = {
        name: as_text(row[name]) if kind == "string" else row[name]
        for name, kind in table.carried.items()
    }
    columns = table.answer_columns
    titles = ["text"] if len(columns) == 1 and "text" not in carried else columns
    return carried | {title: row[name] for title, name in zip(titles, columns, strict=True)}


def _name(id: str) -> str:
    """Return the path of a picture in the folder."""
    return "/".join(part for part in id.split("/") if part not in ("", ".", ".."))


def _flat(names: Iterable[str]) -> list[str]:
    """Return names without folders, each of them once."""
    taken: set[str] = set()
    found = []
    for name in names:
        stem, suffix = os.path.splitext(name.replace("/", "_"))
        flat, number = stem + suffix, 1
        while flat in taken:
            number += 1
            flat = f"{stem}_{number}{suffix}"
        taken.add(flat)
        found.append(flat)
    return found


def _put(source: bytes, path: Path, link: bool) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    if link:
        os.symlink(os.path.abspath(source), os.fsencode(path))
    else:
        shutil.copyfile(source, path)


def _make_way(folder: Path, overwrite: bool, sources: Iterable[bytes]) -> None:
    """Make an empty folder, in the place of one that an export wrote.

    Raises:
        OutputError: It is something else, or may not be replaced, or has the pictures themselves.
    """
    if folder.exists() and not (folder.is_dir() and not any(folder.iterdir())):
        if not (folder / MARKER).is_file():
            raise OutputError(f"{folder} holds something else; choose an empty or a new folder")
        if not overwrite:
            raise OutputError(f"{folder} is there; --overwrite replaces it")
        inside = os.path.join(os.path.realpath(os.fsencode(folder)), b"")
        if any(os.path.realpath(source).startswith(inside) for source in sources):
            raise OutputError(f"{folder} has the pictures of OUTPUT; choose another folder")
        shutil.rmtree(folder)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / MARKER).touch()
