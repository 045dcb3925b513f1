"""Filling the index of rows from the lines of a journal."""

from __future__ import annotations

from vlmbatch.write.journal import EDITED, JournalLine, JournalScan
from vlmbatch.write.known.row_index import RowIndex


class JournalLines:
    """Adds the lines of a journal to an index.

    Lines about rows that stand in OUTPUT are believed when the journal describes OUTPUT. Else
    OUTPUT was read into the index before, and they only say which files the rows were made from,
    and which texts were written: a text in OUTPUT that no line has was edited, and stays.

    Attributes:
        standing: Number of rows that stand in OUTPUT, where the journal describes it; -1 when one
            is there twice.
        has_rows: Whether there were lines with whole rows.
        has_corrections: Whether one of these was a correction.
        has_settings: Whether one of these has settings of its own.
    """

    def __init__(self, index: RowIndex, *, is_described: bool) -> None:
        self._index, self._is_described = index, is_described
        self._edited: dict[int, int] = {}  # digests of texts in OUTPUT that no line has so far
        self._replaced: dict[int, int] = {}  # places in OUTPUT of rows that later lines replace
        self.standing = 0
        self.has_rows = self.has_corrections = self.has_settings = False

    def add(self, scan: JournalScan) -> None:
        """Add every line."""
        for line in scan:
            number = self._index.number(line.key)
            if line.place >= 0:
                if number is not None and not self._is_described:
                    self._replace(number, line)
                self._index.put(line, line.place)
                self.has_rows = True
                self.has_corrections |= line.status == EDITED
                self.has_settings |= bool(line.settings)
            elif not self._is_described:
                if number is not None and (there := self._index.tell(number, line)):
                    self._edited[number] = there
            elif number is not None:
                self.standing = -1
                return
            else:
                self._index.put(line, -1 - self.standing)
                self.standing += 1
        for number, place in self._replaced.items():
            self._index.put_back(number, place)

    def _replace(self, number: int, line: JournalLine) -> None:
        """Note a line with a whole row about a row that stands in OUTPUT: whether the text there is
        one that was written.
        """
        place = self._index.place(number)
        if place < 0 and line.text and not self._index.is_told(number):
            # It was published by a run that was killed.
            self._edited[number] = self._index.text(number)
        is_written = self._edited.get(number) in (None, line.text)
        if is_written or not line.text or line.status == EDITED:
            self._edited.pop(number, None)
            self._replaced.pop(number, None)
        elif place < 0:
            self._replaced[number] = place
