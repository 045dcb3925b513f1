"""Job files: YAML text to keys and values."""

from __future__ import annotations

import os
from typing import Any

from vlmbatch.errors import JobError
from vlmbatch.job.keys import job_key
from vlmbatch.text_files import open_text

COMMAND_KEYS = ("dry_run", "estimate", "verbose", "quiet")
"""Keys for the command line alone, which say how it runs a job."""


def read_job_values(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Return the keys and values of a job file.

    Raises:
        JobError: It cannot be read, is no mapping, or has a key twice; the message names the file.
    """
    name = os.fspath(path)
    try:
        with open_text(name, errors="strict") as file:
            text = file.read()
    except OSError as error:
        raise JobError(f"{name}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise JobError(f"{name}: it is not {error.encoding.upper()} text") from error
    return parse_job_values(text, name)


def parse_job_values(text: str, name: str) -> dict[str, Any]:
    """Return the keys and values of a job file's text.

    Args:
        text: YAML.
        name: The file, for messages.

    Raises:
        JobError: It is no mapping, or has a key twice.
    """
    import yaml

    try:
        values = yaml.safe_load(text)
        root = yaml.compose(text, yaml.SafeLoader)
    except RecursionError as error:
        raise JobError(f"{name}: not YAML: nested too deeply") from error
    except (yaml.YAMLError, ValueError) as error:
        raise JobError(f"{name}: not YAML: {' '.join(str(error).split())}") from error
    if not isinstance(values, dict):
        raise JobError(f"{name}: a job file holds keys and values, such as `task: caption`")
    _check_keys_once(root, name)
    return values


def _check_keys_once(node: Any, name: str) -> None:
    """Refuse a file with the same key twice: YAML would silently take the last one.

    Args:
        node: The composed file.
        name: The file, for the message.

    Raises:
        JobError: A key is there twice; the message has its line.
    """
    lines: dict[str, int] = {}
    for key, value in node.value if getattr(node, "id", None) == "mapping" else ():
        written, line = job_key(str(key.value)), key.start_mark.line + 1
        if written in lines:
            raise JobError(
                f"{name}, line {line}: the key {key.value!r} is there already, in line "
                f"{lines[written]}: give it once"
            )
        lines[written] = line
        if written == "serve":
            _check_keys_once(value, name)
