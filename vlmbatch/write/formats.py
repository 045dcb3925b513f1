"""The file formats. A new one is a module with ``write_rows`` and ``read_rows``, and a row here."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, Protocol

from vlmbatch.errors import OutputError
from vlmbatch.write import csv, jsonl, parquet
from vlmbatch.write.columns import Kind, Row


class WriteRows(Protocol):
    """Writes rows to a binary file, in bounded memory. ``job`` goes into the file's metadata where
    the format has any; ``extra`` are carried columns; ``columns`` are those that are written, in
    this order: all of them unless given.
    """

    def __call__(
        self,
        file: BinaryIO,
        rows: Iterable[Row],
        job: dict[str, Any] | None = None,
        extra: Mapping[str, Kind] | None = None,
        columns: Sequence[str] | None = None,
    ) -> None:
        """Write every row."""


class ReadRows(Protocol):
    """Reads rows from a binary file, in bounded memory, as the values that records hold. Raises
    OutputError for a file of another kind.
    """

    def __call__(self, file: BinaryIO, columns: Sequence[str] | None = None) -> Iterator[Row]:
        """Yield rows restricted to ``columns``; without them whole, carried columns behind
        ``RECORD_FIELDS``.
        """


class Format(NamedTuple):
    """A file format.

    Attributes:
        write_rows: Writes rows.
        read_rows: Reads rows.
        require: Raises MissingDependencyError when a package is missing.
    """

    write_rows: WriteRows
    read_rows: ReadRows
    require: Callable[[], object] = lambda: None


FORMATS: dict[str, Format] = {
    ".jsonl": Format(jsonl.write_rows, jsonl.read_rows),
    ".parquet": Format(parquet.write_rows, parquet.read_rows, parquet.require),
    ".csv": Format(csv.write_rows, csv.read_rows),
}
"""Formats by the suffix of OUTPUT."""


def find_format(path: Path) -> Format:
    """Return the format of a file by its name, ready to be used.

    Raises:
        OutputError: The suffix is none of ours.
        MissingDependencyError: The format needs a package that is not installed.
    """
    found = FORMATS.get(path.suffix.lower())
    if found is None:
        raise OutputError(f"{path} is none of {', '.join(FORMATS)}")
    found.require()
    return found
