"""A table file, looked at once."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from typing import Any, NamedTuple

from vlmbatch.errors import ReadError

Cells = dict[str, Any]
"""Values of a row by column. A value that cannot be read is a ``ReadError``."""

Rows = Iterator[Cells | ReadError]
"""Rows in order; one that cannot be read is a ``ReadError`` in its place."""

ReadRows = Callable[[Collection[str], str | None], Rows]


class Table(NamedTuple):
    """The columns of a table file, and a way to read its rows.

    Attributes:
        columns: Names in the order of the file.
        rows: Reads the rows from the start. Takes the columns that are wanted, and the one among
            them whose bytes are not, if any.
        picture_columns: Columns whose type says that they hold pictures: bytes, or a struct of
            ``bytes`` and ``path``. Only Parquet has types.
    """

    columns: tuple[str, ...]
    rows: ReadRows
    picture_columns: tuple[str, ...] = ()
