"""The rows of an OUTPUT during a run: those of earlier runs and of this one.

The index in memory knows where each row stands. The rows themselves are in the journal or in
OUTPUT as the run found it.
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from vlmbatch.core import Record
from vlmbatch.write.atomic import FileState, beside, file_state, remove
from vlmbatch.write.columns import Row, record_of
from vlmbatch.write.formats import Format
from vlmbatch.write.identity import check_identity, joined_identity, previous_identity
from vlmbatch.write.journal import (
    Header,
    Journal,
    JournalLine,
    JournalScan,
    plain_json,
    replace_header,
    write_journal,
)
from vlmbatch.write.previous_output import PreviousOutput
from vlmbatch.write.row_index import Int64Array, RowIndex, key_digest, short_digest

logger = logging.getLogger(__name__)


class KnownRows:
    """Every row of an OUTPUT, and the journal that takes new ones. Not thread-safe.

    Args:
        output: OUTPUT, without symbolic links; it is locked.
        format: How it is read.
        identity: The settings that the rows of this run depend on.
        overwrite: Whether the rows that are there do not count.
        name: Name of OUTPUT in messages.

    Attributes:
        identity: The settings of all rows.
        journal: Takes new rows.
        is_changed: Whether the rows differ from those that OUTPUT holds.
        is_described: Whether the journal at rest says all about OUTPUT.

    Raises:
        OutputError: OUTPUT was made with other settings, is not ours or cannot be read.
    """

    def __init__(
        self,
        output: Path,
        format: Format,
        identity: Mapping[str, Any],
        *,
        overwrite: bool,
        name: str,
    ) -> None:
        self._output, self._format, self._name = output, format, name
        self._journal_path = beside(output, ".journal")
        self._index = RowIndex()
        self._previous: PreviousOutput | None = None
        self.identity: dict[str, Any] = plain_json(dict(identity))
        self.is_changed = self.is_described = False
        try:
            self.journal = self._start() if overwrite else self._resume()
        except BaseException:
            self._close_previous()
            raise

    def __len__(self) -> int:
        return len(self._index)

    def _start(self) -> Journal:
        """Begin a journal that does not count the rows of OUTPUT."""
        header = Header(self.identity, base=not self._output.exists())
        return Journal(self._journal_path, write_journal(self._journal_path, header))

    def _resume(self) -> Journal:
        """Read what rows there are, and open the journal that goes on from them."""
        scan = JournalScan(self._journal_path)
        if scan.header and not scan.header.base and next(iter(scan), None) is None:
            # --overwrite ended before its first commit: the OUTPUT of before counts again.
            scan.header = None
        if (scan.header is None or scan.header.base) and self._output.exists():
            self._previous = PreviousOutput(self._output, self._format, self._output.parent)
            first = self._previous.first()
            if first is not None:
                self._join_identity(
                    scan.header.identity
                    if scan.header
                    else previous_identity(self._output, first, self.identity)
                )
        self._read(scan)
        if scan.header is None or not len(self._index):
            header = Header(self.identity)
            return Journal(self._journal_path, write_journal(self._journal_path, header))
        self._join_identity(scan.header.identity)
        if self.identity == scan.header.identity:
            return Journal(self._journal_path, scan.end)
        # Another task's settings join those of the header, which grows by it.
        header = dataclasses.replace(scan.header, identity=self.identity)
        grown = replace_header(self._journal_path, header)
        self._index.shift_places(grown)
        return Journal(self._journal_path, scan.end + grown)

    def _join_identity(self, there: Mapping[str, Any]) -> None:
        check_identity(self._name, there, self.identity)
        self.identity = plain_json(joined_identity(there, self.identity))

    def _read(self, scan: JournalScan) -> None:
        """Fill the index: from the journal alone when OUTPUT is the file that it describes,
        otherwise from both.
        """
        previous = self._previous
        described = scan.header.output if scan.header else None
        if previous and described and described[:-1] == file_state(self._output):
            self.is_described = True
            previous.count = self._read_journal(scan)
            if previous.count == described[-1] and not scan.is_damaged:
                return
            # Lines are missing, damaged or there twice.
            self._index, previous.count, self.is_described = RowIndex(), 0, False
        if previous:
            previous.scan(self._index)
        self._read_journal(scan)

    def _read_journal(self, scan: JournalScan) -> int:
        """Add the lines of the journal to the index.

        Lines about rows that stand in OUTPUT are believed when the journal describes OUTPUT. Else
        they only say which files the rows were made from.

        Returns:
            The number of rows that stand in OUTPUT; -1 when one is there twice.
        """
        standing = 0
        for line in scan:
            number = self._index.number(line.key)
            if line.place >= 0:
                self._put(line, line.place)
                self.is_changed = True
            elif not self.is_described:
                if number is not None:
                    self._index.set_file(number, line.source, line.fingerprint)
            elif number is not None:
                return -1
            else:
                self._put(line, -1 - standing)
                standing += 1
        return standing

    def _put(self, line: JournalLine, place: int, *, seen: bool = False) -> None:
        self._index.put(
            line.key,
            place=place,
            index=line.row_index,
            status=line.status,
            question=line.question,
            source=line.source,
            fingerprint=line.fingerprint,
            seen=seen,
        )

    def done(
        self,
        id: str,
        task: str,
        prompt: str,
        source: str,
        fingerprint: str,
        *,
        retry_errors: bool,
    ) -> bool:
        """Return whether the row is there and its file is the same as far as is known."""
        digest = short_digest(fingerprint)
        number = self._index.number(key_digest(id, task, prompt))
        if number is None or (retry_errors and self._index.is_error(number)):
            return False
        known = self._index.fingerprint(number)
        if digest and not known:
            if self._index.is_error(number):
                return False  # there was no file then, and there is one now
            self._index.set_file(number, short_digest(source), digest)
            self.is_described = False
        return not (digest and known and digest != known)

    def keep(self, id: str, task: str, prompt: str, index: int, question: int) -> bool | None:
        """Give a row of an earlier run its place in this run's input order.

        Returns:
            Whether it is an error row; None when there is no such row.
        """
        number = self._index.number(key_digest(id, task, prompt))
        if number is None:
            return None
        if self._index.move(number, index, question):
            self.is_changed = True
        return self._index.is_error(number)

    def find(self, id: str, task: str, prompt: str) -> Record | None:
        """Read a row back; None when there is none."""
        number = self._index.number(key_digest(id, task, prompt))
        if number is None:
            return None
        place = self._index.place(number)
        if place >= 0:
            return record_of(self.journal.read(place))
        return record_of(self._previous.row(-1 - place)) if self._previous else None

    def is_seen(self, id: str, task: str, prompt: str) -> bool:
        """Return whether the row belongs to this run's items."""
        number = self._index.number(key_digest(id, task, prompt))
        return number is not None and self._index.is_seen(number)

    def totals(self) -> dict[str, int]:
        """Return the number of rows and of error rows."""
        return {"rows": len(self._index), "errors": self._index.errors()}

    def add(self, row: Row, fingerprint: str, question: int) -> None:
        """Take a row of this run; it is in memory until the journal commits."""
        line = JournalLine(
            key_digest(row["id"], row["task"], row["prompt"]),
            short_digest(row["source"]),
            short_digest(fingerprint),
            row_index=row["index"],
            question=question,
            status=row["status"],
        )
        self._put(line, self.journal.append(line, row), seen=True)
        self.is_changed = True

    def drop_outdated(self) -> None:
        """Take out rows about what a changed file no longer holds: frames of the video that it
        was, or the error that it had as a whole.
        """
        outdated, current = self._index.outdated()
        if not len(outdated):
            return
        ids = {row["id"] for row in self._read_rows(current)}
        gone = [
            int(number)
            for number, row in zip(outdated, self._read_rows(outdated), strict=True)
            if row["id"] not in ids
        ]
        if gone:
            message = "%s: %d rows about what changed files no longer hold are left out"
            logger.info(message, self._name, len(gone))
            self._index.drop(gone)
            self.is_changed = True

    def in_order(self) -> Int64Array:
        """Return the numbers of the rows in the order of OUTPUT."""
        return self._index.in_order()

    def is_as_it_was(self, order: Int64Array) -> bool:
        """Return whether OUTPUT, as the run found it, holds exactly these rows in this order."""
        if self._previous is None or self._previous.count != len(order):
            return False
        places = self._index.places()[order]
        return bool(np.array_equal(-1 - places, np.arange(len(order))))

    def rows(self, order: Int64Array, columns: Sequence[str]) -> Iterator[Row]:
        """Yield rows with these columns; one that a row does not have is null."""
        wanted = dict.fromkeys(columns)
        for number, row in zip(order, self._read_rows(order), strict=True):
            row["index"] = self._index.index(number)
            yield row if row.keys() == wanted.keys() else {name: row.get(name) for name in wanted}

    def write_journal(self, path: Path, output: FileState | None = None) -> None:
        """Write the journal of an OUTPUT at rest.

        Args:
            path: Where.
            output: State of the OUTPUT that it describes; None when it is not on this disk.

        Raises:
            OutputError: It cannot be written.
        """
        described = (*output, len(self._index)) if output else None
        write_journal(path, Header(self.identity, output=described), self._index.lines())

    def rest(self, output: FileState | None) -> None:
        """Put the journal at rest in the place of the one that took this run's rows."""
        self.write_journal(self._journal_path, output)

    def forget(self) -> None:
        """Remove the journal of a run that ended before its first row."""
        remove(self._journal_path)

    def close(self) -> None:
        """Close the files; rows that were not committed are forgotten."""
        self.journal.close()
        self._close_previous()

    def _close_previous(self) -> None:
        if self._previous is not None:
            self._previous.close()

    def _read_rows(self, order: Int64Array) -> Iterator[Row]:
        places = self._index.places()[order]
        previous = self._previous.rows(-1 - places[places < 0]) if self._previous else iter(())
        for place in places:
            yield next(previous) if place < 0 else self.journal.read(int(place))
