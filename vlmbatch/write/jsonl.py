"""Rows as JSON Lines: one object a line, UTF-8, keys in the order of ``RECORD_FIELDS``, carried
columns behind them.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, BinaryIO

from vlmbatch.core import RECORD_FIELDS
from vlmbatch.write.columns import Kind, Row
from vlmbatch.write.known.damage import DamagedRowError

encode = json.JSONEncoder(ensure_ascii=False, allow_nan=False).encode
decode = json.JSONDecoder().decode


def write_rows(
    file: BinaryIO,
    rows: Iterable[Row],
    job: dict[str, Any] | None = None,
    extra: Mapping[str, Kind] | None = None,
    columns: Sequence[str] | None = None,
) -> None:
    """Write rows. The job and the kinds of columns have no place in this format."""
    for row in rows:
        if columns:
            row = {name: row.get(name) for name in columns}
        file.write(encode(row).encode("utf-8", "backslashreplace") + b"\n")


def read_rows(file: BinaryIO, columns: Sequence[str] | None = None) -> Iterator[Row]:
    """Read rows, restricted to ``columns``; without them whole.

    Raises:
        DamagedRowError: A line is not a record.
    """
    for number, line in enumerate(file, 1):
        if line.isspace():
            continue
        try:
            row = decode(line.decode("utf-8-sig" if number == 1 else "utf-8"))
            found = {name: row[name] for name in columns or RECORD_FIELDS}
            yield found if columns else {**found, **row}
        except (ValueError, KeyError, TypeError) as error:
            raise DamagedRowError(number, _reason(error)) from error


def _reason(error: Exception) -> str:
    if isinstance(error, KeyError):
        return f"it has no key {error}"
    if isinstance(error, json.JSONDecodeError):
        return f"not valid JSON at character {error.pos + 1}"
    return "not UTF-8" if isinstance(error, ValueError) else "not a JSON object"
