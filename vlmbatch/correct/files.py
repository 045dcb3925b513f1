"""Corrections as people write them: tables, or the edited text files beside pictures."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from vlmbatch.errors import JobError, one_line
from vlmbatch.text_files import ID_COLUMNS, PROMPT_COLUMNS, read_rows, read_text
from vlmbatch.write import is_stretch, make_content
from vlmbatch.write.columns import Row, clean_text
from vlmbatch.write.records import file_name
from vlmbatch.write.sidecars.folder_index import FolderIndexes

TEXT_COLUMNS = ("text", "caption", "answer")
_KNOWN = frozenset((*ID_COLUMNS, *TEXT_COLUMNS, *PROMPT_COLUMNS, "task"))


class NewText(NamedTuple):
    """A row and a text for it. ``is_ours``: vlmbatch wrote that text, and nobody edited it."""

    row: Row
    text: str
    is_ours: bool = False


class Corrections(Protocol):
    """Corrections for the rows of an OUTPUT."""

    def of(self, rows: Sequence[Row]) -> Iterator[NewText]:
        """Yield the rows about a picture or video for which there is a text, with that text."""
        ...

    def unused(self) -> list[str]:
        """Return what no row took, each with the reason. Called after the last row."""
        ...


class Correction(NamedTuple):
    """A row of a table of corrections; None stands for any prompt or task."""

    number: int
    text: str
    prompt: str | None
    task: str | None


class FileCorrections:
    """Corrections in a .jsonl or .csv file. Rows without a text correct nothing.

    Raises:
        JobError: It cannot be read or understood; the message names the line.
    """

    def __init__(self, path: Path) -> None:
        if path.suffix.lower() not in (".jsonl", ".csv"):
            raise JobError(
                f"corrections {path}: give a .jsonl or .csv file, or the folder of .txt files"
            )
        self._path = path
        self._by_id: dict[str, list[Correction]] = {}
        self._used: set[int] = set()
        try:
            for number, row in read_rows(str(path), _KNOWN):
                self._add(number, row)
        except JobError:
            raise
        except (OSError, ValueError) as error:
            raise JobError(f"corrections {path}: {one_line(error)}") from error

    def _add(self, number: int, row: dict[str, Any]) -> None:
        where = f"corrections {self._path}, line {number}"
        names = [next((n for n in known if n in row), None) for known in (ID_COLUMNS, TEXT_COLUMNS)]
        if None in names:
            wanted = " or ".join(ID_COLUMNS if names[0] is None else TEXT_COLUMNS)
            there = ", ".join(str(name) for name in row if name is not None) or "nothing"
            raise JobError(f"{where}: no column named {wanted}; there is {there}")
        item, text = (row[name] for name in names if name is not None)
        if item is None or text is None or not str(text).strip():
            return
        prompt = next((row[name] for name in PROMPT_COLUMNS if row.get(name)), None)
        found = Correction(number, str(text), prompt, row.get("task") or None)
        self._by_id.setdefault(clean_text(str(item)), []).append(found)

    def of(self, rows: Sequence[Row]) -> Iterator[NewText]:
        """Yield the rows that the file has a text for.

        Raises:
            JobError: A correction is for several rows.
        """
        takers: dict[int, Row] = {}
        for row in rows:
            for found in self._by_id.get(row["id"], ()):
                if found.prompt not in (None, row["prompt"]) or found.task not in (
                    None,
                    row["task"],
                ):
                    continue
                if found.number in takers:
                    raise JobError(
                        f"corrections {self._path}, line {found.number}: {row['id']!r} has several "
                        "rows: add a column prompt, or task"
                    )
                takers[found.number] = row
                yield NewText(row, found.text)
        self._used |= takers.keys()

    def unused(self) -> list[str]:
        """Return the rows of the file that no row of OUTPUT took."""
        left = sorted(
            (found.number, item)
            for item, every in self._by_id.items()
            for found in every
            if found.number not in self._used
        )
        return [f"line {number}: OUTPUT has no such row of {item!r}" for number, item in left]


class FolderCorrections:
    """Corrections in the ``.txt`` sidecars of a folder, which are in it as the ids say:
    ``2019/photo.txt`` or ``2019/photo.jpg.txt`` for ``2019/photo.jpg``.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._indexes = FolderIndexes()
        self._taken: set[Path] = set()
        self._unused: list[str] = []

    def of(self, rows: Sequence[Row]) -> Iterator[NewText]:
        """Yield the row that the sidecar is of.

        Raises:
            JobError: A sidecar cannot be read.
        """
        name = file_name(rows[0]["id"])
        path = self._sidecar(name)
        if path is None:
            return
        self._taken.add(path)
        try:
            text = read_text(str(path))
            is_ours = self._indexes.has(os.fsencode(path), path.read_bytes())
        except (OSError, ValueError) as error:
            raise JobError(f"{path}: {one_line(error)}") from error
        is_single = len(rows) == 1 and not is_stretch(rows[0])
        if is_single:
            if text:
                yield NewText(rows[0], text, is_ours)
        elif not is_ours and text != (make_content("txt", rows) or b"").decode().strip():
            self._unused.append(
                f"{path} has the answers of several rows of {name!r}: correct these in a .csv or "
                ".jsonl with a column id"
            )

    def _sidecar(self, name: str) -> Path | None:
        parts = [part for part in name.split("/") if part not in ("", ".", "..")]
        whole = self._folder.joinpath(*parts)
        for path in (whole.with_name(f"{whole.name}.txt"), whole.with_suffix(".txt")):
            if path not in self._taken and path.is_file():
                return path
        return None

    def unused(self) -> list[str]:
        """Return the sidecars whose text cannot be told apart by rows."""
        return self._unused
