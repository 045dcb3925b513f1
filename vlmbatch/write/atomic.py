"""Files that are replaced whole or not at all, also through a power cut."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, TypeAlias

from vlmbatch.errors import OutputError

FileState: TypeAlias = tuple[int, int, int]
"""Inode, size in bytes, time of the last change in nanoseconds."""


def beside(path: Path, suffix: str) -> Path:
    """Return the path with a suffix added to its name: ``captions.jsonl.journal``."""
    return path.with_name(path.name + suffix)


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """Open a file for writing that takes the place of ``path`` once the block has ended well.
    Until then, and after an error, ``path`` is as it was.

    The name of the temporary file is fixed (``PATH.tmp``), so that the file of a killed run is
    overwritten. The caller holds a lock.

    Raises:
        OutputError: The file cannot be written (disk full, not permitted …).
    """
    temporary = beside(path, ".tmp")
    try:
        with open(temporary, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        if path.exists():
            shutil.copymode(path, temporary)
        os.replace(temporary, path)
        sync_folder(path.parent)
    except BaseException as error:
        with contextlib.suppress(OSError):
            temporary.unlink()
        if isinstance(error, OSError):
            raise OutputError(f"cannot write {path}: {reason(error)}") from error
        raise


def file_state(path: Path) -> FileState | None:
    """Return numbers that another file, or other content, would change; None without a file."""
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_ino, found.st_size, found.st_mtime_ns


def sync_folder(folder: Path) -> None:
    """Make the names in a folder durable, where the file system can."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):
            raise
    finally:
        os.close(handle)


def reason(error: OSError) -> str:
    """Return the cause of an error, in one line."""
    return error.strerror or " ".join(str(error).split()) or type(error).__name__


def remove(path: Path) -> None:
    """Remove a file, if it is there.

    Raises:
        OutputError: It cannot be removed.
    """
    try:
        path.unlink(missing_ok=True)
    except OSError as error:
        raise OutputError(f"cannot remove {path}: {reason(error)}") from error
