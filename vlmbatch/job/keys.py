"""Keys of job files, and the fields of options that they name."""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Mapping
from typing import Any

from vlmbatch.errors import JobError

ALIASES = {"input": "inputs", "question": "questions"}


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
            names = [*known, *(alias for alias, name in ALIASES.items() if name in known)]
            near = difflib.get_close_matches(key, names, 1, cutoff=0.5)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            raise JobError(f"unknown key {raw!r}{hint}")
        found[key] = value
    return found
