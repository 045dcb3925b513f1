"""Where the records go: OUTPUT as JSON Lines, Parquet or CSV, or JSON Lines on stdout."""

from __future__ import annotations

import io
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TextIO

from vlmbatch.errors import OutputError
from vlmbatch.job import Job
from vlmbatch.urls import is_url
from vlmbatch.write.atomic import reason
from vlmbatch.write.base import Writer
from vlmbatch.write.columns import Row, row_of
from vlmbatch.write.formats import find_format
from vlmbatch.write.journal import why_not_there
from vlmbatch.write.remote.file import local_copy
from vlmbatch.write.remote.output import StagedOutput, UploadPolicy
from vlmbatch.write.remote.staging import default_staging_root
from vlmbatch.write.sidecar import Sidecars, open_sidecars, sidecars_path
from vlmbatch.write.stdout import StdoutWriter
from vlmbatch.write.store import CommitPolicy, OutputStore
from vlmbatch.write.summary import read_summary, summary_path, write_summary

__all__ = [
    "CommitPolicy",
    "OutputStore",
    "Sidecars",
    "StagedOutput",
    "StdoutWriter",
    "UploadPolicy",
    "Writer",
    "default_staging_root",
    "local_copy",
    "open_output",
    "open_sidecars",
    "read_records",
    "read_summary",
    "row_of",
    "sidecars_path",
    "summary_path",
    "write_summary",
]


def open_output(job: Job, identity: Mapping[str, Any], *, stream: TextIO | None = None) -> Writer:
    """The writer that a job asks for, ready to take records.

    Args:
        job: The job.
        identity: The settings that the rows depend on: ``job.identity()`` with the revision that
            runs.
        stream: What ``-`` stands for; stdout by default.

    Raises:
        JobError: OUTPUT is a URL whose scheme is not known.
        OutputLockedError: Another run holds OUTPUT.
        OutputError: OUTPUT cannot be written, was made with other settings or is not ours.
        MissingDependencyError: The format needs a package that is not installed.
    """
    if is_url(job.output_path):
        return StagedOutput(job, identity)
    if job.output_path != "-":
        return OutputStore(Path(job.output_path), job, identity)
    stream = stream or sys.stdout
    if (
        stream is None or not stream.writable()
    ):  # None is what Python has when the process was started without
        raise OutputError("cannot write to stdout: it is closed")
    if isinstance(stream, io.TextIOWrapper):
        stream.reconfigure(encoding="utf-8", newline="\n")
    return StdoutWriter(stream)


def read_records(path: Path, columns: Sequence[str] | None = None) -> Iterator[Row]:
    """The rows of an OUTPUT, finished or not, in order, in bounded memory: whole, or restricted to
    ``columns``.

    Raises:
        OutputError: It is not there, cannot be read, or was not written by vlmbatch; at once or
            while it is read.
        MissingDependencyError: The format needs a package that is not installed.
    """
    format = find_format(path)
    try:
        file = open(path, "rb")
    except FileNotFoundError as error:
        raise OutputError(f"cannot read {path}: {why_not_there(path) or reason(error)}") from error
    except OSError as error:
        raise OutputError(f"cannot read {path}: {reason(error)}") from error

    def rows() -> Iterator[Row]:
        with file:
            try:
                if file.read(1):
                    file.seek(0)
                    yield from format.read_rows(file, columns)
            except OutputError as error:
                raise OutputError(f"{path} was not written by vlmbatch ({error})") from error
            except OSError as error:
                raise OutputError(f"cannot read {path}: {reason(error)}") from error

    return rows()
