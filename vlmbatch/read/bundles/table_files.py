"""Table files to rows: .txt (a path a line), .csv, .tsv, .jsonl and .parquet, each read front to
back in bounded memory.
"""

from __future__ import annotations

import csv
import itertools
import json
import os
from collections.abc import Callable, Collection, Iterator
from typing import Any, NoReturn

from vlmbatch.errors import JobError, ReadError
from vlmbatch.read.base import one_line
from vlmbatch.read.files.kinds import printable, read_paths

Row = dict[str, Any]
Rows = Iterator[Row | ReadError]
"""Rows in order; a row that cannot be read is a ``ReadError`` in its place, and one at the end says
why there are no more.
"""

LINES_LOOKED_AT = 100
"""Lines of a .jsonl file whose keys are taken for its columns."""

PARQUET_BATCH_ROWS = 16
"""Rows that are decoded together; a row may hold a picture."""

_LARGEST_FIELD = 2**31 - 1
"""The csv module refuses fields of more than 131,072 characters unless told otherwise; a picture in
base64 is longer.
"""


class Table:
    """A table file, looked at once: which columns it has, and how its rows are read.

    Attributes:
        columns: Names in the order of the file.
        picture_columns: Columns whose type says that they hold pictures: bytes, or a struct of
            ``bytes`` and ``path``. Only Parquet has types.
        rows: Reads the rows from the start. Takes the columns that are wanted, and whether the
            bytes of pictures are.
    """

    def __init__(
        self,
        columns: Collection[str],
        rows: Callable[[Collection[str], bool], Rows],
        picture_columns: Collection[str] = (),
    ) -> None:
        self.columns = tuple(columns)
        self.picture_columns = tuple(picture_columns)
        self.rows = rows


def open_table(path: str) -> Table:
    """Looks at a table file; its suffix says what it is.

    Raises:
        JobError: It cannot be opened, or its columns cannot be read.
    """
    opener = {
        ".csv": _open_csv,
        ".tsv": _open_csv,
        ".jsonl": _open_jsonl,
        ".parquet": _open_parquet,
    }.get(os.path.splitext(path)[1].lower(), _open_text)
    try:
        return opener(path)
    except OSError as exc:
        raise JobError(f"manifest {printable(path)}: {one_line(exc)}") from exc


def _open_text(path: str) -> Table:
    def rows(wanted: Collection[str], pictures: bool) -> Rows:
        with open(path, "rb") as file:
            for line in read_paths(file):
                if line.strip():
                    yield {"path": line}

    open(path, "rb").close()
    return Table(("path",), _ending_well(rows))


def _open_csv(path: str) -> Table:
    delimiter = "\t" if path.lower().endswith(".tsv") else ","

    def read(file: Any) -> Iterator[list[str]]:
        csv.field_size_limit(max(csv.field_size_limit(), _LARGEST_FIELD))
        return csv.reader(file, delimiter=delimiter)

    def rows(wanted: Collection[str], pictures: bool) -> Rows:
        with open(path, encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
            lines = read(file)
            next(lines)
            for fields in lines:
                if len(fields) == len(header):
                    yield {name: fields[at] or None for name, at in positions.items()}
                elif fields:
                    yield ReadError(
                        f"the row has {len(fields)} fields, the header has {len(header)}"
                    )

    with open(path, encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
        try:
            header = [name.strip() for name in next(read(file), [])]
        except csv.Error as exc:
            _refuse(path, exc)
    if not any(header):
        _refuse(path, "no header row with the names of its columns")
    positions = {name: at for at, name in enumerate(header)}
    return Table(positions, _ending_well(rows))


def _open_jsonl(path: str) -> Table:
    def rows(wanted: Collection[str], pictures: bool) -> Rows:
        with open(path, "rb") as file:
            for line in file:
                if line.isspace():
                    continue
                try:
                    row = json.loads(line.decode("utf-8-sig"))
                except ValueError as exc:
                    yield ReadError(f"not JSON: {one_line(exc)}")
                    continue
                if isinstance(row, str):
                    row = {"path": row}
                yield row if isinstance(row, dict) else ReadError("neither an object nor a text")

    columns: dict[str, None] = {}
    for row in itertools.islice(rows((), False), LINES_LOOKED_AT):
        if isinstance(row, dict):
            columns.update(dict.fromkeys(row))
    if not columns:
        _refuse(path, "no line of it is a JSON object")
    return Table(columns, _ending_well(rows))


def _open_parquet(path: str) -> Table:
    import pyarrow
    import pyarrow.parquet

    def rows(wanted: Collection[str], pictures: bool) -> Rows:
        names = [name for name in table_columns if name in wanted]
        # Without the pictures their paths still say what rows are called.
        leaves = [
            name if pictures or name not in held else f"{name}.path"
            for name in names
            if pictures or held.get(name) is not False
        ]
        with pyarrow.parquet.ParquetFile(path, buffer_size=1 << 20) as file:
            for group in range(
                file.num_row_groups
            ):  # one after the other: asked for all at once, Arrow keeps the dictionaries of each
                for batch in file.iter_batches(
                    batch_size=PARQUET_BATCH_ROWS,
                    row_groups=[group],
                    columns=leaves,
                    use_threads=False,
                ):
                    yield from batch.to_pylist()

    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            schema = file.schema_arrow
    except (pyarrow.ArrowException, ValueError) as exc:
        _refuse(path, f"not a Parquet file: {one_line(exc)}")
    table_columns = schema.names
    held = {
        field.name: has_path
        for field in schema
        if (has_path := _picture_type(field.type)) is not None
    }
    return Table(table_columns, _ending_well(rows), held)


def _picture_type(kind: Any) -> bool | None:
    """Whether a column of this type has the pictures' paths beside their bytes; None when it has no
    bytes.
    """
    import pyarrow.types as types

    if types.is_struct(kind):
        names = {kind.field(number).name for number in range(kind.num_fields)}
        return "path" in names if "bytes" in names else None
    return (
        False
        if types.is_binary(kind) or types.is_large_binary(kind) or types.is_binary_view(kind)
        else None
    )


def _ending_well(
    rows: Callable[[Collection[str], bool], Rows],
) -> Callable[[Collection[str], bool], Rows]:
    """Rows whose last one is an error when the file turns out to be damaged, or is gone."""

    def guarded(wanted: Collection[str], pictures: bool) -> Rows:
        try:
            yield from rows(wanted, pictures)
        except Exception as exc:  # the libraries raise many kinds on damaged files
            yield ReadError(f"the file cannot be read from here on: {one_line(exc)}")

    return guarded


def _refuse(path: str, why: str | Exception) -> NoReturn:
    raise JobError(f"manifest {printable(path)}: {why if isinstance(why, str) else one_line(why)}")
