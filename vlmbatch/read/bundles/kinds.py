"""Files that hold many things or name them: manifests and archives. They are opened where the user
names them; inside folders they are left alone.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Literal

from vlmbatch.job import Job
from vlmbatch.job.inputs import TABLE_SUFFIXES
from vlmbatch.read.base import Counts

if TYPE_CHECKING:
    from vlmbatch.read.files.source import Part

MANIFEST_SUFFIXES = (".txt", *TABLE_SUFFIXES)
PACKED_TAR_SUFFIXES = (
    ".tar.gz",
    ".tgz",
    ".tar.zst",
    ".tzst",
    ".tar.bz2",
    ".tbz2",
    ".tar.xz",
    ".txz",
)
ARCHIVE_SUFFIXES = (".zip", ".tar", *PACKED_TAR_SUFFIXES)


def bundle_kind(path: str) -> Literal["manifest", "archive"] | None:
    """What a file is by its name; None when it holds one thing."""
    name = path.lower()
    return (
        "manifest"
        if name.endswith(MANIFEST_SUFFIXES)
        else "archive"
        if name.endswith(ARCHIVE_SUFFIXES)
        else None
    )


def is_stream(text: str) -> bool:
    """Whether an INPUT can only be counted by reading all of it, or not even then."""
    return text == "-" or text.lower().endswith(PACKED_TAR_SUFFIXES)


def open_bundle(path: str, name: str, job: Job, counts: Counts, names_only: bool) -> Iterable[Part]:
    """What a manifest or archive holds, in its order.

    Args:
        path: The file.
        name: What it is called in ids, valid UTF-8.
        job: The job.
        counts: Where what is left alone is counted.
        names_only: Whether things are only counted: their bytes are then not read.

    Raises:
        JobError: The columns of a manifest cannot be understood.
    """
    if bundle_kind(path) == "manifest":
        from vlmbatch.read.bundles.manifest import Manifest

        return Manifest(path, name, job, names_only)
    from vlmbatch.read.bundles.archive import Archive

    return Archive(path, name, job, counts, names_only)
