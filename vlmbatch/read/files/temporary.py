"""Temporary files with the content of URLs and archives, for formats that can only be opened as a
file. They are deleted when nothing needs them any more.

A process keeps its copies in a folder of its own among the temporary files, with a lock that the
kernel drops when the process is gone, however it ended. By that the next run knows the copies that
a killed run has left, and removes them.
"""

from __future__ import annotations

import contextlib
import fcntl
import glob
import logging
import os
import re
import shutil
import stat
import tempfile
import threading
import weakref
from collections.abc import Callable
from typing import BinaryIO

from vlmbatch.errors import ReadError, one_line

logger = logging.getLogger(__name__)

_PLAIN = re.compile(r"\.[A-Za-z0-9-]{1,15}")
_PREFIX = "vlmbatch-copies-"
_LOCK = "lock"


class TemporaryFile:
    """A file that is deleted when nothing refers to this object any more, and at the end of the
    process.

    Args:
        suffix: Of its name; one that is not plain is left out.
        fill: Writes its content; called at once. After an error of it nothing is left.

    Attributes:
        path: The file.

    Raises:
        ReadError: The disk has no room for it.
    """

    def __init__(self, suffix: str, fill: Callable[[BinaryIO], object]) -> None:
        try:
            folder = _folder()
            handle, self.path = tempfile.mkstemp(
                suffix if _PLAIN.fullmatch(suffix) else "", "copy-", folder.path
            )
            remove = weakref.finalize(self, _remove, self.path, folder)
            try:
                with open(handle, "wb") as file:
                    fill(file)
            except BaseException:
                remove()
                raise
        except OSError as exc:
            raise ReadError(f"no room for a copy: {one_line(exc)}") from exc


def _remove(path: str, folder: _Folder) -> None:
    """Remove a copy. It was the reason to keep the folder, which goes with the last one."""
    with contextlib.suppress(FileNotFoundError):
        os.unlink(path)


class _Folder:
    """The folder of a process for its copies, which goes when nothing refers to this object any
    more.

    Attributes:
        path: The folder.
    """

    def __init__(self) -> None:
        self.path = tempfile.mkdtemp(prefix=_PREFIX)
        fresh = os.path.join(self.path, "unlocked")
        handle = os.open(fresh, os.O_RDWR | os.O_CREAT, 0o600)
        weakref.finalize(self, _remove_folder, self.path, handle)
        # It takes the name that others look for once it is locked. Where there are no locks it
        # keeps the other, and nobody else removes the folder.
        with contextlib.suppress(OSError):
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            os.rename(fresh, os.path.join(self.path, _LOCK))


def _remove_folder(path: str, lock: int) -> None:
    """Remove a folder while its lock is still held, then let go."""
    shutil.rmtree(path, ignore_errors=True)
    os.close(lock)


_guard = threading.Lock()
_folders: weakref.WeakValueDictionary[tuple[str, int], _Folder] = weakref.WeakValueDictionary()


def _folder() -> _Folder:
    """Return the folder of this process."""
    place = tempfile.gettempdir(), os.getpid()
    with _guard:
        folder = _folders.get(place)
        if folder is None:
            folder = _folders[place] = _Folder()
        return folder


def remove_leftovers() -> None:
    """Remove the copies of processes of this user that are gone."""
    for path in glob.glob(os.path.join(glob.escape(tempfile.gettempdir()), f"{_PREFIX}*")):
        with contextlib.suppress(OSError):
            _remove_if_left(path)


def _remove_if_left(path: str) -> None:
    status = os.lstat(path)
    if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.geteuid():
        return
    handle = os.open(os.path.join(path, _LOCK), os.O_RDWR | os.O_NOFOLLOW)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        shutil.rmtree(path, ignore_errors=True)
        logger.info("removed %s: copies that a run has left that was killed", path)
    finally:
        os.close(handle)
