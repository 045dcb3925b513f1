"""``OUTPUT.runs.jsonl``: a line for each run over an OUTPUT, the oldest first."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from vlmbatch.errors import OutputError
from vlmbatch.write.atomic import beside, reason, replacing
from vlmbatch.write.jsonl import encode

RUNS = ".runs.jsonl"
"""Suffix of the file beside OUTPUT."""


def append_run(output: Path, run: Mapping[str, Any]) -> None:
    """Add the line of a run, durably. A line that a power cut left half written stays alone.

    Raises:
        OutputError: It cannot be written.
    """
    path = beside(output, RUNS)
    line = encode(dict(run)).encode("utf-8", "backslashreplace") + b"\n"
    try:
        with open(path, "ab+") as file:
            if file.tell():
                file.seek(-1, os.SEEK_END)
                line = line if file.read() == b"\n" else b"\n" + line
            file.write(line)
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        raise OutputError(f"cannot write {path}: {reason(error)}") from error


def read_runs(output: Path) -> list[dict[str, Any]]:
    """Read the lines beside an OUTPUT, in order; damaged ones are left out.

    Raises:
        OutputError: They cannot be read.
    """
    path = beside(output, RUNS)
    try:
        lines = path.read_bytes().splitlines()
    except FileNotFoundError:
        return []
    except OSError as error:
        raise OutputError(f"cannot read {path}: {reason(error)}") from error
    return [run for line in lines if (run := _decode(line)) is not None]


def merge_runs(output: Path, others: Iterable[Mapping[str, Any]]) -> None:
    """Add the runs that another copy of the file knows, in the order of their starts.

    Raises:
        OutputError: The file cannot be read or written.
    """
    here = read_runs(output)
    found = {str(run.get("run_id")): run for run in (*others, *here)}
    if len(found) == len(here):
        return
    ordered = sorted(found.values(), key=lambda run: str(run.get("started_at")))
    with replacing(beside(output, RUNS)) as file:
        for run in ordered:
            file.write(encode(dict(run)).encode("utf-8", "backslashreplace") + b"\n")


def _decode(line: bytes) -> dict[str, Any] | None:
    try:
        run = json.loads(line)
    except ValueError:
        return None
    return run if isinstance(run, dict) else None
