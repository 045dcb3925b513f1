"""Rows as Parquet, each column with its own type. pyarrow is loaded with the first file."""

from __future__ import annotations

import datetime
import itertools
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, BinaryIO

from vlmbatch.core import RECORD_FIELDS
from vlmbatch.errors import MissingDependencyError, OutputError
from vlmbatch.write.columns import COLUMNS, Kind, Row, as_text, round_float32

ROWS_PER_GROUP = 8192
"""Rows in memory while writing; enough for the columns to compress."""

JOB_KEY = b"vlmbatch.job"
"""Key of the job, as JSON, in the file's metadata."""

_EPOCH = datetime.datetime(1970, 1, 1, tzinfo=datetime.UTC)
_MILLISECOND = datetime.timedelta(milliseconds=1)


def require() -> Any:
    """Return the pyarrow package, with ``pyarrow.parquet`` loaded.

    Raises:
        MissingDependencyError: It is not installed.
    """
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise MissingDependencyError("Parquet files need pyarrow: pip install pyarrow") from error
    return pyarrow


def schema(job: dict[str, Any] | None = None, extra: Mapping[str, Kind] | None = None) -> Any:
    """Return the ``pyarrow.Schema`` of a file: the columns of every row, carried ones, and the job
    as metadata when there is one.
    """
    arrow = require()
    types = {
        "string": arrow.string(),
        "int32": arrow.int32(),
        "int64": arrow.int64(),
        "float32": arrow.float32(),
        "float64": arrow.float64(),
        "timestamp": arrow.timestamp("ms", tz="UTC"),
        "bool": arrow.bool_(),
    }
    fields = [
        arrow.field(name, types[column.kind], nullable=column.nullable)
        for name, column in COLUMNS.items()
    ]
    fields += [arrow.field(name, types[kind]) for name, kind in (extra or {}).items()]
    return arrow.schema(
        fields,
        metadata=None if job is None else {JOB_KEY: json.dumps(job, ensure_ascii=False).encode()},
    )


def write_rows(
    file: BinaryIO,
    rows: Iterable[Row],
    job: dict[str, Any] | None = None,
    extra: Mapping[str, Kind] | None = None,
    columns: Sequence[str] | None = None,
) -> None:
    """Write rows, a row group at a time."""
    arrow = require()
    layout = schema(job, extra)
    if columns:
        layout = arrow.schema([layout.field(name) for name in columns], layout.metadata)
    with arrow.parquet.ParquetWriter(file, layout, compression="zstd") as writer:
        for group in tables(rows, layout):
            writer.write_table(group)


def tables(rows: Iterable[Row], layout: Any) -> Iterator[Any]:
    """Yield rows as ``pyarrow.Table`` of a schema, a row group at a time."""
    arrow = require()
    rows = iter(rows)
    while group := list(itertools.islice(rows, ROWS_PER_GROUP)):
        arrays = []
        for field in layout:
            values: list[Any] = [row.get(field.name) for row in group]
            if field.name == "created_at":
                values = [_milliseconds(stamp) for stamp in values]
            elif field.name not in COLUMNS and arrow.types.is_string(field.type):
                values = [as_text(value) for value in values]
            arrays.append(arrow.array(values, field.type))
        yield arrow.Table.from_arrays(arrays, schema=layout)


def read_rows(file: BinaryIO, columns: Sequence[str] | None = None) -> Iterator[Row]:
    """Read rows, restricted to ``columns`` (only these are read from the disk); without them
    whole.

    Raises:
        OutputError: It is not a Parquet file, or a column is missing or of another type.
    """
    arrow = require()
    try:
        table = arrow.parquet.ParquetFile(file)
        names = set(table.schema_arrow.names)
        missing = [name for name in RECORD_FIELDS if name not in names]
        if missing:
            raise OutputError(f"it has no column {missing[0]!r}")
        wanted = list(
            columns
            or [*RECORD_FIELDS, *(name for name in table.schema_arrow.names if name not in COLUMNS)]
        )
        for batch in table.iter_batches(batch_size=ROWS_PER_GROUP, columns=wanted):
            values = [_plain(arrow, name, batch.column(name)) for name in wanted]
            yield from (dict(zip(wanted, row, strict=True)) for row in zip(*values, strict=True))
    except arrow.ArrowException as error:
        raise OutputError("it is not a Parquet file of records") from error


def _plain(arrow: Any, name: str, values: Any) -> list[Any]:
    """Return a column as the values that a record holds."""
    kind = COLUMNS[name].kind if name in COLUMNS else None
    if kind == "timestamp":
        stamps = (
            values.cast(arrow.timestamp("ms", tz="UTC"), safe=False).cast(arrow.int64()).to_pylist()
        )
        return [_iso(stamp) for stamp in stamps]
    plain: list[Any] = values.to_pylist()
    if kind == "float32":
        return [None if value is None else round_float32(value) for value in plain]
    if kind in ("int32", "int64") and not arrow.types.is_integer(values.type):
        # A program that knows columns with gaps as floats only has written the file.
        return [int(value) if value == value and value is not None else None for value in plain]
    return plain


def _milliseconds(stamp: str) -> int:
    return (datetime.datetime.fromisoformat(stamp) - _EPOCH) // _MILLISECOND


def _iso(milliseconds: int) -> str:
    return (
        (_EPOCH + milliseconds * _MILLISECOND)
        .isoformat(timespec="milliseconds")
        .replace("+00:00", "Z")
    )
