"""OUTPUT as it was found: read from end to end, and read again in whatever order its rows are
needed.
"""

from __future__ import annotations

import os
import tempfile
from array import array
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import BinaryIO

import numpy as np

from vlmbatch.errors import OutputError
from vlmbatch.write.atomic import reason
from vlmbatch.write.columns import Row
from vlmbatch.write.formats import Format
from vlmbatch.write.journal import JournalLine
from vlmbatch.write.jsonl import decode, encode
from vlmbatch.write.known.damage import DamagedRowError, unreadable
from vlmbatch.write.known.row_index import Int64Array, RowIndex, key_digest, text_digest

SCANNED = ("id", "task", "prompt", "index", "status", "text")


class PreviousOutput:
    """The rows of OUTPUT, held open: they stay readable when OUTPUT is replaced.

    Args:
        path: OUTPUT.
        format: How it is read.
        scratch: Folder for a temporary file; None: the system's.

    Attributes:
        count: Number of its rows, once ``scan`` has counted them.

    Raises:
        OutputError: It cannot be opened.
    """

    def __init__(self, path: Path, format: Format, scratch: Path | None = None) -> None:
        self._path, self._format, self._scratch = path, format, scratch
        self.count = 0
        try:
            self._file: BinaryIO = open(path, "rb")
            self._is_empty = not self._file.read(1)
            self._state = self._file_state()
        except OSError as error:
            raise OutputError(f"cannot read {path}: {reason(error)}") from error
        self._spill: BinaryIO | None = None
        self._offsets = array("q")

    def first(self) -> Row | None:
        """Return the first row; None when there is none."""
        return next(self.read(), None)

    def scan(self, index: RowIndex) -> None:
        """Put every row into the index. Of rows with the same key the last one counts.

        Raises:
            OutputError: The file was not written by vlmbatch.
        """
        for row in self.read(SCANNED):
            id, task, prompt, place, status, text = row.values()
            texts = (id, task, prompt, status)
            if not (isinstance(place, int) and all(isinstance(text, str) for text in texts)):
                error = DamagedRowError(self.count + 1, "a value of another type", unit="row")
                raise unreadable(self._path, error, self.count, of_run=True)
            line = JournalLine(
                key_digest(id, task, prompt),
                row_index=place,
                status=status,
                text=text_digest(text),
            )
            index.put(line, -1 - self.count)
            self.count += 1

    def read(self, columns: Sequence[str] | None = None) -> Iterator[Row]:
        """Yield every row, in order: whole, or restricted to ``columns``.

        Raises:
            OutputError: The file was not written by vlmbatch, cannot be read, or was changed since
                it was opened.
        """
        if self._is_empty:
            return
        if self._file_state() != self._state:
            raise OutputError(f"{self._path} was changed by another program during the run")
        self._file.seek(0)
        count = 0
        try:
            for row in self._format.read_rows(self._file, columns):
                yield row
                count += 1
        except OutputError as error:
            raise unreadable(self._path, error, count, of_run=True) from error
        except OSError as error:
            raise OutputError(f"cannot read {self._path}: {reason(error)}") from error

    def rows(self, positions: Int64Array) -> Iterator[Row]:
        """Yield the rows at the given positions, in the order given: straight from the file when
        they ascend, else through a temporary file.
        """
        if self._spill is not None or not np.all(positions[1:] > positions[:-1]):
            yield from (self.row(int(position)) for position in positions)
            return
        wanted = iter(positions)
        position = next(wanted, None)
        for number, row in enumerate(self.read()):
            if position is None:
                return
            if number == position:
                yield row
                position = next(wanted, None)

    def row(self, position: int) -> Row:
        """Return the row at a position, through a temporary file.

        Raises:
            OutputError: There is no room for that file; also the errors of ``read``.
        """
        try:
            spill = self._spill or self._make_spill()
            spill.seek(self._offsets[position])
            row: Row = decode(spill.readline().decode())
        except OSError as error:
            folder = self._scratch or tempfile.gettempdir()
            raise OutputError(f"cannot keep rows in {folder}: {reason(error)}") from error
        return row

    def close(self) -> None:
        """Close the files."""
        self._file.close()
        if self._spill is not None:
            self._spill.close()

    def _make_spill(self) -> BinaryIO:
        """Write the rows as lines of JSON to a file without a name, where each is found by its
        offset.
        """
        spill: BinaryIO = tempfile.TemporaryFile(dir=self._scratch)
        try:
            offsets = array("q")
            for row in self.read():
                offsets.append(spill.tell())
                spill.write(encode(row).encode("utf-8", "backslashreplace") + b"\n")
            spill.flush()
        except BaseException:
            spill.close()
            raise
        self._spill, self._offsets = spill, offsets
        return spill

    def _file_state(self) -> tuple[int, int]:
        """Return what changes when a program writes into the file. One that puts another in its
        place does no harm.
        """
        found = os.fstat(self._file.fileno())
        return found.st_size, found.st_mtime_ns
