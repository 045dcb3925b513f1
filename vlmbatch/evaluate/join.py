"""Brings the rows of an OUTPUT and the right answers together, and keeps count of what has no
partner.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple

from vlmbatch.errors import JobError
from vlmbatch.evaluate.options import EvalOptions
from vlmbatch.evaluate.reference import Reference
from vlmbatch.evaluate.texts import clean

Row = Mapping[str, Any]
Answers = dict[tuple[str, str, str], str | None]

ROW_COLUMNS = ("id", "task", "prompt", "text", "status")
"""What an evaluation reads of an OUTPUT."""

SHOWN = 5


class Pair(NamedTuple):
    """A row of OUTPUT with the right answers.

    Attributes:
        id, task, prompt: The row's.
        text: Its answer; None for an error row.
        answers: What is right.
        other: The answer of the other OUTPUT, when there is one.
    """

    id: str
    task: str
    prompt: str
    text: str | None
    answers: list[str]
    other: str | None = None


@dataclasses.dataclass
class Names:
    """How many there are, and the first few by name."""

    count: int = 0
    first: list[str] = dataclasses.field(default_factory=list)

    def add(self, id: str, prompt: str | None = None) -> None:
        """Counts one."""
        self.count += 1
        if len(self.first) < SHOWN:
            self.first.append(f"{id} ({prompt})" if prompt else id)


@dataclasses.dataclass
class Counts:
    """What was found on the way.

    Attributes:
        rows: Rows of OUTPUT, of the task that was asked for.
        scored: Rows that are scored.
        errors: Error rows among these.
        extra: Rows of OUTPUT that nothing is known about.
        only_here, only_there: Rows that one of two OUTPUTs lacks.
        other_errors: Error rows of the other OUTPUT among those that are scored.
    """

    rows: int = 0
    scored: int = 0
    errors: int = 0
    extra: Names = dataclasses.field(default_factory=Names)
    only_here: Names = dataclasses.field(default_factory=Names)
    only_there: Names = dataclasses.field(default_factory=Names)
    other_errors: int = 0


def join(
    rows: Iterable[Row],
    reference: Reference,
    options: EvalOptions,
    counts: Counts,
    other: Answers | None = None,
) -> Iterator[Pair]:
    """Gives the rows that there are right answers for, in the order of OUTPUT; counts them and the
    rest.

    Args:
        rows: Of OUTPUT, with ``ROW_COLUMNS``.
        reference: What is right; marks what was seen.
        options: How to join.
        counts: Counted into.
        other: From ``index_answers``: rows that it lacks are not given.

    Raises:
        JobError: Nothing of OUTPUT is in the reference, or a row is there twice.
    """
    names_prompts = reference.names_prompts
    first, paired = ("", ""), set()
    for row in _of_task(rows, options):
        counts.rows += 1
        id = options.id_prefix + row["id"]
        entry = reference.find(id, row["prompt"])
        first = first if first[0] else (id, row["prompt"])
        if entry is None:
            counts.extra.add(id, row["prompt"] if names_prompts else None)
            continue
        entry.seen = True
        text, there = _text(row), None
        if other is not None:
            key = _key(row, options)
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
        yield Pair(id, row["task"], row["prompt"], text, entry.answers, there)
    if other is not None:
        for key in other:
            if key not in paired:
                counts.only_there.add(key[0], key[2])
    if counts.rows and not counts.scored:
        raise JobError(_nothing_matches(*first, reference, options, counts))


def index_answers(rows: Iterable[Row], reference: Reference, options: EvalOptions) -> Answers:
    """The answers of another OUTPUT, as far as there are right answers for them.

    Raises:
        JobError: A row is there twice.
    """
    found: Answers = {}
    for row in _of_task(rows, options):
        if reference.find(options.id_prefix + row["id"], row["prompt"]) is None:
            continue
        key = _key(row, options)
        if key in found:
            raise _twice(row)
        found[key] = _text(row)
    return found


def _of_task(rows: Iterable[Row], options: EvalOptions) -> Iterator[Row]:
    return (row for row in rows if options.task is None or row["task"] == options.task)


def _text(row: Row) -> str | None:
    return None if row["status"] == "error" else clean(row["text"] or "")


def _key(row: Row, options: EvalOptions) -> tuple[str, str, str]:
    """What pairs the rows of two OUTPUTs."""
    return (
        options.id_prefix + row["id"],
        row["task"],
        "" if options.ignore_prompt else row["prompt"],
    )


def _twice(row: Row) -> JobError:
    return JobError(
        f"{row['id']} has several rows of {row['task']}: without their prompts they cannot be told apart (leave --ignore-prompt out)"
    )


def _nothing_matches(
    id: str, prompt: str, reference: Reference, options: EvalOptions, counts: Counts
) -> str:
    """Why nothing was joined, with what would."""
    if counts.only_here.count:
        return "the two OUTPUTs share no row; --ignore-prompt pairs them by id when they asked different things"
    prompts = dict(reference.entries.keys())
    if id in prompts:
        return f"no prompt matches: about {id} OUTPUT has {prompt!r} and the reference {prompts[id]!r}; --ignore-prompt joins by id alone"
    message = f"no id matches: OUTPUT has {id!r}, the reference {next(iter(prompts))!r}"
    prefixes = {known.removesuffix(id) for known in prompts if known.endswith(f"/{id}")}
    return (
        f"{message}; with --id-prefix {prefixes.pop()} it would be found"
        if len(prefixes) == 1 and not options.id_prefix
        else message
    )
