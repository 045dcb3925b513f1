"""OUTPUT: records as JSON Lines, Parquet or CSV, or as JSON Lines on stdout."""

from __future__ import annotations

import io
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TextIO

from vlmbatch.errors import OutputError
from vlmbatch.job import Job
from vlmbatch.urls import is_url
from vlmbatch.write.base import Writer
from vlmbatch.write.columns import row_of
from vlmbatch.write.known.look import OutputLook, look_at_output
from vlmbatch.write.records import read_by_file, read_records, read_seen
from vlmbatch.write.remote.file import local_copy
from vlmbatch.write.remote.output import StagedOutput, UploadPolicy
from vlmbatch.write.remote.staging import default_staging_root
from vlmbatch.write.runs import read_runs
from vlmbatch.write.sidecars.orphans import remove_orphans
from vlmbatch.write.sidecars.sidecar import (
    Sidecars,
    is_stretch,
    make_content,
    open_sidecars,
    sidecars_path,
)
from vlmbatch.write.stdout import StdoutWriter
from vlmbatch.write.store import CommitPolicy, OutputStore
from vlmbatch.write.summary import read_summary, summary_path, write_summary

__all__ = [
    "CommitPolicy",
    "OutputLook",
    "OutputStore",
    "Sidecars",
    "StagedOutput",
    "StdoutWriter",
    "UploadPolicy",
    "Writer",
    "default_staging_root",
    "local_copy",
    "is_stretch",
    "look_at_output",
    "make_content",
    "open_output",
    "open_sidecars",
    "read_by_file",
    "read_records",
    "read_runs",
    "read_seen",
    "read_summary",
    "remove_orphans",
    "row_of",
    "sidecars_path",
    "summary_path",
    "write_summary",
]


def open_output(
    job: Job,
    identity: Mapping[str, Any],
    *,
    stream: TextIO | None = None,
    run_id: str | None = None,
) -> Writer:
    """Open the writer that a job asks for, ready to take records.

    Args:
        job: The job.
        identity: The settings that the rows depend on: ``job.identity()`` with the revision that
            runs.
        stream: The stream that ``-`` means; stdout by default.
        run_id: Part of the name of what is published beside a remote OUTPUT that another run has
            written meanwhile.

    Raises:
        JobError: OUTPUT is a URL whose scheme is not known, a pipe or a device, or its name is too
            long.
        OutputLockedError: Another run holds OUTPUT.
        OutputError: OUTPUT cannot be written, was made with other settings or is not ours.
        MissingDependencyError: The format needs a package that is not installed.
    """
    if is_url(job.output_path):
        return StagedOutput(job, identity, run_id=run_id)
    if job.output_path != "-":
        return OutputStore(Path(job.output_path), job, identity)
    stream = stream or sys.stdout
    if stream is None or not stream.writable():  # None: the process was started without stdout
        raise OutputError("cannot write to stdout: it is closed")
    if isinstance(stream, io.TextIOWrapper):
        stream.reconfigure(encoding="utf-8", newline="\n")
    return StdoutWriter(stream)
