"""Question files: the same questions for every item, or rows of item and question."""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Iterable, Iterator, Mapping
from types import MappingProxyType
from typing import Any

from vlmbatch.core import RECORD_FIELDS, Item
from vlmbatch.errors import JobError, NothingFound, one_line
from vlmbatch.job import Job
from vlmbatch.job.questions import QUESTION_NAME, check_question, split_name
from vlmbatch.text_files import (
    LARGEST_FIELD,
    delimiter_of,
    open_text,
    parse_json,
    repeated_name,
)

ITEM_KEYS = ("id", "image", "video", "path", "file", "source")
QUESTION_KEYS = ("question", "prompt", "text")
_KNOWN_NAMES = frozenset((*ITEM_KEYS, *QUESTION_KEYS, QUESTION_NAME))

Asked = tuple[int, str | None, str, str | None]
"""Line, id (None for every item), question and its name."""


class Questions:
    """The questions about each item, and the ids among them that have turned up.

    Args:
        common: Asked about every item.
        by_item: Asked about items by id, or by a video's id for its frames.
        file: Where they come from, for messages.
        names: The names of questions that have one.
    """

    def __init__(
        self,
        common: tuple[str, ...] = (),
        by_item: Mapping[str, tuple[str, ...]] = MappingProxyType({}),
        file: str = "",
        names: Mapping[str, str] = MappingProxyType({}),
    ) -> None:
        self.common = common
        self.names = names
        self.by_item = by_item
        self._file = file
        self._met: set[str] = set()
        self._first_id = ""
        self._has_asked = False

    def about(self, item_id: str) -> tuple[str, ...]:
        """Return the questions about an id, each once, common ones first."""
        key = self._key(item_id)
        return (
            self.common if key is None else tuple(dict.fromkeys((*self.common, *self.by_item[key])))
        )

    def of(self, item: Item) -> tuple[str, ...]:
        """Return the questions about an item of the run, its own or else those about its id. The
        id has turned up now.
        """
        key = self._key(item.id)
        if key is not None:
            self._met.add(key)
        self._first_id = self._first_id or item.id
        asked = item.questions or self.about(item.id)
        self._has_asked |= bool(asked)
        return asked

    def missed(self, *, is_all: bool) -> dict[str, Any] | None:
        """Return the ids that no item had, as plain JSON values; None when there are none, or
        that is not known.

        Args:
            is_all: Whether every item of the job turned up.
        """
        missed = [item for item in self.by_item if item not in self._met]
        if not missed or not self._first_id or (self._met and not is_all):
            return None
        if self._met:
            hint = (
                f"no item has {len(missed)} of its {len(self.by_item)} ids, such as {missed[0]!r}"
            )
        else:
            ids = "its id" if len(missed) == 1 else f"any of its {len(missed)} ids"
            where = "" if is_all else " within --limit"
            hint = (
                f"no item{where} has {ids}: it asks about {missed[0]!r}, "
                f"and an item here is {self._first_id!r}"
            )
        return {
            "ids": len(self.by_item),
            "missed": len(missed),
            "hint": f"question file {self._file}: {hint}",
        }

    def check(self) -> None:
        """Refuse a file that asks about other things than the items, all of which have turned up.

        Raises:
            NothingFound: There were items and nothing was asked about any of them; the message has
                an id of both sides.
        """
        missed = self.missed(is_all=True)
        if missed and not self._has_asked:
            raise NothingFound(missed["hint"])

    def _key(self, item_id: str) -> str | None:
        """Return the id that the file has for an item: its own, or that of its video or
        document.
        """
        whole = item_id.rpartition("#")[0]
        return (
            item_id
            if item_id in self.by_item
            else whole
            if whole and whole in self.by_item
            else None
        )


def read_questions(job: Job) -> Questions:
    """Return the questions of a job: its instruction, its ``-q`` questions or its question file.

    Raises:
        JobError: The file cannot be read or is not of a known form; the message names the line.
    """
    if job.task != "vqa":
        return Questions((job.instruction or "",))
    if job.questions_file is None:
        names = Names(job.kept_columns.values())
        for name, text in map(split_name, job.questions):
            names.add(text, name)
        asked = dict.fromkeys(text for _, text in map(split_name, job.questions))
        return Questions(tuple(asked), names=names.by_question)
    path = job.questions_file
    parse = _PARSERS.get(os.path.splitext(path)[1].lower())
    if parse is None:
        raise JobError(f"question file {path}: write it as .txt, .jsonl or .csv")
    try:
        with open_text(path, errors="strict") as file:
            text = file.read()
        questions = _collect(parse(text), path, Names(job.kept_columns.values()))
    except UnicodeDecodeError as error:
        raise JobError(f"question file {path}: it is not UTF-8 text") from error
    except (OSError, ValueError) as error:  # JobError is a ValueError
        raise JobError(f"question file {path}: {one_line(error)}") from error
    if not questions.common and not questions.by_item:
        raise JobError(f"question file {path}: no questions in it")
    return questions


class Names:
    """The names of questions. Several questions may share one, as those of a question file about
    different pictures do.

    Attributes:
        by_question: The names by question.
    """

    def __init__(self, columns: Iterable[str]) -> None:
        """Note the columns of OUTPUT, whose names are taken."""
        self._taken = {*RECORD_FIELDS, *columns}
        self.by_question: dict[str, str] = {}

    def add(self, question: str, name: str | None) -> None:
        """Take the name of a question, where it has one.

        Raises:
            JobError: The question has another one, or OUTPUT has such a column.
        """
        if name is None:
            return
        if name in self._taken:
            raise JobError(
                f"a question cannot be named {name!r}: every row has a column of that name; give "
                "it another name"
            )
        if self.by_question.setdefault(question, name) != name:
            raise JobError(
                f"{question!r} has two names, {self.by_question[question]} and {name}: give one"
            )


class _LineError(JobError):
    """Something is wrong with a line."""

    def __init__(self, line: int, message: str) -> None:
        super().__init__(f"line {line}: {message}")


def _collect(rows: Iterator[Asked], path: str, names: Names) -> Questions:
    common: list[str] = []
    by_item: dict[str, list[str]] = {}
    for line, item, question, name in rows:
        if not question.strip():
            raise _LineError(line, "an empty question")
        try:
            check_question(question)
            names.add(question.strip(), name)
        except JobError as error:
            raise _LineError(line, str(error)) from error
        (common if item is None else by_item.setdefault(item, [])).append(question.strip())
    return Questions(
        tuple(dict.fromkeys(common)),
        {item: tuple(asked) for item, asked in by_item.items()},
        path,
        names.by_question,
    )


def _lines(text: str) -> Iterator[Asked]:
    for number, line in enumerate(text.split("\n"), 1):
        if line.strip():
            yield number, None, line, None


def _jsonl(text: str) -> Iterator[Asked]:
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        try:
            row = parse_json(line)
        except ValueError as error:
            raise _LineError(number, f"not JSON ({one_line(error)})") from error
        if isinstance(row, str):
            yield number, None, row, None
        elif isinstance(row, dict):
            yield number, *_pick(row, number)
        else:
            raise _LineError(number, "neither an object nor a text")


def _csv(text: str) -> Iterator[Asked]:
    csv.field_size_limit(max(csv.field_size_limit(), LARGEST_FIELD))
    file = io.StringIO(text, newline="")
    delimiter = delimiter_of(file, _KNOWN_NAMES)
    rows = csv.DictReader(file, delimiter=delimiter, strict=True)
    try:
        if name := repeated_name(list(rows.fieldnames or ())):
            raise JobError(f"two columns are named {name!r}; rename one of them")
        for row in rows:
            if None in row:
                raise _LineError(
                    rows.line_num,
                    f"more fields than the header has; quote texts that hold a {delimiter!r}",
                )
            yield rows.line_num, *_pick(row, rows.line_num)
    except csv.Error as error:
        raise _LineError(rows.line_num + 1, one_line(error)) from error


_PARSERS = {".txt": _lines, ".jsonl": _jsonl, ".csv": _csv}


def _pick(row: Mapping[str, Any], line: int) -> tuple[str | None, str, str | None]:
    """Return id, question and name of a row."""
    question = next((row[key] for key in QUESTION_KEYS if row.get(key) is not None), None)
    if not isinstance(question, str):
        raise _LineError(line, f"no text under {' or '.join(QUESTION_KEYS)}")
    item = next((row[key] for key in ITEM_KEYS if row.get(key)), None)
    if item is not None and not isinstance(item, str | int | float):
        raise _LineError(line, f"the id is neither a text nor a number: {type(item).__name__}")
    id = None if item is None else str(item).replace("\\", "/").removeprefix("./")
    name = row.get(QUESTION_NAME) or None
    return id, question, None if name is None else str(name).strip()
