"""Temporary files with the content of URLs and archives, for formats that can only be opened as a
file. They are deleted when nothing needs them any more.

A process keeps its copies in a folder of its own among the temporary files, with a lock that the
kernel drops when the process is gone, however it ended. By that the next run knows the copies that
a killed run has left, and removes them.
"""

from __future__ import annotations

import contextlib
import fcntl
import functools
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

from vlmbatch.core import Pixels
from vlmbatch.errors import ReadError
from vlmbatch.read.base import one_line

logger = logging.getLogger(__name__)

_PLAIN = re.compile(r"\.[A-Za-z0-9-]{1,15}")
_LOCKED = "vlmbatch-copies-"
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

    def __init__(self, suffix: str, fill: Callable[[BinaryIO], None]) -> None:
        try:
            folder = _enter()
            try:
                handle, self.path = tempfile.mkstemp(
                    suffix if _PLAIN.fullmatch(suffix) else "", "copy-", folder.path
                )
            except BaseException:
                _leave(folder)
                raise
            remove = weakref.finalize(self, _remove, self.path, folder)
            try:
                with open(handle, "wb") as file:
                    fill(file)
            except BaseException:
                remove()
                raise
        except OSError as exc:
            raise ReadError(f"no room for a copy: {one_line(exc)}") from exc

    def bind(self, load: Callable[[str], Pixels]) -> Callable[[], Pixels]:
        """Return a ``load`` of the file at a path; the file stays for as long as it exists."""
        return functools.partial(_load, self, load)


def _load(kept: TemporaryFile, load: Callable[[str], Pixels]) -> Pixels:
    return load(kept.path)


def _remove(path: str, folder: _Folder) -> None:
    with contextlib.suppress(FileNotFoundError):
        os.unlink(path)
    _leave(folder)


class _Folder:
    """The folder of a process for its copies.

    Attributes:
        path: The folder.
        num_copies: How many files are in it, or about to be.
    """

    def __init__(self, root: str) -> None:
        self.num_copies = 0
        self.path = tempfile.mkdtemp("", "vlmbatch-", root)
        try:
            self._handle = os.open(os.path.join(self.path, _LOCK), os.O_RDWR | os.O_CREAT, 0o600)
        except OSError:
            os.rmdir(self.path)
            raise
        # It takes the name that others look for once it is locked. Where there are no locks it
        # keeps the other, and nobody else removes it.
        with contextlib.suppress(OSError):
            fcntl.flock(self._handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            locked = os.path.join(
                root, _LOCKED + os.path.basename(self.path).removeprefix("vlmbatch-")
            )
            os.rename(self.path, locked)
            self.path = locked

    def remove(self) -> None:
        """Remove it while the lock is still held, then let go."""
        with contextlib.suppress(OSError):
            os.unlink(os.path.join(self.path, _LOCK))
            os.rmdir(self.path)
        os.close(self._handle)


_guard = threading.RLock()
_folders: dict[tuple[str, int], _Folder] = {}
_is_entering = False


def _enter() -> _Folder:
    """Return the folder for one more copy."""
    global _is_entering
    place = tempfile.gettempdir(), os.getpid()
    with _guard:
        # a copy may go at any moment, also on this thread while it is here: its folder stays then
        _is_entering = True
        try:
            folder = _folders.get(place)
            if folder is None:
                folder = _folders[place] = _Folder(place[0])
            folder.num_copies += 1
            return folder
        finally:
            _is_entering = False


def _leave(folder: _Folder) -> None:
    """Count a copy less; with the last one the folder goes."""
    with _guard:
        folder.num_copies -= 1
        if folder.num_copies == 0 and not _is_entering:
            for place in [place for place, other in _folders.items() if other is folder]:
                del _folders[place]
            folder.remove()


def remove_leftovers() -> None:
    """Remove the copies of processes of this user that are gone."""
    root = tempfile.gettempdir()
    with contextlib.suppress(OSError), os.scandir(root) as entries:
        for entry in entries:
            if entry.name.startswith(_LOCKED):
                with contextlib.suppress(OSError):
                    _remove_if_left(entry.path)


def _remove_if_left(path: str) -> None:
    status = os.lstat(path)
    if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.geteuid():
        return
    try:
        handle = os.open(os.path.join(path, _LOCK), os.O_RDWR | os.O_NOFOLLOW)
    except FileNotFoundError:
        os.rmdir(path)  # it was about to go: the lock goes last but for the folder
        return
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        shutil.rmtree(path, ignore_errors=True)
        logger.info("removed %s: copies that a run has left that was killed", path)
    finally:
        os.close(handle)
