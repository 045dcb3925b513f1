"""Rows as JSON Lines on a stream, in input order."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TextIO

from vlmbatch.core import Record
from vlmbatch.errors import OutputError
from vlmbatch.write.atomic import reason
from vlmbatch.write.base import Writer
from vlmbatch.write.columns import row_of
from vlmbatch.write.jsonl import encode

FLUSH_SECONDS = 1.0
"""Seconds between flushes, for a reader at the other end of the pipe."""


class StdoutWriter(Writer):
    """Writes to a text stream. A row that comes early is held back until those before it are out.

    Args:
        stream: The stream; it is flushed, never closed.
        clock: Seconds, monotonic.
    """

    def __init__(self, stream: TextIO, clock: Callable[[], float] = time.monotonic) -> None:
        self._stream = stream
        self._clock = clock
        self._flushed_at = clock()
        self._held: dict[int, str] = {}
        self._next = 0
        self._closed = False

    def write(
        self,
        record: Record,
        fingerprint: str = "",
        order: int | None = None,
        question: int = 0,
        *,
        content: str = "",
    ) -> None:
        """Take a row and write every row whose turn it is."""
        line = encode(row_of(record)) + "\n"
        if order is None:
            self._put(line)
        else:
            self._held[order] = line
            while self._next in self._held:
                self._put(self._held.pop(self._next))
                self._next += 1
        self.tick()

    def tick(self) -> None:
        """Flush once a second."""
        if self._clock() - self._flushed_at >= FLUSH_SECONDS:
            self.commit()

    def commit(self) -> None:
        """Flush the stream. Rows that are held back stay so."""
        self._flushed_at = self._clock()
        try:
            self._stream.flush()
        except OSError as error:
            raise self._failure(error) from error

    def close(self, *, finished: bool = True) -> None:
        """Write the rows that are held back (a run that was stopped leaves gaps) and flush."""
        if self._closed:
            return
        self._closed = True
        for order in sorted(self._held):
            self._put(self._held.pop(order))
        self.commit()

    def _put(self, line: str) -> None:
        try:
            self._stream.write(line)
        except OSError as error:
            raise self._failure(error) from error

    def _failure(self, error: OSError) -> OutputError:
        """Return the error for the user. Nothing more is written after it."""
        self._closed = True
        return OutputError(
            "stdout was closed"
            if isinstance(error, BrokenPipeError)
            else f"cannot write to stdout: {reason(error)}"
        )
