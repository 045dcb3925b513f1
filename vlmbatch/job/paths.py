"""Paths in options: ``~`` stands for a home folder, as in a shell; variables are not expanded."""

from __future__ import annotations

import dataclasses
import os
import re
from typing import Any

from vlmbatch.errors import JobError
from vlmbatch.urls import is_url

_VARIABLE = re.compile(r"\$([A-Za-z_]\w*|\{[A-Za-z_]\w*\})")


def expand_homes(options: Any) -> None:
    """Replace ``~`` and ``~user`` at the start of every path of a dataclass of options. Its path
    fields are those with ``is_path`` in their metadata.

    Raises:
        JobError: A path has a folder such as ``$HOME`` that does not exist.
    """
    for field in dataclasses.fields(options):
        value = getattr(options, field.name)
        if not field.metadata.get("is_path") or not value:
            continue
        if isinstance(value, tuple):
            value = tuple(_expanded(field.name, entry) for entry in value)
        object.__setattr__(options, field.name, _expanded(field.name, value))


def _expanded(name: str, value: Any) -> Any:
    """Return a path with its home folder; anything that is no path as it stands."""
    if not isinstance(value, str) or is_url(value):
        return value
    path = value
    if value.startswith("~") and not _is_there(value):
        try:
            path = os.path.expanduser(value)
        except ValueError:  # a user cannot have such a name
            return value
    _check_variables(name, path)
    return path


def _is_there(path: str) -> bool:
    """Return whether ``~name`` is a file or folder here, as a shell's ``*`` may have found it."""
    return path.partition("/")[0] != "~" and os.path.lexists(path)


def _check_variables(name: str, path: str) -> None:
    """Refuse a path that was meant for a shell: a folder of its literal name would be made."""
    so_far = ""
    for part in re.split(r"(?<=/)", path):
        so_far += part
        if _VARIABLE.fullmatch(part.rstrip("/")) and not os.path.lexists(so_far.rstrip("/")):
            raise JobError(
                f"{name}: there is no {so_far.rstrip('/')}, and variables are not expanded here; "
                "write the path itself, or ~ for your home folder"
            )
