"""Reading an OUTPUT: its rows in order, those of one picture or video after the other, or all as a
table.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import re
from array import array
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

import numpy as np

from vlmbatch.core import RECORD_FIELDS
from vlmbatch.errors import OutputError
from vlmbatch.urls import without_credentials
from vlmbatch.write.atomic import reason
from vlmbatch.write.base import Writer
from vlmbatch.write.columns import Row, carried_kinds
from vlmbatch.write.formats import find_format
from vlmbatch.write.journal import why_not_there
from vlmbatch.write.known.damage import unreadable
from vlmbatch.write.known.row_index import Int64Array, short_digest
from vlmbatch.write.parquet import require, schema, tables
from vlmbatch.write.previous_output import PreviousOutput
from vlmbatch.write.remote.file import local_copy

if TYPE_CHECKING:
    import pyarrow

FileRows: TypeAlias = tuple[str, list[Row]]
"""Id of a picture or video, and rows about it."""

_FRAGMENT = re.compile(r"#(t|page)=[\d.]+(-[\d.]+)?$")


def read_records(path: Path, columns: Sequence[str] | None = None) -> Iterator[Row]:
    """Return the rows of an OUTPUT, finished or not, in order, in bounded memory: whole, or
    restricted to ``columns``.

    Raises:
        OutputError: It is not there, cannot be read, or was not written by vlmbatch; at once or
            while it is read.
        MissingDependencyError: The format needs a package that is not installed.
    """
    format = find_format(path)
    try:
        file = open(path, "rb")
    except FileNotFoundError as error:
        raise OutputError(f"cannot read {path}: {why_not_there(path) or reason(error)}") from error
    except OSError as error:
        raise OutputError(f"cannot read {path}: {reason(error)}") from error

    def rows() -> Iterator[Row]:
        count = 0
        with file:
            try:
                if file.read(1):
                    file.seek(0)
                    for row in format.read_rows(file, columns):
                        yield row
                        count += 1
            except OutputError as error:
                raise unreadable(path, error, count, of_run=False) from error
            except OSError as error:
                raise OutputError(f"cannot read {path}: {reason(error)}") from error

    return rows()


def read(output: str | os.PathLike[str], columns: Sequence[str] | None = None) -> pyarrow.Table:
    """Return the rows of an OUTPUT, finished or not, in order; from JSONL, Parquet and CSV alike.

        table = vlmbatch.read("photos.jsonl")
        print(table.num_rows, table["text"].to_pylist())
        frame = vlmbatch.read("photos.jsonl", ["id", "text"]).to_pandas()

    Args:
        output: The file, or its URL in a store.
        columns: Only these, in this order.

    Raises:
        OutputError: It is not there, was not written by vlmbatch, or has no such column.
        MissingDependencyError: pyarrow, or what opens the URL, is not installed.
    """
    arrow = require()
    with local_copy(os.fspath(output), allow_private=True) as path:
        kinds = carried_kinds(read_records(path))
        names = [*RECORD_FIELDS, *kinds]
        wanted = names if columns is None else [columns] if isinstance(columns, str) else columns
        for name in wanted:
            if name not in names:
                shown = without_credentials(os.fspath(output))
                raise OutputError(f"{shown} has no column {name!r}; it has {', '.join(names)}")
        whole = schema(extra=kinds)
        layout = arrow.schema([whole.field(name) for name in wanted])
        # A carried column may be missing from a row.
        kept = None if set(wanted) & kinds.keys() else list(wanted)
        found = list(tables(read_records(path, kept), layout))
        return arrow.concat_tables(found) if found else layout.empty_table()


def read_by_file(
    output: Path, chosen: Callable[[Row], bool], *, whole: bool = False
) -> Iterator[FileRows]:
    """Return the rows about each picture or video, one after the other, in bounded memory.

    Files come in the order of their first row, rows about a file in the order of OUTPUT. OUTPUT is
    read twice: first the columns ``id``, ``task``, ``prompt`` and ``status``, then the rows.

    Args:
        output: The file.
        chosen: Returns whether a row, of which it gets these columns, is wanted.
        whole: Whether rows with the file, task and prompt of a chosen one are wanted too, such as
            those of other frames of the video.

    Raises:
        OutputError: As for ``read_records``; at once when there is nothing to read.
    """
    files, questions, flags = array("Q"), array("Q"), bytearray()
    for row in read_records(output, ("id", "task", "prompt", "status")):
        name = file_name(row["id"])
        files.append(short_digest(name))
        questions.append(short_digest(f"{name}\0{row['task']}\0{row['prompt']}"))
        flags.append(chosen(row))
    is_wanted = np.array(flags, np.bool_)
    if whole:
        asked = np.array(questions, np.uint64)
        is_wanted = np.isin(asked, asked[is_wanted])
    positions = np.flatnonzero(is_wanted)
    _, first, file = np.unique(
        np.array(files, np.uint64)[positions], return_index=True, return_inverse=True
    )
    return _rows_by_file(output, positions[np.argsort(first[file], kind="stable")])


def _rows_by_file(output: Path, order: Int64Array) -> Iterator[FileRows]:
    with contextlib.closing(PreviousOutput(output, find_format(output))) as rows:
        for name, group in itertools.groupby(rows.rows(order), lambda row: file_name(row["id"])):
            yield name, list(group)


def read_seen(writer: Writer) -> Iterator[FileRows]:
    """Return the rows about each picture or video that a run has seen, as ``read_by_file`` does:
    all answers in OUTPUT to what this run has asked about the file.

    Args:
        writer: The run's; closed.
    """
    if writer.path is None:
        return iter(())

    def is_seen(row: Row) -> bool:
        return writer.is_seen(row["id"], row["task"], row["prompt"])

    return read_by_file(writer.path, is_seen, whole=True)


def file_name(id: str) -> str:
    """Return the id of the picture or video that an item is from: without ``#t=…``."""
    return _FRAGMENT.sub("", id)
