"""Sidecars whose picture or video is gone, and whose rows were removed with ``--prune``."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Sequence
from pathlib import Path

from vlmbatch.write.records import file_name, read_records
from vlmbatch.write.sidecars.record import SidecarRecord
from vlmbatch.write.sidecars.sidecar import sidecars_path
from vlmbatch.write.sources import input_folders


def remove_orphans(output: Path, inputs: Sequence[str]) -> int:
    """Remove the sidecars of an OUTPUT whose file is gone and that no row is about. Those that
    somebody edited stay, as files of others do.

    Args:
        output: OUTPUT, which no longer has the rows.
        inputs: The INPUTs of the run: a file counts as gone where these are there.

    Returns:
        The number of files removed.

    Raises:
        OutputError: OUTPUT or the record of sidecars cannot be read or written.
    """
    path = sidecars_path(output)
    if not path.exists():
        return 0
    record = SidecarRecord(path)
    orphans = record.gone(input_folders(inputs))
    if not orphans:
        return 0
    left = {file_name(row["id"]) for row in read_records(output, ("id",))}
    count = 0
    for sidecar, name in orphans.items():
        if name in left:
            continue
        with contextlib.suppress(OSError):  # it is gone, or may not be removed: it stays
            with open(sidecar, "rb") as file:
                content = file.read()
            if record.is_ours(sidecar, content):
                os.unlink(sidecar)
                count += 1
        if not os.path.lexists(sidecar):
            record.forget(sidecar)
    record.save()
    return count
