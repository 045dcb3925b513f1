"""Files that hold or name many things, by their extensions. They are opened where the user names
them; inside folders they are left alone.
"""

from __future__ import annotations

from typing import Literal

from vlmbatch.job.inputs import TABLE_SUFFIXES

MANIFEST_SUFFIXES = (".txt", *TABLE_SUFFIXES)
_PACKED_TARS = ".tar.gz .tgz .tar.zst .tzst .tar.bz2 .tbz2 .tar.xz .txz"
PACKED_TAR_SUFFIXES = tuple(_PACKED_TARS.split())
ARCHIVE_SUFFIXES = (".zip", ".tar", *PACKED_TAR_SUFFIXES)


def bundle_kind(path: str) -> Literal["manifest", "archive"] | None:
    """Return what a file is by its name; None when it holds one thing."""
    name = path.lower()
    if name.endswith(MANIFEST_SUFFIXES):
        return "manifest"
    return "archive" if name.endswith(ARCHIVE_SUFFIXES) else None


def is_stream(text: str) -> bool:
    """Return whether an INPUT can only be counted by reading all of it, or not even then."""
    return text == "-" or text.lower().endswith(PACKED_TAR_SUFFIXES)
