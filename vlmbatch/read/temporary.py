"""Copies on the disk of what can only be opened as a file, and is none: what URLs and archives hold. They go when nothing needs them any more."""

from __future__ import annotations

import contextlib
import functools
import os
import re
import tempfile
import weakref
from collections.abc import Callable
from typing import BinaryIO

from vlmbatch.errors import ReadError
from vlmbatch.read.base import one_line
from vlmbatch.records import Pixels

_PLAIN = re.compile(r"\.[A-Za-z0-9-]{1,15}")


class TemporaryFile:
    """A file that is deleted when nothing refers to this object any more, and at the end of the process.

    Args:
        suffix: Of its name; one that is not plain is left out.
        fill: Writes what it holds; it is called at once, and after an error of its own nothing is left.

    Attributes:
        path: The file.

    Raises:
        ReadError: The disk has no room for it.
    """

    def __init__(self, suffix: str, fill: Callable[[BinaryIO], None]) -> None:
        try:
            handle, self.path = tempfile.mkstemp(suffix if _PLAIN.fullmatch(suffix) else "", "vlmbatch-")
            remove = weakref.finalize(self, _remove, self.path)
            try:
                with open(handle, "wb") as file:
                    fill(file)
            except BaseException:
                remove()
                raise
        except OSError as exc:
            raise ReadError(f"no room for a copy: {one_line(exc)}") from exc

    def bind(self, load: Callable[[], Pixels]) -> Callable[[], Pixels]:
        """A ``load`` that keeps the file for as long as it may be called."""
        return functools.partial(_load, self, load)


def _load(kept: TemporaryFile, load: Callable[[], Pixels]) -> Pixels:
    return load()


def _remove(path: str) -> None:
    with contextlib.suppress(FileNotFoundError):
        os.unlink(path)
