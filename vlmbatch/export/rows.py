"""The rows and columns of an OUTPUT that a table or a text takes."""

from __future__ import annotations

import dataclasses
import functools
import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from vlmbatch.errors import JobError

if TYPE_CHECKING:
    from vlmbatch.write.columns import Kind

PAGE = "page"
"""A column that a table may have: the number of a document's page."""


@dataclasses.dataclass(frozen=True)
class RowFilter:
    """The rows that are taken: of each column those with one of the values; all where none are
    given.

    Attributes:
        tasks: Tasks.
        prompts: Questions and instructions, word for word.
        statuses: Values of ``status``.
    """

    tasks: tuple[str, ...] = ()
    prompts: tuple[str, ...] = ()
    statuses: tuple[str, ...] = ()

    def has(self, row: Mapping[str, Any]) -> bool:
        """Return whether a row is taken."""
        columns = (("task", self.tasks), ("prompt", self.prompts), ("status", self.statuses))
        return all(not values or row[name] in values for name, values in columns)

    def of(self, rows: Iterator[dict[str, Any]]) -> Iterator[dict[str, Any]]:
        """Yield the rows that are taken."""
        return filter(self.has, rows)


@dataclasses.dataclass(frozen=True)
class TableLayout:
    """Columns and order of a table.

    Attributes:
        columns: Names, in order; all of them unless given.
        sort: The column that the rows are sorted by; OUTPUT's order unless given.
        limit: The most rows; all of them unless given.
    """

    columns: tuple[str, ...] = ()
    sort: str | None = None
    limit: int | None = None

    def check(self, there: Sequence[str], output: str) -> dict[str, Kind]:
        """Return the kind of the page's number, where the table has that column.

        Args:
            there: The columns that OUTPUT has.
            output: OUTPUT's name.

        Raises:
            JobError: There is no such column.
        """
        for name in (*self.columns, *([self.sort] if self.sort else [])):
            if name not in there and name != PAGE:
                raise JobError(f"{output} has no column {name!r}; it has {', '.join(there)}, page")
        return {PAGE: "int32"} if PAGE in self.columns and PAGE not in there else {}

    def of(self, rows: Iterator[dict[str, Any]]) -> Iterator[dict[str, Any]]:
        """Yield the rows in their order. Sorted rows are held in memory."""
        if PAGE in (*self.columns, self.sort):
            rows = map(_with_page, rows)
        if self.sort:
            rows = iter(sorted(rows, key=functools.partial(_sort_key, self.sort)))
        return itertools.islice(rows, self.limit)


def _sort_key(name: str, row: Mapping[str, Any]) -> tuple[bool, bool, Any]:
    """Return a key by which numbers come before texts, and nothing last."""
    value = row.get(name)
    is_number = isinstance(value, int | float)
    return value is None, not is_number, value if is_number else str(value)


def _with_page(row: dict[str, Any]) -> dict[str, Any]:
    """Return a row with the number of its page; null for what is no page of a document."""
    number = row["id"].rpartition("#page=")[2]
    page = int(number) if "#page=" in row["id"] and number.isdecimal() else None
    return {PAGE: page, **row}
