"""The rows of an OUTPUT as they are stored: in the journal, or in OUTPUT as the run found it. The
index in memory knows where each of them stands.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from vlmbatch.core import Record
from vlmbatch.write.atomic import FileState, beside, file_state, remove
from vlmbatch.write.columns import COLUMNS, GOOD, SETTINGS, TEXT_ORIGINAL, Row, record_of
from vlmbatch.write.formats import Format
from vlmbatch.write.identity import check_identity, joined_identity, previous_identity
from vlmbatch.write.journal import (
    Header,
    Journal,
    JournalScan,
    plain_json,
    replace_header,
    write_journal,
)
from vlmbatch.write.known import redo as redoing
from vlmbatch.write.known.journal_lines import JournalLines
from vlmbatch.write.known.other_files import OtherFiles
from vlmbatch.write.known.row_index import Int64Array, RowIndex, key_digest
from vlmbatch.write.previous_output import PreviousOutput


class StoredRows:
    """Every row of an OUTPUT, and the journal that takes new ones. Not thread-safe.

    Args:
        output: OUTPUT, without symbolic links; it is locked.
        format: How it is read.
        identity: The settings that the rows of this run depend on; None: those that OUTPUT has.
        overwrite: Whether the rows that are there do not count.
        name: Name of OUTPUT in messages.
        redo: Whether rows of other settings may stand beside those of this run.
        reads_only: Whether nothing is written, and rows are only looked up.

    Attributes:
        identity: The settings of all rows.
        extras: Further columns that rows have.
        journal: Takes new rows.
        other_files: Files that have the id of another one, as far as they were noted.
        is_changed: Whether the rows differ from those that OUTPUT holds.
        is_described: Whether the journal at rest says all about OUTPUT.

    Raises:
        OutputError: OUTPUT was made with other settings, is not ours or cannot be read.
    """

    def __init__(
        self,
        output: Path,
        format: Format,
        identity: Mapping[str, Any] | None,
        *,
        overwrite: bool,
        name: str,
        redo: bool = False,
        reads_only: bool = False,
    ) -> None:
        self._output, self._format, self._name = output, format, name
        self._journal_path = beside(output, ".journal")
        self._index = RowIndex()
        self._previous: PreviousOutput | None = None
        self.identity: dict[str, Any] = plain_json(dict(identity or {}))
        self.extras: dict[str, None] = {}
        self.other_files = OtherFiles()
        self._here, self._redo, self._reads_only = self.identity, redo, reads_only
        self.is_changed = self.is_described = False
        try:
            if reads_only:
                scan = None if overwrite else self._read_all()
                end = scan.end if scan else 0
                self.journal = Journal(self._journal_path, end, reads_only=True)
            else:
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

    def _read_all(self) -> JournalScan:
        """Read what rows there are, and take or check the settings of OUTPUT."""
        scan = JournalScan(self._journal_path)
        if scan.header and not scan.header.base and next(iter(scan), None) is None:
            # --overwrite ended before its first commit: the OUTPUT of before counts again.
            scan.header = None
        if (scan.header is None or scan.header.base) and self._output.exists():
            scratch = None if self._reads_only else self._output.parent
            self._previous = PreviousOutput(self._output, self._format, scratch)
            first = self._previous.first()
            if first is not None:
                self.extras |= dict.fromkeys(name for name in first if name not in COLUMNS)
                self._join_identity(
                    scan.header.identity
                    if scan.header
                    else previous_identity(self._output, first, self.identity)
                )
        self._read(scan)
        if scan.header is not None and len(self._index):
            self._join_identity(scan.header.identity)
        return scan

    def _resume(self) -> Journal:
        """Read what rows there are, and open the journal that goes on from them."""
        scan = self._read_all()
        if scan.header is None or not len(self._index):
            # The texts of an OUTPUT without a journal count as written: edits are told from them.
            header, lines = Header(self.identity), self._index.lines()
            return Journal(self._journal_path, write_journal(self._journal_path, header, lines))
        if self.identity == scan.header.identity:
            return Journal(self._journal_path, scan.end)
        # Another task's settings join those of the header, which grows by it.
        header = dataclasses.replace(scan.header, identity=self.identity)
        grown = replace_header(self._journal_path, header)
        self._index.shift_places(grown)
        return Journal(self._journal_path, scan.end + grown)

    def _join_identity(self, there: Mapping[str, Any]) -> None:
        """Take the settings of OUTPUT, or check this run's against them."""
        if not self.identity:
            self.identity = plain_json(there)
            return
        if self._redo:
            redoing.check_items(self._name, there, self._here)
            self.identity = plain_json(redoing.with_tasks(there, self._here, there))
            return
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
        """Add the lines of the journal to the index; see ``JournalLines``.

        Returns:
            The number of rows that stand in OUTPUT; -1 when one is there twice.
        """
        lines = JournalLines(self._index, is_described=self.is_described)
        lines.add(scan)
        self.is_changed |= lines.has_rows
        if lines.has_settings:
            self.extras[SETTINGS] = None
        if lines.has_corrections:
            self.extras[TEXT_ORIGINAL] = None
        return lines.standing

    def find(self, id: str, task: str, prompt: str) -> Record | None:
        """Read a row back; None when there is none."""
        number = self._index.number(key_digest(id, task, prompt))
        if number is None:
            return None
        place = self._index.place(number)
        if place >= 0:
            return record_of(self.journal.read(place))
        return record_of(self._previous.row(-1 - place)) if self._previous else None

    def totals(self) -> dict[str, int]:
        """Return the number of rows and of error rows."""
        return {"rows": len(self._index), "errors": self._index.errors()}

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
            if SETTINGS in wanted and not row.get(SETTINGS):
                row[SETTINGS] = redoing.describe(self.identity, row["task"])
            if self._index.is_edited(number) and row.get("text") and row["status"] == "error":
                row |= GOOD
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
