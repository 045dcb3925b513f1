"""Question files: the same questions for every item, or rows of item and question."""

from __future__ import annotations

import csv
import dataclasses
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from vlmbatch.errors import JobError
from vlmbatch.job import Job

ITEM_KEYS = ("id", "image", "video", "path", "file", "source")
QUESTION_KEYS = ("question", "prompt", "text")


@dataclasses.dataclass(frozen=True)
class Questions:
    """What is asked about each item.

    Attributes:
        common: Asked about every item.
        by_item: Asked about items by id, or by a video's id for its frames.
    """

    common: tuple[str, ...] = ()
    by_item: Mapping[str, tuple[str, ...]] = dataclasses.field(default_factory=dict)

    def about(self, item_id: str) -> tuple[str, ...]:
        """The questions about an item, each once, common ones first."""
        own = self.by_item.get(item_id)
        if own is None and "#" in item_id:
            own = self.by_item.get(item_id.rpartition("#")[0])
        return self.common if own is None else tuple(dict.fromkeys((*self.common, *own)))


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
    return Questions(tuple(dict.fromkeys(common)), {item: tuple(asked) for item, asked in by_item.items()})


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
        raise JobError(f"question file {path}, line {line}: no text under {' or '.join(QUESTION_KEYS)}")
    item = next((row[key] for key in ITEM_KEYS if row.get(key)), None)
    return (None if item is None else str(item).replace("\\", "/").removeprefix("./")), question
