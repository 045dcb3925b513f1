"""The columns of a row, and the conversion of a record to plain values of exactly their types.

Every row has the same columns. Behind them stand those that a job carries from its manifests
(``Job.keep``). The kind of a carried column is the narrowest that every value so far fits into.
"""

from __future__ import annotations

import base64
import datetime
import json
import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Literal, NamedTuple

from vlmbatch.core import Record

Row = dict[str, Any]
"""A row as plain values, keys in the order of ``RECORD_FIELDS``, carried columns behind them."""

Kind = Literal["string", "int32", "int64", "float32", "float64", "timestamp", "bool"]


class Column(NamedTuple):
    """The type of a column. A ``timestamp`` is an ISO string in a row, and UTC milliseconds in
    Parquet.
    """

    kind: Kind
    nullable: bool = False


_TEXT, _TEXT_OR_NULL = Column("string"), Column("string", nullable=True)
_COUNT = Column("int32", nullable=True)
_SECONDS = Column("float32", nullable=True)

COLUMNS: dict[str, Column] = {
    "id": _TEXT,
    "source": _TEXT,
    "index": Column("int64"),
    "media": _TEXT,
    "time_seconds": Column("float64", nullable=True),
    "end_seconds": Column("float64", nullable=True),
    "width": _COUNT,
    "height": _COUNT,
    "task": _TEXT,
    "prompt": _TEXT,
    "text": _TEXT_OR_NULL,
    "status": _TEXT,
    "error_type": _TEXT_OR_NULL,
    "error": _TEXT_OR_NULL,
    "similar_to": _TEXT_OR_NULL,
    "finish_reason": _TEXT_OR_NULL,
    "mean_logprob": Column("float32", nullable=True),
    "model": _TEXT,
    "revision": _TEXT,
    "engine": _TEXT,
    "device": _TEXT,
    "dtype": _TEXT,
    "tiles": _COUNT,
    "prompt_tokens": _COUNT,
    "new_tokens": _COUNT,
    "batch_size": _COUNT,
    "read_seconds": _SECONDS,
    "prepare_seconds": _SECONDS,
    "wait_seconds": _SECONDS,
    "vision_seconds": _SECONDS,
    "prefill_seconds": _SECONDS,
    "decode_seconds": _SECONDS,
    "compute_seconds": _SECONDS,
    "run_id": _TEXT,
    "created_at": Column("timestamp"),
}
"""Every column, in order."""

TEXT_ORIGINAL = "text_original"
"""Column of an OUTPUT that was corrected: the model's text."""

SETTINGS = "settings"
"""Column of an OUTPUT of several settings: those of the row, as JSON."""

GOOD = {"status": "ok", "error_type": None, "error": None}
"""Changes to an error row that somebody gave a text."""


def row_of(record: Record) -> Row:
    """Return the record as plain values: numbers that are not finite are null, text is valid
    Unicode.
    """
    row = {name: convert(getattr(record, name)) for name, convert in _CONVERTERS}
    for name, value in record.extra.items():
        row[clean_text(name)] = plain_value(value)
    return row


def record_of(row: Row) -> Record:
    """Return the record of a row: the inverse of ``row_of``."""
    extra = {name: value for name, value in row.items() if name not in COLUMNS}
    return Record(**{name: row[name] for name in COLUMNS}, extra=extra)


def plain_value(value: Any) -> Any:
    """Return a carried value in JSON's types: times as ISO text, bytes as base64, numbers that are
    not finite as null.
    """
    if value is None or isinstance(value, bool | int):
        return value
    if isinstance(value, str):
        return clean_text(value)
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {clean_text(str(key)): plain_value(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [plain_value(entry) for entry in value]
    if isinstance(value, datetime.date | datetime.time):
        return value.isoformat()
    if isinstance(value, bytes):
        return base64.b64encode(value).decode()
    return clean_text(str(value))


def kind_of(value: Any) -> Kind | None:
    """Return the narrowest kind of column for a plain value; None for null, which fits into all."""
    if value is None:
        return None
    if isinstance(value, bool):
        return "bool"
    if isinstance(value, int):
        return "int64" if -(2**63) <= value < 2**63 else "string"
    return "float64" if isinstance(value, float) else "string"


def common_kind(one: Kind | None, other: Kind | None) -> Kind | None:
    """Return the narrowest kind for the values of both."""
    if one == other or other is None:
        return one
    if one is None:
        return other
    return "float64" if {one, other} == {"int64", "float64"} else "string"


def carried_kinds(rows: Iterable[Row]) -> dict[str, Kind]:
    """Return the carried columns of rows, with kinds that every value fits into."""
    kinds: dict[str, Kind | None] = {}
    for row in rows:
        for name in row:
            if name not in COLUMNS:
                kinds.setdefault(name, None)
        for name in kinds:
            kinds[name] = common_kind(kinds[name], kind_of(row.get(name)))
    return {name: kind or "string" for name, kind in kinds.items()}


def as_text(value: Any) -> str | None:
    """Return a plain value for a column of text: text as it is, everything else as JSON."""
    return (
        value if value is None or isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    )


def clean_text(text: str) -> str:
    r"""Return text that UTF-8 can encode. A lone surrogate, as in a file name that is not UTF-8,
    becomes ``\udcff`` in letters.
    """
    return text if text.isascii() else text.encode("utf-8", "backslashreplace").decode()


def round_float32(value: float) -> float:
    """Return the value with six significant digits, which a float32 keeps for certain (FLT_DIG), so
    that it is the same in every format.
    """
    return float(f"{value:.6g}")


def _converter(column: Column) -> Callable[[Any], Any]:
    """Return the function that makes a field a value of the column's type."""
    if column.kind in ("string", "timestamp"):
        empty = None if column.nullable else ""
        return lambda value: empty if value is None else clean_text(value)
    if column.kind in ("int32", "int64"):
        return lambda value: None if value is None and column.nullable else int(value)
    rounded = round_float32 if column.kind == "float32" else float
    return lambda value: None if value is None or not math.isfinite(value) else rounded(value)


_CONVERTERS = tuple((name, _converter(column)) for name, column in COLUMNS.items())
