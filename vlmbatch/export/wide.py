"""A row for each picture, page, frame, clip or window, with a column for each question."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from vlmbatch.errors import JobError
from vlmbatch.export.outputs import OUTPUT_COLUMN
from vlmbatch.job.questions import QUESTION_NAME
from vlmbatch.write.columns import (
    COLUMNS,
    SETTINGS,
    TEXT_ORIGINAL,
    Kind,
    Row,
    common_kind,
    kind_of,
)

ITEM_COLUMNS = ("id", "source", "media", "time_seconds", "end_seconds", "width", "height")
"""Columns that are the same in all rows about an item."""

_OF_ANSWERS = frozenset((OUTPUT_COLUMN, QUESTION_NAME, SETTINGS, TEXT_ORIGINAL))
"""Further columns that differ by answer."""

_Asked = tuple[str, str]
"""Task and prompt."""


@dataclasses.dataclass(frozen=True)
class _Item:
    """An item: its own columns, and its answers by question and OUTPUT."""

    columns: dict[str, Any]
    answers: dict[_Asked, dict[str, str | None]] = dataclasses.field(default_factory=dict)


class WideTable:
    """Answers, one row an item. All of them are held in memory.

    A column has the name of its question, or that of the task where a task has one prompt, or else
    the question's text. Answers of several OUTPUTs to one question have a column each.

    Attributes:
        num_errors: Number of error rows: their cells are empty.
        num_same_id: Number of items whose id another source has too.
    """

    def __init__(self, rows: Iterable[Row]) -> None:
        """Read the rows."""
        self._items: dict[tuple[str, str], _Item] = {}
        self._asked: dict[_Asked, str | None] = {}
        self._kinds: dict[str, Kind | None] = {}
        self.num_errors = 0
        for row in rows:
            self._add(row)
        self.num_same_id = len(self._items) - len({id for id, _ in self._items})
        self._titles = self._make_titles()
        self._columns = self._make_columns()

    def _add(self, row: Row) -> None:
        # The same id may be another file in another OUTPUT.
        key = row["id"], os.path.abspath(row["source"])
        carried = [name for name in row if name not in COLUMNS and name not in _OF_ANSWERS]
        item = self._items.get(key)
        if item is None:
            item = self._items[key] = _Item({name: row[name] for name in ITEM_COLUMNS})
        for name in carried:
            self._kinds[name] = common_kind(self._kinds.get(name), kind_of(row[name]))
            if item.columns.get(name) is None:
                item.columns[name] = row[name]
        asked = row["task"], row["prompt"]
        self._asked[asked] = row.get(QUESTION_NAME) or self._asked.get(asked)
        self.num_errors += row["status"] == "error"
        text = None if row["status"] == "error" else row["text"]
        item.answers.setdefault(asked, {})[row.get(OUTPUT_COLUMN, "")] = text

    def _make_titles(self) -> dict[_Asked, str]:
        """Return the title of every question."""
        prompts: dict[str, int] = {}
        for task, _ in self._asked:
            prompts[task] = prompts.get(task, 0) + 1
        return {
            (task, prompt): name or (task if task != "vqa" and prompts[task] == 1 else prompt)
            for (task, prompt), name in self._asked.items()
        }

    def _make_columns(self) -> dict[tuple[str, str], str]:
        """Return the columns of answers by title and OUTPUT; those of a title stand together.

        Raises:
            JobError: An item has several answers for one column, or a column is there already.
        """
        outputs: dict[str, dict[str, None]] = {title: {} for title in self._titles.values()}
        is_split: set[str] = set()
        for item in self._items.values():
            filled: dict[tuple[str, str], _Asked] = {}
            for asked, by_output in item.answers.items():
                title = self._titles[asked]
                outputs[title].update(dict.fromkeys(by_output))
                for output in by_output:
                    other = filled.setdefault((title, output), asked)
                    if other != asked:
                        raise JobError(
                            f"{item.columns['id']} has two answers for the column {title!r}, to "
                            f"{other[1]!r} and {asked[1]!r}: choose with --task or --prompt"
                        )
                if len({output for name, output in filled if name == title}) > 1:
                    is_split.add(title)
        taken = {*ITEM_COLUMNS, *self._kinds}
        columns: dict[tuple[str, str], str] = {}
        for title, every in outputs.items():
            if title in taken:
                raise JobError(
                    f"a question is called {title!r}, as a column of every row is: give the same "
                    "command again with another name, -q NAME=TEXT"
                )
            for output in every:
                columns[title, output] = f"{title} ({output})" if title in is_split else title
        return columns

    @property
    def answer_columns(self) -> list[str]:
        """The columns of answers."""
        return list(dict.fromkeys(self._columns.values()))

    @property
    def carried(self) -> Mapping[str, Kind]:
        """The carried columns, with their kinds."""
        return {name: kind or "string" for name, kind in self._kinds.items()}

    @property
    def columns(self) -> list[str]:
        """Every column, in order."""
        return [*ITEM_COLUMNS, *self._kinds, *self.answer_columns]

    def kinds(self) -> dict[str, Kind]:
        """Return the kinds of the columns that not every OUTPUT has."""
        return {**self.carried, **dict.fromkeys(self.answer_columns, "string")}

    def rows(self) -> Iterator[Row]:
        """Yield the rows, in the order of each item's first one."""
        empty = dict.fromkeys((*self._kinds, *self.answer_columns))
        for item in self._items.values():
            answers = {
                self._columns[self._titles[asked], output]: text
                for asked, by_output in item.answers.items()
                for output, text in by_output.items()
            }
            yield {**empty, **item.columns, **answers}
