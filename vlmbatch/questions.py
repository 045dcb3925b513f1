"""Question files: the same questions for every item, or rows of item and question."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

from vlmbatch.core import Item
from vlmbatch.errors import JobError
from vlmbatch.job import Job

ITEM_KEYS = ("id", "image", "video", "path", "file", "source")
QUESTION_KEYS = ("question", "prompt", "text")


class Questions:
    """What is asked about each item, and which of the ids that are asked about have turned up.

    Args:
        common: Asked about every item.
        by_item: Asked about items by id, or by a video's id for its frames.
        file: Where they come from, for messages.
    """

    def __init__(
        self,
        common: tuple[str, ...] = (),
        by_item: Mapping[str, tuple[str, ...]] = MappingProxyType({}),
        file: str = "",
    ) -> None:
        self.common = common
        self.by_item = by_item
        self._file = file
        self._met: set[str] = set()
        self._first_id = ""
        self._has_asked = False

    def about(self, item_id: str) -> tuple[str, ...]:
        """The questions about an item, each once, common ones first."""
        key = self._key(item_id)
        return (
            self.common if key is None else tuple(dict.fromkeys((*self.common, *self.by_item[key])))
        )

    def of(self, item: Item) -> tuple[str, ...]:
        """What is asked about an item of the run: its own questions, or else those about its id,
        which has turned up now.
        """
        key = self._key(item.id)
        if key is not None:
            self._met.add(key)
        self._first_id = self._first_id or item.id
        asked = item.questions or self.about(item.id)
        self._has_asked |= bool(asked)
        return asked

    def missed(self, *, is_all: bool) -> dict[str, Any] | None:
        """The ids that no item had, as plain JSON values; None when there are none, or nobody
        knows.

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
            hint = f"no item{'' if is_all else ' within --limit'} has {ids}: it asks about {missed[0]!r}, and an item here is {self._first_id!r}"
        return {
            "ids": len(self.by_item),
            "missed": len(missed),
            "hint": f"question file {self._file}: {hint}",
        }

    def check(self) -> None:
        """Refuses a file that asks about other things than the items, all of which have turned up.

        Raises:
            JobError: There were items and nothing was asked about any of them; the message has an
                id of both sides.
        """
        missed = self.missed(is_all=True)
        if missed and not self._has_asked:
            raise JobError(missed["hint"])

    def _key(self, item_id: str) -> str | None:
        """The id that the file has for an item: its own, or that of the video or document which it
        is a part of.
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
    """The questions of a job: its instruction, its ``-q`` questions or its question file.

    Raises:
        JobError: The file cannot be read or is not of a known form; the message names the line.
    """
    if job.task != "vqa":
        return Questions((job.instruction or "",))
    if job.questions_file is None:
        return Questions(tuple(dict.fromkeys(job.questions)))
    path = Path(job.questions_file)
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
        raise JobError(f"question file {path}: {reason}") from error
    parse = {".txt": _lines, ".jsonl": _jsonl, ".csv": _csv}.get(path.suffix.lower())
    if parse is None:
        raise JobError(f"question file {path}: write it as .txt, .jsonl or .csv")
    questions = _collect(parse(text, path), path)
    if not questions.common and not questions.by_item:
        raise JobError(f"question file {path}: no questions in it")
    return questions


def _collect(rows: Iterable[tuple[int, str | None, str]], path: Path) -> Questions:
    common: list[str] = []
    by_item: dict[str, list[str]] = {}
    for line, item, question in rows:
        if not question.strip():
            raise JobError(f"question file {path}, line {line}: an empty question")
        (common if item is None else by_item.setdefault(item, [])).append(question.strip())
    return Questions(
        tuple(dict.fromkeys(common)),
        {item: tuple(asked) for item, asked in by_item.items()},
        str(path),
    )


def _lines(text: str, path: Path) -> Iterable[tuple[int, str | None, str]]:
    return [(number, None, line) for number, line in enumerate(text.split("\n"), 1) if line.strip()]


def _jsonl(text: str, path: Path) -> Iterable[tuple[int, str | None, str]]:
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except ValueError as error:
            raise JobError(f"question file {path}, line {number}: not JSON ({error})") from error
        if isinstance(row, str):
            yield number, None, row
            continue
        if not isinstance(row, dict):
            raise JobError(f"question file {path}, line {number}: neither an object nor a text")
        yield number, *_pick(row, path, number)


def _csv(text: str, path: Path) -> Iterable[tuple[int, str | None, str]]:
    rows = csv.DictReader(text.splitlines(keepends=True))
    for row in rows:
        yield rows.line_num, *_pick(row, path, rows.line_num)


def _pick(row: Mapping[str, Any], path: Path, line: int) -> tuple[str | None, str]:
    question = next((row[key] for key in QUESTION_KEYS if row.get(key) is not None), None)
    if not isinstance(question, str):
        raise JobError(
            f"question file {path}, line {line}: no text under {' or '.join(QUESTION_KEYS)}"
        )
    item = next((row[key] for key in ITEM_KEYS if row.get(key)), None)
    return (None if item is None else str(item).replace("\\", "/").removeprefix("./")), question
