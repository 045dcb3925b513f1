"""The choice of ``--redo``: which rows of an OUTPUT are asked about again."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

from vlmbatch.errors import JobError, one_line
from vlmbatch.text_files import open_text, read_rows
from vlmbatch.write.columns import Row
from vlmbatch.write.identity import ANSWER_SETTINGS, check_identity
from vlmbatch.write.known.row_index import short_digest


class KnownFacts(NamedTuple):
    """Facts that the index has of a row beside its columns."""

    is_error: bool
    is_edited: bool
    is_stale: bool


Choice: TypeAlias = Callable[[Row, KnownFacts], bool]


def make_choice(redo: Sequence[str]) -> Choice:
    """Return whether a row is one that any of the values of ``--redo`` names. Edited rows are left
    to ``edited``.

    Raises:
        JobError: A file of ids cannot be read.
    """
    choices = [_choice(value) for value in redo]
    with_edited = "edited" in redo

    def is_chosen(row: Row, facts: KnownFacts) -> bool:
        if facts.is_edited:
            return with_edited
        return any(choice(row, facts) for choice in choices)

    return is_chosen


def _choice(value: str) -> Choice:
    kind, _, argument = value.partition(":")
    if kind == "unsure":
        limit = float(argument)
        return lambda row, facts: row["mean_logprob"] is not None and row["mean_logprob"] < limit
    if kind == "ids":
        ids = _read_ids(Path(argument))
        return lambda row, facts: row["id"] in ids or row["id"].rpartition("#")[0] in ids
    return {
        "cut-off": lambda row, facts: (
            row["finish_reason"] == "length" or row["error_type"] == "IncompleteAnswer"
        ),
        "errors": lambda row, facts: facts.is_error,
        "edited": lambda row, facts: facts.is_edited,
        "stale": lambda row, facts: facts.is_stale,
    }[kind]


def _read_ids(path: Path) -> frozenset[str]:
    """Read ids: one a line, or the column ``id`` of a .csv or .jsonl file."""
    try:
        if path.suffix.lower() in (".csv", ".jsonl"):
            return frozenset(
                str(row["id"]) for _, row in read_rows(str(path), frozenset({"id"})) if row["id"]
            )
        with open_text(str(path), errors="strict") as file:
            return frozenset(line for line in file.read().splitlines() if line.strip())
    except KeyError as error:
        raise JobError(f"redo ids:{path}: it has no column id") from error
    except (OSError, ValueError) as error:
        raise JobError(f"redo ids:{path}: {one_line(error)}") from error


def check_items(output: str, there: Mapping[str, Any], here: Mapping[str, Any]) -> None:
    """Refuse other settings of those that the choice of items depends on: no OUTPUT mixes these.

    Raises:
        OutputError: They differ.
    """
    answers = (*ANSWER_SETTINGS, "tasks")
    check_identity(
        output,
        {name: value for name, value in there.items() if name not in answers},
        {name: value for name, value in here.items() if name not in answers},
    )


def answer_settings(identity: Mapping[str, Any], task: str) -> dict[str, Any]:
    """Return the settings that answers to a task depend on."""
    found = {name: identity[name] for name in ANSWER_SETTINGS if identity.get(name)}
    return {**found, **((identity.get("tasks") or {}).get(task) or {})}


def own_settings(here: Mapping[str, Any], identity: Mapping[str, Any], task: str) -> int:
    """Return the digest of a run's settings for a task; 0 when they are those of the identity."""
    digest = settings_digest(here, task)
    return 0 if digest == settings_digest(identity, task) else digest


def with_tasks(
    identity: Mapping[str, Any], first: Mapping[str, Any], last: Mapping[str, Any]
) -> dict[str, Any]:
    """Return settings with the tasks of both others; those of the last one count."""
    tasks = {**(first.get("tasks") or {}), **(last.get("tasks") or {})}
    return {**identity, "tasks": tasks}


def describe(identity: Mapping[str, Any], task: str) -> str:
    """Return the settings that answers to a task depend on, as the column ``settings`` has them."""
    return json.dumps(answer_settings(identity, task), ensure_ascii=False)


def settings_digest(identity: Mapping[str, Any], task: str) -> int:
    """Return a digest of these settings: the same for a folder under another path."""
    settings = answer_settings(identity, task)
    is_folder = str(settings.get("revision")).startswith("sha256:")
    compared = {k: v for k, v in settings.items() if not (is_folder and k == "model")}
    return short_digest(json.dumps(compared, sort_keys=True))
