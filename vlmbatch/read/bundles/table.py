"""A table file, looked at once."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from typing import Any

from vlmbatch.errors import ReadError

Cells = dict[str, Any]
"""Values of a row by column. A value that cannot be read is a ``ReadError``."""

Rows = Iterator[Cells | ReadError]
"""Rows in order; one that cannot be read is a ``ReadError`` in its place."""

ReadRows = Callable[[Collection[str], str | None], Rows]


class Table:
    """The columns of a table file, and a way to read its rows.

    Attributes:
        columns: Names in the order of the file.
        picture_columns: Columns whose type says that they hold pictures: bytes, or a struct of
            ``bytes`` and ``path``. Only Parquet has types.
        rows: Reads the rows from the start. Takes the columns that are wanted, and the one among
            them whose bytes are not, if any.
    """

    def __init__(
        self,
        columns: Collection[str],
        rows: ReadRows,
        picture_columns: Collection[str] = (),
    ) -> None:
        self.columns = tuple(columns)
        self.picture_columns = tuple(picture_columns)
        self.rows = rows
