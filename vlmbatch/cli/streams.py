"""Standard streams that are closed at the start, as under some daemons, or that fail later."""

from __future__ import annotations

import io
import os
import sys
from typing import Any


class _Tolerant(io.FileIO):
    """A file that drops what it cannot write."""

    def write(self, data: Any) -> int:
        try:
            return super().write(data)
        except OSError:
            return len(data)


def open_streams() -> None:
    """Make the standard streams safe to use.

    A closed stream is opened on the null device. Otherwise the next file that is opened gets its
    number, and whatever a library writes to the stream lands in that file. Standard output is
    opened for reading only: a command that has something to write there must fail.

    Standard error never fails: a terminal that is gone or a full disk must not change how a run
    ends. Characters that the encoding of standard output lacks are written as escape sequences.
    """
    for descriptor, name, mode in ((0, "stdin", "r"), (1, "stdout", "r"), (2, "stderr", "w")):
        try:
            os.fstat(descriptor)
        except OSError:
            # The system gives the lowest free number, and that is this one.
            os.open(os.devnull, os.O_RDONLY if mode == "r" else os.O_WRONLY)
        if getattr(sys, name) is None:  # closed when Python started
            setattr(sys, name, open(descriptor, mode, encoding="utf-8", closefd=False))
    if isinstance(sys.stdout, io.TextIOWrapper) and sys.stdout.errors == "strict":
        sys.stdout.reconfigure(errors="backslashreplace")
    if sys.stderr is sys.__stderr__ and sys.stderr is not None:
        sys.stderr = io.TextIOWrapper(
            io.BufferedWriter(_Tolerant(2, "w", closefd=False)),
            encoding=sys.stderr.encoding,
            errors="backslashreplace",
            line_buffering=True,
        )
