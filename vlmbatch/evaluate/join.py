"""Join the rows of an OUTPUT with the right answers, and count what has no partner."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple

from vlmbatch.errors import JobError
from vlmbatch.evaluate.ids import IdMatch, match_ids
from vlmbatch.evaluate.options import EvalOptions
from vlmbatch.evaluate.reference import Reference
from vlmbatch.evaluate.texts import clean

OutputRow = Mapping[str, Any]
Texts = dict[tuple[str, str, str], str | None]
"""Answers of an OUTPUT by id, task and prompt; None for an error row."""

ROW_COLUMNS = ("id", "task", "prompt", "text", "status")
"""Columns of an OUTPUT that an evaluation reads."""

NUM_SHOWN = 5


class Pair(NamedTuple):
    """A row of OUTPUT with the right answers.

    Attributes:
        id, task, prompt: As in the row; the id as the reference has it.
        text: Its answer; None for an error row.
        answers: The right answers.
        other: The answer of the other OUTPUT, if there is one.
    """

    id: str
    task: str
    prompt: str
    text: str | None
    answers: list[str]
    other: str | None = None


@dataclasses.dataclass
class Names:
    """A number of rows, and the names of the first few."""

    count: int = 0
    first: list[str] = dataclasses.field(default_factory=list)

    def add(self, id: str, prompt: str | None = None) -> None:
        """Count one."""
        self.count += 1
        if len(self.first) < NUM_SHOWN:
            self.first.append(f"{id} ({prompt})" if prompt else id)


@dataclasses.dataclass
class JoinCounts:
    """Numbers of rows with and without a partner.

    Attributes:
        rows: Rows of OUTPUT, of the chosen task.
        scored: Rows that are scored.
        errors: Error rows among the scored ones.
        extra: Rows of OUTPUT that the reference does not have.
        only_here, only_there: Rows that one of two OUTPUTs lacks.
        other_errors: Error rows of the other OUTPUT among the scored ones.
    """

    rows: int = 0
    scored: int = 0
    errors: int = 0
    extra: Names = dataclasses.field(default_factory=Names)
    only_here: Names = dataclasses.field(default_factory=Names)
    only_there: Names = dataclasses.field(default_factory=Names)
    other_errors: int = 0


def match_rows(rows: Iterable[OutputRow], reference: Reference, options: EvalOptions) -> IdMatch:
    """Match the ids of an OUTPUT with those of the reference."""
    ids = (row["id"] for row in _of_task(rows, options))
    return match_ids(ids, {id for id, _ in reference.entries}, options.id_prefix)


def join(
    rows: Iterable[OutputRow],
    reference: Reference,
    options: EvalOptions,
    ids: IdMatch,
    counts: JoinCounts,
    other: Texts | None = None,
) -> Iterator[Pair]:
    """Yield the rows that have right answers, in the order of OUTPUT, and count all rows.

    Args:
        rows: Rows of OUTPUT, with ``ROW_COLUMNS``.
        reference: The right answers; marked as seen.
        options: How to join.
        ids: The ids of OUTPUT in the reference.
        counts: Counted into.
        other: From ``index_texts``: rows that it lacks are left out.

    Raises:
        JobError: Nothing of OUTPUT is in the reference, or a row is there twice.
    """
    names_prompts = reference.names_prompts
    first: tuple[str, str] | None = None
    paired = set()
    for row in _of_task(rows, options):
        counts.rows += 1
        id = ids.name(row["id"])
        right = reference.find(id, row["prompt"])
        first = first or (id, row["prompt"])
        if right is None:
            counts.extra.add(id, row["prompt"] if names_prompts else None)
            continue
        right.seen = True
        text, there = _text(row), None
        if other is not None:
            key = _key(id, row, options)
            if key in paired:
                raise _twice(row)
            paired.add(key)
            if key not in other:
                counts.only_here.add(id, row["prompt"])
                continue
            there = other[key]
            counts.other_errors += there is None
        counts.scored += 1
        counts.errors += text is None
        yield Pair(id, row["task"], row["prompt"], text, right.answers, there)
    for id, task, prompt in other or ():
        if (id, task, prompt) not in paired:
            counts.only_there.add(id, prompt)
    if first and not counts.scored:
        raise JobError(_nothing_matches(*first, reference, counts))


def index_texts(
    rows: Iterable[OutputRow], reference: Reference, options: EvalOptions, ids: IdMatch
) -> Texts:
    """Collect the texts of another OUTPUT that have right answers.

    Raises:
        JobError: A row is there twice.
    """
    found: Texts = {}
    for row in _of_task(rows, options):
        id = ids.name(row["id"])
        if reference.find(id, row["prompt"]) is None:
            continue
        key = _key(id, row, options)
        if key in found:
            raise _twice(row)
        found[key] = _text(row)
    return found


def _of_task(rows: Iterable[OutputRow], options: EvalOptions) -> Iterator[OutputRow]:
    return (row for row in rows if options.task is None or row["task"] == options.task)


def _text(row: OutputRow) -> str | None:
    return None if row["status"] == "error" else clean(row["text"] or "")


def _key(id: str, row: OutputRow, options: EvalOptions) -> tuple[str, str, str]:
    """Return the key that rows of two OUTPUTs are paired by."""
    return id, row["task"], "" if options.ignore_prompt else row["prompt"]


def _twice(row: OutputRow) -> JobError:
    return JobError(
        f"{row['id']} has several rows of {row['task']}: without their prompts they cannot be told "
        "apart (leave --ignore-prompt out)"
    )


def _nothing_matches(id: str, prompt: str, reference: Reference, counts: JoinCounts) -> str:
    """Say why nothing was joined, and what to do."""
    if counts.only_here.count:
        return (
            "the two OUTPUTs share no row; --ignore-prompt pairs them by id when they asked "
            "different things"
        )
    prompts = dict(reference.entries.keys())
    if id in prompts:
        return (
            f"no prompt matches: about {id} OUTPUT has {prompt!r} and the reference "
            f"{prompts[id]!r}; --ignore-prompt joins by id alone"
        )
    return (
        f"no id matches: OUTPUT has {id!r}, the reference {next(iter(prompts))!r}; --id-column "
        "chooses the column, --id-prefix puts text before the ids of OUTPUT"
    )
