"""Keys of job files, and the fields of options that they name."""

from __future__ import annotations

import dataclasses
import difflib
import functools
import re
from collections.abc import Iterable, Mapping
from typing import Any, TypeVar

from vlmbatch.errors import JobError, VlmbatchError

ALIASES = {"input": "inputs", "question": "questions"}

Options = TypeVar("Options")

_OPTION = re.compile(r"(?<![\w-])--?[a-z][a-z-]*")


def job_key(text: str) -> str:
    """Return the field for a key of a job file."""
    return ALIASES.get(text, text).replace("-", "_")


def by_field(values: Mapping[str, Any], options: type[Any]) -> dict[str, Any]:
    """Return values by the fields that their keys name.

    Args:
        values: A mapping, such as a YAML file's.
        options: A dataclass of options.

    Raises:
        JobError: A key names no field; the nearest one is named.
    """
    known = {field.name for field in dataclasses.fields(options)}
    found: dict[str, Any] = {}
    for raw, value in values.items():
        key = job_key(str(raw))
        if key not in known:
            near = nearest(key, known)
            hint = f"; did you mean {near!r}?" if near else ""
            raise JobError(f"unknown key {raw!r}{hint}")
        found[key] = value
    return found


def nearest(name: str, known: Iterable[str]) -> str | None:
    """Return the known name, or an alias of one, that is nearest to a wrong one."""
    names = list(known)
    names += [alias for alias, field in ALIASES.items() if field in names]
    near = difflib.get_close_matches(name, names, 1, cutoff=0.5)
    return near[0] if near else None


def note_keywords(error: VlmbatchError, options: type[Any]) -> None:
    """Add a note to an error, which a traceback shows: the keywords of the options that its message
    names as the command line does.

    Args:
        error: The error.
        options: The dataclass of the options.
    """
    fields = dataclasses.fields(options)
    names = {f"--{field.name.replace('_', '-')}": field.name for field in fields}
    names |= {flag: field.name for field in fields for flag in field.metadata.get("flags", ())}
    found = [flag for flag in dict.fromkeys(_OPTION.findall(str(error))) if flag in names]
    if found:
        said = ", ".join(f"{flag} is {names[flag]}" for flag in found)
        error.add_note(f"As keywords: {said}")


def checks_names(options: type[Options]) -> type[Options]:
    """Make a dataclass of options name the nearest option where a keyword is none.

    Args:
        options: A dataclass that takes keywords alone. Its constructor then raises a JobError.
    """
    known = {field.name: None for field in dataclasses.fields(options)}  # type: ignore[arg-type]
    name, initialize = options.__name__, options.__init__

    @functools.wraps(initialize)
    def checked(self: Any, *positional: Any, **values: Any) -> None:
        if positional:
            first = next(iter(known))
            raise JobError(f"{name} takes keywords, such as {name}({first}={positional[0]!r:.100})")
        for key in values:
            if key not in known:
                near = nearest(key, known)
                hint = f"did you mean {job_key(near)}?" if near else f"there are {', '.join(known)}"
                raise JobError(f"{name} has no option {key}; {hint}")
        try:
            initialize(self, **values)
        except JobError as error:
            note_keywords(error, options)
            raise

    options.__init__ = checked  # type: ignore[method-assign]
    return options
