"""Check every row before the training: can it be read and prepared, and how long is it?

The results are kept in OUT for the next start.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
import logging
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from vlmbatch.errors import ItemError, JobError
from vlmbatch.finetune.examples import ExampleMaker
from vlmbatch.finetune.rows import TrainingRow
from vlmbatch.processor import processor_share
from vlmbatch.write.atomic import replacing

report = logging.getLogger("vlmbatch.report")

MAX_LISTED = 50
AT_ONCE = 256
"""Number of pictures that are checked together."""


@dataclasses.dataclass(frozen=True)
class Verdict:
    """Result of a check.

    Attributes:
        tokens: Length of prompt and answer; 0 for a bad row.
        tiles: Number of tiles.
        error: The error of a bad row; else empty.
    """

    tokens: int = 0
    tiles: int = 0
    error: str = ""


def check_rows(
    rows: Sequence[TrainingRow],
    maker: ExampleMaker,
    known: Mapping[str, Verdict],
    stopped: Callable[[], bool],
) -> dict[str, Verdict]:
    """Check rows; a picture is loaded once for all rows about it.

    Args:
        rows: The rows.
        maker: Makes the examples of the training.
        known: Earlier verdicts by ``fingerprint``.
        stopped: Tells whether to give up.

    Returns:
        Verdicts by fingerprint.

    Raises:
        KeyboardInterrupt: ``stopped`` returned True.
    """
    found = {}
    unknown: dict[tuple[str, str, float | None], list[tuple[str, TrainingRow]]] = {}
    for row in rows:
        mark = fingerprint(row, maker)
        if mark in known:
            found[mark] = known[mark]
        elif row.error:
            found[mark] = Verdict(error=row.error)
        else:
            unknown.setdefault((row.media, row.path, row.time_seconds), []).append((mark, row))
    with ThreadPoolExecutor(min(8, max(2, processor_share().threads))) as pool:
        for some in _batched(unknown.values()):
            if stopped():
                raise KeyboardInterrupt
            for verdicts in pool.map(lambda group: _look(group, maker), some):
                found.update(verdicts)
    return found


def fingerprint(row: TrainingRow, maker: ExampleMaker) -> str:
    """Return a key that changes with the row, its file, and the preparation."""
    try:
        status = os.stat(row.path) if row.path else None
    except (OSError, ValueError):
        status = None
    file = f"{status.st_size}.{status.st_mtime_ns}" if status else "none"
    made_by = f"{maker.detail} {maker.max_pixels} {maker.checkpoint.revision}"
    return f"{row.key()} {file} {made_by} {row.error}"


def sort_out(
    rows: Sequence[TrainingRow],
    verdicts: Mapping[str, Verdict],
    maker: ExampleMaker,
    *,
    skip_bad: bool,
    name: str | None,
) -> list[TrainingRow]:
    """Log the bad rows and return the others.

    Args:
        rows: Rows of one file.
        verdicts: Verdicts by fingerprint.
        maker: The maker that the verdicts were made with.
        skip_bad: Whether to leave bad rows out.
        name: The file; None to log nothing.

    Raises:
        JobError: There are bad rows without ``skip_bad``, or no others.
    """
    good: list[TrainingRow] = []
    bad: list[tuple[TrainingRow, str]] = []
    for row in rows:
        error = verdicts[fingerprint(row, maker)].error
        bad.append((row, error)) if error else good.append(row)
    for row, error in bad[: MAX_LISTED if name else 0]:
        report.warning("%s, %s: %s%s", name, row.place, f"{row.path}: " if row.path else "", error)
    if name and len(bad) > MAX_LISTED:
        report.warning("... and %d more", len(bad) - MAX_LISTED)
    if bad and not skip_bad:
        raise JobError(
            f"{len(bad)} of {len(rows)} rows of {name} are bad; nothing was trained. Mend them, or "
            "leave them out with --skip-bad"
        )
    if not good:
        raise JobError(f"all {len(rows)} rows of {name} are bad; nothing was trained")
    return good


def read_verdicts(path: Path) -> dict[str, Verdict]:
    """Read verdicts by fingerprint; none if the file is missing or damaged."""
    try:
        with open(path, encoding="utf-8") as file:
            return {entry.pop("row"): Verdict(**entry) for entry in map(json.loads, file)}
    except (OSError, ValueError, TypeError, KeyError):
        return {}


def write_verdicts(path: Path, verdicts: Mapping[str, Verdict]) -> None:
    """Write verdicts, so that the next start of the same training does not check again.

    Raises:
        OutputError: The file cannot be written.
    """
    with replacing(path) as file:
        for mark, verdict in verdicts.items():
            file.write(json.dumps({"row": mark, **dataclasses.asdict(verdict)}).encode() + b"\n")


def _look(group: Sequence[tuple[str, TrainingRow]], maker: ExampleMaker) -> dict[str, Verdict]:
    """Check the rows about one picture or clip."""
    try:
        pixels = maker.load(group[0][1])
    except Exception as error:
        return {mark: Verdict(error=_one_line(error)) for mark, _ in group}
    found = {}
    for mark, row in group:
        try:
            example = maker.make(row, pixels)
            found[mark] = Verdict(len(example.input_ids), len(example.tiles))
        except Exception as error:  # an error that nobody foresaw makes one row bad, too
            found[mark] = Verdict(error=_one_line(error))
    return found


def _one_line(error: Exception) -> str:
    name = "" if isinstance(error, ItemError) else f"{type(error).__name__}: "
    return name + " ".join(str(error).split())


def _batched(
    groups: Iterable[Sequence[tuple[str, TrainingRow]]],
) -> Iterator[list[Sequence[tuple[str, TrainingRow]]]]:
    iterator = iter(groups)
    while some := list(itertools.islice(iterator, AT_ONCE)):
        yield some
