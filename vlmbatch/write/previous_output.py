"""OUTPUT as an earlier run left it: read through, and read again in whatever order its rows are
needed.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import BinaryIO

import numpy as np

from vlmbatch.errors import OutputError
from vlmbatch.write.atomic import reason
from vlmbatch.write.columns import Row
from vlmbatch.write.formats import Format
from vlmbatch.write.jsonl import decode, encode
from vlmbatch.write.row_index import Int64Array, RowTable, key_digest

SCANNED = ("id", "task", "prompt", "index", "status")


class EarlierRows:
    """The rows of OUTPUT, held open: they stay readable when OUTPUT is replaced.

    Args:
        path: OUTPUT.
        format: How it is read.

    Raises:
        OutputError: It cannot be opened.
    """

    def __init__(self, path: Path, format: Format) -> None:
        self._path = path
        self._format = format
        self.count = 0
        try:
            self._file: BinaryIO = open(path, "rb")
            self._is_empty = not self._file.read(1)
            self._state = self._status()
        except OSError as error:
            raise OutputError(f"cannot read {path}: {reason(error)}") from error
        self._spill: BinaryIO | None = None
        self._offsets = np.zeros(0, np.int64)

    def first(self) -> Row | None:
        """The first row; None when there is none."""
        return next(self._read(), None)

    def scan(self, table: RowTable) -> None:
        """Puts every row into the table; of rows with the same key the last one counts.

        Raises:
            OutputError: The file was not written by vlmbatch.
        """
        for row in self._read(SCANNED):
            id, task, prompt, index, status = row.values()
            if not (
                isinstance(id, str)
                and isinstance(task, str)
                and isinstance(prompt, str)
                and isinstance(index, int)
                and isinstance(status, str)
            ):
                raise self._foreign(f"row {self.count + 1} is not a record")
            table.put(
                key_digest(id, task, prompt), place=-1 - self.count, index=index, status=status
            )
            self.count += 1

    def rows(self, positions: Int64Array) -> Iterator[Row]:
        """The rows at the given positions, in the order given: straight from the file when they
        ascend, else through a temporary file.
        """
        if self._spill is None and bool(np.all(positions[1:] > positions[:-1])):
            wanted = iter(positions)
            position = next(wanted, None)
            for number, row in enumerate(self._read()):
                if position is None:
                    return
                if number == position:
                    yield row
                    position = next(wanted, None)
            return
        for position in positions:
            yield self.row(int(position))

    def row(self, position: int) -> Row:
        """The row at a position, through a temporary file."""
        spill = self._spilled()
        spill.seek(self._offsets[position])
        row: Row = decode(spill.readline().decode())
        return row

    def close(self) -> None:
        """Lets go of the files."""
        self._file.close()
        if self._spill is not None:
            self._spill.close()

    def _spilled(self) -> BinaryIO:
        """The rows as lines of JSON in a file without a name, which any row can be read from at
        once.
        """
        if self._spill is None:
            offsets = np.zeros(self.count, np.int64)
            spill: BinaryIO = tempfile.TemporaryFile(dir=self._path.parent)
            for number, row in enumerate(self._read()):
                offsets[number] = spill.tell()
                spill.write(encode(row).encode("utf-8", "backslashreplace") + b"\n")
            self._spill, self._offsets = spill, offsets
        return self._spill

    def _read(self, columns: Sequence[str] | None = None) -> Iterator[Row]:
        if self._is_empty:
            return
        if self._status() != self._state:
            raise OutputError(f"{self._path} was changed by another program during the run")
        self._file.seek(0)
        try:
            yield from self._format.read_rows(self._file, columns)
        except OutputError as error:
            raise self._foreign(str(error)) from error
        except OSError as error:
            raise OutputError(f"cannot read {self._path}: {reason(error)}") from error

    def _status(self) -> tuple[int, int]:
        """What changes when a program writes into the file; one that puts another in its place does
        no harm.
        """
        found = os.fstat(self._file.fileno())
        return found.st_size, found.st_mtime_ns

    def _foreign(self, why: str) -> OutputError:
        return OutputError(
            f"{self._path} was not written by vlmbatch ({why}); --overwrite replaces it"
        )
