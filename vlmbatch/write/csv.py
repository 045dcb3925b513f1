"""Rows as CSV (RFC 4180): UTF-8, a header row, null as an empty field, no formulas.

A spreadsheet computes a text that begins with ``=``, ``+``, ``-``, ``@``, a tab or a line break,
and the text of a scan comes from whoever made the scan. Such a text gets an apostrophe in front,
as spreadsheets mark text (OWASP, "CSV Injection"). Reading removes it.
"""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, BinaryIO

from vlmbatch.core import RECORD_FIELDS
from vlmbatch.errors import OutputError
from vlmbatch.write.columns import COLUMNS, Column, Kind, Row, as_text
from vlmbatch.write.known.damage import DamagedRowError

LARGEST_FIELD = 2**31 - 1
"""Characters of a field; the default of the csv module is 131,072."""

_FORMULA = re.compile(r"'*[=+\-@\t\r\n]")
"""Leading apostrophes belong to the match, so that a text keeps its own ones when it is read."""
_GUARDED = re.compile(r"'+[=+\-@\t\r\n]")


def _unguarded(text: str) -> str:
    return text[1:] if _GUARDED.match(text) else text


def _whole(text: str) -> int:
    """Return a whole number, also as programs write it that know columns with gaps as floats only:
    ``17.0``.
    """
    try:
        return int(text)
    except ValueError:
        number = float(text)
        if not number.is_integer():
            raise
        return int(number)


_PARSERS: dict[str, Callable[[str], Any]] = {
    "string": _unguarded,
    "timestamp": str,
    "int32": _whole,
    "int64": _whole,
    "float32": float,
    "float64": float,
}
_CARRIED = Column("string", nullable=True)
_STATUSES_WITH = {"text": ("ok", "similar"), "error": ("error",)}
"""An empty field is null, except in rows whose status says that there is a text."""


def write_rows(
    file: BinaryIO,
    rows: Iterable[Row],
    job: dict[str, Any] | None = None,
    extra: Mapping[str, Kind] | None = None,
    columns: Sequence[str] | None = None,
) -> None:
    """Write the header and rows, carried columns behind the others. The job has no place in this
    format.
    """
    text = io.TextIOWrapper(file, encoding="utf-8", newline="")
    try:
        writer = csv.writer(text)
        header = columns or (*RECORD_FIELDS, *(extra or ()))
        writer.writerow(header)
        for row in rows:
            writer.writerow(
                [
                    _guard(row[name] if name in COLUMNS else as_text(row.get(name)))
                    for name in header
                ]
            )
        text.flush()
    finally:
        text.detach()


def read_rows(file: BinaryIO, columns: Sequence[str] | None = None) -> Iterator[Row]:
    """Read rows, restricted to ``columns``; without them whole. Carried columns come back as text.

    Raises:
        OutputError: A column is missing.
        DamagedRowError: A line is not a record.
    """
    csv.field_size_limit(max(csv.field_size_limit(), LARGEST_FIELD))
    text = io.TextIOWrapper(file, encoding="utf-8-sig", newline="")
    reader = csv.reader(text)
    try:
        header = next(reader, None)
        if header is None:
            return
        missing = [name for name in RECORD_FIELDS if name not in header]
        if missing:
            raise OutputError(f"it has no column {missing[0]!r}")
        positions = {name: header.index(name) for name in header}
        wanted = columns or [*RECORD_FIELDS, *(name for name in positions if name not in COLUMNS)]
        kinds = [COLUMNS.get(name, _CARRIED) for name in wanted]
        parsers = [
            (name, positions[name], _PARSERS[kind], nullable)
            for name, (kind, nullable) in zip(wanted, kinds, strict=True)
        ]
        status = positions["status"]
        for fields in reader:
            if fields and len(fields) != len(header):
                why = f"{len(fields)} values for {len(header)} columns"
                raise DamagedRowError(reader.line_num, why)
            if fields:
                yield {
                    name: _null(name, fields[status])
                    if nullable and not fields[at]
                    else parse(fields[at])
                    for name, at, parse, nullable in parsers
                }
    except (ValueError, IndexError, csv.Error) as error:
        raise DamagedRowError(reader.line_num, str(error)) from error
    finally:
        text.detach()


def _guard(value: Any) -> Any:
    """Return a value that no spreadsheet computes. Numbers stay as they are."""
    return f"'{value}" if isinstance(value, str) and _FORMULA.match(value) else value


def _null(name: str, status: str) -> str | None:
    return "" if status in _STATUSES_WITH.get(name, ()) else None
