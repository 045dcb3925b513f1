"""Table files to rows: .txt (a path a line), .csv, .tsv, .jsonl and .parquet, each read front to
back in bounded memory.
"""

from __future__ import annotations

import collections
import csv
import itertools
import os
from collections.abc import Callable, Collection, Iterator

from vlmbatch.errors import JobError, ReadError, one_line
from vlmbatch.read.bundles.parquet import open_parquet
from vlmbatch.read.bundles.table import ReadRows, Rows, Table
from vlmbatch.read.files.kinds import printable, read_paths
from vlmbatch.text_files import (
    LARGEST_FIELD,
    MAX_LINES,
    delimiter_of,
    open_text,
    parse_json,
    repeated_name,
)

LINES_LOOKED_AT = 100
"""Lines of a .jsonl file whose keys are taken for its columns."""


def open_table(path: str, names: frozenset[str]) -> Table:
    """Look at a table file; its suffix says what it is.

    Args:
        path: The file.
        names: Usual names of columns, in small letters, by which a delimiter is known.

    Raises:
        JobError: It cannot be opened, or its columns cannot be read.
    """
    openers: dict[str, Callable[[], Table]] = {
        ".csv": lambda: _open_csv(path, names, ","),
        ".tsv": lambda: _open_csv(path, names, "\t"),
        ".jsonl": lambda: _open_jsonl(path),
        ".parquet": lambda: open_parquet(path),
    }
    suffix = os.path.splitext(path)[1].lower()
    try:
        table = openers.get(suffix, lambda: _open_paths(path))()
        if name := repeated_name(list(table.columns)):
            raise JobError(f"two columns are named {name!r}; rename one of them")
    except (OSError, JobError) as exc:
        raise JobError(f"manifest {printable(path)}: {one_line(exc)}") from exc
    return table._replace(rows=_ending_well(table.rows))


def _open_paths(path: str) -> Table:
    def rows(wanted: Collection[str], without_bytes: str | None) -> Rows:
        with open(path, "rb") as file:
            for line in read_paths(file):
                if line.strip():
                    yield {"path": line}

    open(path, "rb").close()
    return Table(("path",), rows)


class _Lines:
    """Lines of a CSV file, which can be given back to it.

    Attributes:
        taken: Lines of the row in hand.
    """

    def __init__(self, lines: Iterator[str]) -> None:
        self._lines, self._again = lines, collections.deque[str]()
        self.taken: list[str] = []

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        if len(self.taken) == MAX_LINES:
            raise csv.Error(f"a quote that is not closed within {MAX_LINES:,} lines")
        line = self._again.popleft() if self._again else next(self._lines, "")
        if not line and self.taken:
            raise csv.Error("a quote that is never closed")
        if not line:
            raise StopIteration
        self.taken.append(line)
        return line

    def give_back(self) -> None:
        """Take the lines behind the first one of the row for rows of their own."""
        self._again.extendleft(reversed(self.taken[1:]))


def _open_csv(path: str, names: frozenset[str], preferred: str) -> Table:
    csv.field_size_limit(max(csv.field_size_limit(), LARGEST_FIELD))

    def records() -> Iterator[list[str] | ReadError]:
        """Yield the fields of each row. One whose number of fields is wrong ends with its first
        line: the quote that made it longer was none.
        """
        with open_text(path) as file:
            delimiter = delimiter_of(file, names, preferred)
            lines = _Lines(iter(file.readline, ""))
            reader = csv.reader(lines, delimiter=delimiter)
            width = 0
            while True:
                lines.taken.clear()
                try:
                    fields = next(reader, None)
                    if fields is None:
                        return
                    if not fields:
                        continue
                    if not width or len(fields) == width:
                        width = len(fields)
                        yield fields
                        continue
                    reason = f"the row has {len(fields)} fields, the header has {width}"
                except csv.Error as exc:
                    reason = one_line(exc)
                yield ReadError(reason)
                lines.give_back()

    def rows(wanted: Collection[str], without_bytes: str | None) -> Rows:
        for fields in itertools.islice(records(), 1, None):
            yield (
                fields
                if isinstance(fields, ReadError)
                else {name: fields[at] or None for at, name in enumerate(header) if name}
            )

    first = next(records(), [])
    header = [] if isinstance(first, ReadError) else [name.strip() for name in first]
    if not any(header):
        raise JobError("no header row with the names of its columns")
    return Table(tuple(name for name in header if name), rows)


def _open_jsonl(path: str) -> Table:
    def rows(wanted: Collection[str], without_bytes: str | None) -> Rows:
        with open_text(path) as file:
            for line in file:
                if line.isspace():
                    continue
                try:
                    row = parse_json(line.removeprefix("\ufeff"))
                except ValueError as exc:
                    yield ReadError(f"not JSON: {one_line(exc)}")
                    continue
                if isinstance(row, str):
                    row = {"path": row}
                yield row if isinstance(row, dict) else ReadError("neither an object nor a text")

    columns: dict[str, None] = {}
    for row in itertools.islice(rows((), None), LINES_LOOKED_AT):
        if isinstance(row, dict):
            columns.update(dict.fromkeys(row))
    if not columns:
        raise JobError("no line of it is a JSON object")
    return Table(tuple(columns), rows)


def _ending_well(rows: ReadRows) -> ReadRows:
    """Return rows whose last one is an error when the file turns out to be damaged, or is gone."""

    def guarded(wanted: Collection[str], without_bytes: str | None) -> Rows:
        try:
            yield from rows(wanted, without_bytes)
        except Exception as exc:  # the libraries raise many kinds on damaged files
            yield ReadError(f"the file cannot be read from here on: {one_line(exc)}")

    return guarded
