"""Runs as processes that are killed and interrupted, and what they leave on the disk."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import zlib
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from tests.media import write_picture
from tests.processes import start
from vlmbatch.write import read_records

ROOT = Path(__file__).parents[2]
CAPTION_PHOTOS = (
    *("caption", "photos", "--model", "demo", "--detail", "low"),
    *("--max-new-tokens", 4, "--progress", "off"),
)
"""A run over ``photos`` with the demo model; it needs an OUTPUT."""


def write_photos(folder: Path, count: int) -> list[str]:
    """Writes small pictures in three folders; gives their ids, in order."""
    ids = [f"{number % 3}/{number:05d}.png" for number in range(count)]
    for number, name in enumerate(ids):
        write_picture(folder / name, 12, 12, seed=number)
    return sorted(ids)


def begin(
    folder: Path, *arguments: object, program: Sequence[str] = ("-m", "vlmbatch"), **options: object
) -> subprocess.Popen[str]:
    """Starts a command in a folder."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, *program, *map(str, arguments)]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    return start(command, cwd=folder, env=environment, **pipes, **options)


def finish(
    folder: Path, *arguments: object, program: Sequence[str] = ("-m", "vlmbatch"), **options: object
) -> tuple[int, str]:
    """Runs a command in a folder; gives its exit code and what it says."""
    process = begin(folder, *arguments, program=program, **options)
    said = process.communicate()
    return process.returncode, "".join(said)


def ids_of(output: Path) -> list[str]:
    """Ids of OUTPUT's rows, which must all be readable; none when it is not there."""
    return [row["id"] for row in read_records(output)] if output.exists() else []


def kept_on_disk(output: Path) -> set[str]:
    """Ids of the rows that no crash may take away any more: those of OUTPUT, and the whole lines of
    the journal.
    """
    kept = ids_of(output)
    assert [name for name, count in Counter(kept).items() if count > 1] == []
    journal = Path(f"{output}.journal")
    for line in journal.read_bytes().splitlines(keepends=True)[1:] if journal.exists() else ():
        parts = line[9:-1].split(b" ", 6)
        if line.endswith(b"\n") and int(line[:8], 16) == zlib.crc32(line[9:-1]) and len(parts) == 7:
            kept.append(json.loads(parts[6])["id"])
    return set(kept)
