"""Read right answers from a .jsonl, .csv or .parquet file.

A row has an id, one or more answers, and a question if several were asked.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from vlmbatch.errors import JobError, one_line
from vlmbatch.evaluate.options import Columns
from vlmbatch.evaluate.texts import clean
from vlmbatch.text_files import ID_COLUMNS, PROMPT_COLUMNS, parse_json, read_rows
from vlmbatch.write.columns import clean_text

ANSWER_COLUMNS = ("answers", "answer", "caption", "text")

NumberedRows = Iterator[tuple[int, Mapping[str, Any]]]
"""Rows with the number of their line or row."""


@dataclasses.dataclass(slots=True)
class RightAnswers:
    """The right answers to one question about one item.

    Attributes:
        answers: All of them; rows of the same id and question add up.
        seen: Whether OUTPUT answers the question.
    """

    answers: list[str]
    seen: bool = False


@dataclasses.dataclass
class Reference:
    """The right answers of a file.

    Attributes:
        entries: By id and prompt; the prompt is None for answers to any question.
        without_answer: Number of rows without an answer: an empty field, null, or an error row of
            another OUTPUT.
    """

    entries: dict[tuple[str, str | None], RightAnswers] = dataclasses.field(default_factory=dict)
    without_answer: int = 0

    def find(self, id: str, prompt: str) -> RightAnswers | None:
        """Return the right answers to a question about an item, or else those to any question."""
        return self.entries.get((id, prompt.strip())) or self.entries.get((id, None))

    @property
    def names_prompts(self) -> bool:
        """Whether there are several questions about an item."""
        return len({prompt for _, prompt in self.entries}) > 1

    @property
    def answers_per_row(self) -> tuple[int, int]:
        """The fewest and the most answers to a question."""
        counts = [len(entry.answers) for entry in self.entries.values()]
        return min(counts), max(counts)


def read_reference(path: Path, columns: Columns, *, ignore_prompt: bool = False) -> Reference:
    """Read a reference; another OUTPUT whose ``text`` was corrected is one.

    Args:
        path: The file.
        columns: Columns to read.
        ignore_prompt: Read no prompt, even if there is a column.

    Raises:
        JobError: It cannot be read or understood; the message names the line or the columns.
        MissingDependencyError: A .parquet file, and pyarrow is not installed.
    """
    rows = {".jsonl": _text, ".csv": _text, ".parquet": _parquet}.get(path.suffix.lower())
    if rows is None:
        raise JobError(f"reference {path}: write it as .jsonl, .csv or .parquet")
    wanted = ColumnNames(
        (columns.id,) if columns.id else ID_COLUMNS,
        () if ignore_prompt else (columns.prompt,) if columns.prompt else PROMPT_COLUMNS,
        tuple((name,) for name in columns.answers) or (ANSWER_COLUMNS,),
        prompt_is_named=bool(columns.prompt),
    )
    names = (*wanted.ids, *wanted.prompts, *itertools.chain(*wanted.answers), "status")
    unit = "row" if path.suffix.lower() == ".parquet" else "line"
    reference = Reference()
    try:
        for number, row in rows(path, names):
            _add(reference, row, wanted, f"reference {path}, {unit} {number}")
    except OSError as error:
        raise JobError(f"reference {path}: {one_line(error)}") from error
    except JobError:
        raise
    except ValueError as error:
        raise JobError(f"reference {path}: {error}") from error
    if not reference.entries:
        raise JobError(
            f"reference {path}: no answers in it"
            + (
                f"; all of its {reference.without_answer} rows have none"
                if reference.without_answer
                else ""
            )
        )
    return reference


class ColumnNames(NamedTuple):
    """Possible names of each column: the first one that is not null in a row counts.

    Answers may come from several columns.
    """

    ids: tuple[str, ...]
    prompts: tuple[str, ...]
    answers: tuple[tuple[str, ...], ...]
    prompt_is_named: bool


def _add(reference: Reference, row: Mapping[str, Any], wanted: ColumnNames, where: str) -> None:
    _, item = _find(row, wanted.ids, where, "--id-column")
    if item is None or item == "":
        raise JobError(f"{where}: an empty id")
    if wanted.prompt_is_named or any(name in row for name in wanted.prompts):
        _, prompt = _find(row, wanted.prompts, where, "--prompt-column")
    else:
        prompt = None
    answers = [
        answer
        for names in wanted.answers
        for answer in _answers(*_find(row, names, where, "--answer-column"), where)
    ]
    if not answers or row.get("status") == "error":
        reference.without_answer += 1
        return
    asked = None if prompt is None else clean_text(str(prompt)).strip() or None
    key = clean_text(str(item)).replace("\\", "/").removeprefix("./"), asked
    reference.entries.setdefault(key, RightAnswers([])).answers.extend(answers)


def _find(row: Mapping[str, Any], names: Sequence[str], where: str, option: str) -> tuple[str, Any]:
    """Return the first of the columns that is not null in this row, and its value."""
    there = [name for name in names if name in row]
    if not there:
        columns = ", ".join(str(name) for name in row if name is not None) or "nothing"
        raise JobError(
            f"{where}: no column named {', '.join(names)}; there is {columns}: choose with {option}"
        )
    return next(((name, row[name]) for name in there if row[name] is not None), (there[0], None))


def _answers(name: str, value: Any, where: str) -> list[str]:
    """Return the right answers in a cell: a text, a number, or a list of them.

    The VQA data sets have lists of objects with ``answer``.
    """
    if value is None:
        return []
    if name == "answers" and isinstance(value, str) and value.lstrip().startswith("["):
        try:
            value = parse_json(value)
        except ValueError as error:
            raise JobError(f"{where}: {name!r} is not a JSON list ({error})") from error
    found = []
    for entry in value if isinstance(value, list) else [value]:
        plain = entry.get("answer") if isinstance(entry, dict) else entry
        if isinstance(plain, bool) or not isinstance(plain, str | int | float):
            raise JobError(
                f"{where}: the answer {json.dumps(entry, default=str)[:60]} is neither a text nor "
                "a number"
            )
        found.append(clean(str(plain)))
    return found


def _text(path: Path, names: Sequence[str]) -> NumberedRows:
    for number, row in read_rows(str(path), frozenset(name.lower() for name in names)):
        if path.suffix.lower() == ".csv":
            # An empty field has no answer yet; in a row of an OUTPUT the status says whether there
            # is a text.
            said = row.get("status") in ("ok", "similar")
            row = {
                name: None if value == "" and not (said and name == "text") else value
                for name, value in row.items()
            }
        yield number, row


def _parquet(path: Path, names: Sequence[str]) -> NumberedRows:
    from vlmbatch.write.parquet import require

    arrow = require()
    with open(path, "rb") as file:
        try:
            table = arrow.parquet.ParquetFile(file)
            every = table.schema_arrow.names
            for number, row in enumerate(
                _read(table, [name for name in names if name in every]), 1
            ):
                yield number, dict.fromkeys(every) | row
        except arrow.ArrowException as error:
            raise JobError(f"reference {path}: it is not a Parquet file ({error})") from error


def _read(table: Any, names: Sequence[str]) -> Iterator[dict[str, Any]]:
    """Yield the rows of some columns; others, such as pictures, are not read from the disk."""
    for batch in table.iter_batches(columns=list(names)):
        yield from batch.to_pylist()
