"""Cells of a table's row: values that may not be readable, and bytes, plain or in base64."""

from __future__ import annotations

import base64
from typing import Any

from vlmbatch.errors import ReadError
from vlmbatch.read.base import digest
from vlmbatch.read.bundles.table import Cells
from vlmbatch.read.files.source import HeldBytes, Source


class Base64(Source):
    """Bytes that a cell holds as base64."""

    is_held = True

    def __init__(self, text: str, column: str) -> None:
        self._text, self._column, self.held_bytes = text, column, len(text)

    def read(self) -> bytes:
        """Decode the text."""
        try:
            return base64.b64decode("".join(self._text.split()), validate=True)
        except ValueError as exc:
            message = f"the column {self._column!r} does not hold base64: {exc}"
            raise ReadError(message) from exc

    def head(self) -> bytes:
        """Decode the beginning of the text."""
        try:
            return base64.b64decode(self._text[:64])
        except ValueError:
            return b""


def cell_of(cells: Cells, column: str | None) -> Any:
    """Return a value of a row; None without a column, or raise why it cannot be read."""
    value = cells.get(column) if column is not None else None
    if isinstance(value, ReadError):
        raise value
    return value


def held_bytes(data: bytes | str, column: str, suffix: str = "") -> tuple[Source, str]:
    """Return bytes, or base64 of them, that a row holds, and their fingerprint."""
    if isinstance(data, bytes):
        return HeldBytes(data, suffix), digest(data)
    return Base64(data, column), digest(data.encode("utf-8", "surrogatepass"))


def first_named(names: tuple[str, ...], columns: tuple[str, ...]) -> str | None:
    """Return the first of the usual names that a table has, whatever its capitals."""
    by_name = {column.lower(): column for column in reversed(columns)}
    return next((by_name[name] for name in names if name in by_name), None)


def id_text(value: Any) -> str:
    """Return an id as text; empty for none."""
    return "" if value is None or value != value else str(value).strip()
