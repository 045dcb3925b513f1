"""``--json``: the result of a command as JSON, in a file or on stdout in place of the table."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

from vlmbatch.errors import JobError

json_option = click.option(
    "--json",
    "json_path",
    is_flag=False,
    flag_value="-",
    metavar="[PATH.json|-]",
    help="Also write JSON to a file, or to stdout instead of the table.",
)
"""Add the option to a command."""


def check_json_path(path: str | None) -> None:
    """Refuse a name that is none of a JSON file: without a name, the next word is taken for it.

    Raises:
        JobError: It does not end in ``.json``.
    """
    if path not in (None, "-") and Path(str(path)).suffix != ".json":
        raise JobError(f"--json {path}: write a name that ends in .json, or - for stdout")


def write_json(path: str, value: dict[str, Any]) -> None:
    """Write a value to a file, or to stdout (``-``)."""
    text = json.dumps(value, ensure_ascii=False, indent=2, allow_nan=False)
    if path == "-":
        click.echo(text)
        return
    from vlmbatch.write.atomic import replacing

    with replacing(Path(path)) as file:
        file.write(text.encode("utf-8", "backslashreplace") + b"\n")
