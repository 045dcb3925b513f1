"""Corrections by people, put back into an OUTPUT: ``text`` becomes the corrected text, and
``text_original`` keeps what the model said.
"""

from __future__ import annotations

import collections
import dataclasses
import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from vlmbatch.correct.files import Corrections, FileCorrections, FolderCorrections, NewText
from vlmbatch.errors import JobError, NothingFound
from vlmbatch.job import Job
from vlmbatch.urls import is_url
from vlmbatch.write import OutputStore, StagedOutput, read_summary
from vlmbatch.write.columns import Row
from vlmbatch.write.known.known_rows import CorrectionOutcome
from vlmbatch.write.records import file_name

__all__ = ["Corrected", "correct_output"]


@dataclasses.dataclass(frozen=True)
class Corrected:
    """The end of a correction.

    Attributes:
        texts: Number of texts that were replaced.
        same: Number of rows that stay as they are.
        unused: Corrections that no row took, each with the reason, in their order.
        replaced: Ids of those rows of ``texts`` that had another correction.
        kept: Ids of those rows of ``same`` for which there is another text that vlmbatch wrote
            itself: in a sidecar that nobody edited, or the model's own.
    """

    texts: int
    same: int
    unused: tuple[str, ...]
    replaced: tuple[str, ...] = ()
    kept: tuple[str, ...] = ()


def correct_output(output: str, source: Path, *, staging_dir: str | None = None) -> Corrected:
    """Put corrections into an OUTPUT, whole or not at all. A text that vlmbatch wrote and nobody
    edited is no correction: it takes no other correction back.

    Args:
        output: The file, or its URL.
        source: A .jsonl or .csv file with columns ``id`` and ``text``, and ``prompt`` and ``task``
            where an item has several rows; or a folder of ``.txt`` sidecars.
        staging_dir: Folder for the rows of an OUTPUT that is a URL; None: the usual one.

    Raises:
        JobError: The corrections cannot be understood, or one of them is for several rows.
        NothingFound: No row takes any of them.
        OutputLockedError: A run holds OUTPUT.
        OutputError: OUTPUT cannot be read or written.
    """
    corrections: Corrections
    corrections = FolderCorrections(source) if source.is_dir() else FileCorrections(source)
    with _open(output, staging_dir) as store:
        found: list[NewText] = []
        for _, rows in itertools.groupby(_rows(store), lambda row: file_name(row["id"])):
            found += corrections.of(list(rows))
        unused = corrections.unused()
        if not found:
            raise NothingFound(
                f"nothing in {source} is for a row of {output}"
                + (f": {unused[0]}" if unused else "")
            )
        ids = collections.defaultdict[CorrectionOutcome, list[str]](list)
        for row, text, is_ours in found:
            key = (row["id"], row["task"], row["prompt"])
            ids[store.correct(*key, text, is_ours=is_ours)].append(row["id"])
    texts = len(ids["corrected"]) + len(ids["replaced"])
    return Corrected(
        texts, len(found) - texts, tuple(unused), tuple(ids["replaced"]), tuple(ids["kept"])
    )


def _rows(store: OutputStore) -> Iterator[Row]:
    return store.rows(("id", "task", "prompt", "text", "status", "time_seconds", "end_seconds"))


def _open(output: str, staging_dir: str | None) -> OutputStore:
    """Open an OUTPUT with the settings that it has."""
    values: dict[str, Any] = {"inputs": ["-"], "output": output}
    if is_url(output):
        return StagedOutput(Job.from_dict({**values, "staging_dir": staging_dir}), None)
    path = Path(output)
    if not path.exists() and not Path(f"{output}.journal").exists():
        raise JobError(f"there is no {output}: give the OUTPUT of a run")
    made_by = (read_summary(path) or {}).get("job")
    try:  # it stands in the metadata of Parquet files
        job = Job.from_dict({**made_by, "output": output}) if made_by else Job.from_dict(values)
    except JobError:
        job = Job.from_dict(values)
    return OutputStore(path, dataclasses.replace(job, overwrite=False), None)
