"""Columns of a table's row or of a sidecar in an archive: questions, and values that are carried
into OUTPUT.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from vlmbatch.errors import JobError, ReadError
from vlmbatch.job.questions import check_question
from vlmbatch.read.base import Counts, digest
from vlmbatch.read.files.source import Listed

MAX_DEPTH = 64
"""Levels of lists and objects inside each other that a carried value may have."""


def questions_of(value: Any) -> tuple[str, ...]:
    """Return a row's own questions: a text or a list of texts; none when the cell is empty.

    Raises:
        ReadError: It holds something else, or a text that no engine can be asked.
    """
    asked = value if isinstance(value, list) else [] if value is None else [value]
    if not all(isinstance(question, str) for question in asked):
        raise ReadError("the row's question is not a text")
    questions = tuple(dict.fromkeys(question.strip() for question in asked if question.strip()))
    try:
        for question in questions:
            check_question(question)
    except JobError as exc:
        raise ReadError(str(exc)) from exc
    return questions


def carried(row: Mapping[str, Any], kept_columns: dict[str, str], counts: Counts) -> dict[str, Any]:
    """Return the values of the kept columns by their names in OUTPUT. One that no row can hold is
    null, and counted.
    """
    extra = {}
    for column, kept in kept_columns.items():
        value = row.get(column)
        if not _can_be_carried(value, MAX_DEPTH):
            counts.values_not_carried += 1
            value = None
        extra[kept] = value
    return extra


def with_columns(
    listed: Listed, item_id: str, extra: Mapping[str, Any], questions: tuple[str, ...]
) -> Listed:
    """Return a thing with its id, its carried values and its questions. Its rows are done again
    when a carried value changes.
    """
    fingerprint = listed.fingerprint
    if extra:
        fingerprint += f":{digest(repr(extra).encode('utf-8', 'backslashreplace'))}"
    return dataclasses.replace(
        listed, id=item_id, fingerprint=fingerprint, extra=extra, questions=questions
    )


def _can_be_carried(value: Any, depth: int) -> bool:
    """Return whether JSON can hold a value: it could be read, and is not nested too deeply."""
    if isinstance(value, ReadError):
        return False
    if isinstance(value, Mapping):
        value = list(value.values())
    if isinstance(value, list | tuple):
        return depth > 0 and all(_can_be_carried(inner, depth - 1) for inner in value)
    return True
