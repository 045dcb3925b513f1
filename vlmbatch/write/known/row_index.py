"""The index that a run keeps in memory: for every row of OUTPUT its place, not its content. About
200 bytes a row.
"""

from __future__ import annotations

import functools
import hashlib
from array import array
from collections.abc import Iterable, Iterator

import numpy as np
import numpy.typing as npt

from vlmbatch.write.journal import JournalLine

Int64Array = npt.NDArray[np.int64]

_ERROR, _SEEN, _GONE, _EDITED, _TOLD = 1, 2, 4, 8, 16
_FLAGS = {"error": _ERROR, "edited": _EDITED}
_ROOM = 65536


@functools.lru_cache(maxsize=8)  # a row is asked for, found and moved in a row
def key_digest(id: str, task: str, prompt: str) -> bytes:
    """Return 16 bytes for a row's identity. Two rows among 10^12 share a digest with a probability
    of about 10^-15.
    """
    return hashlib.blake2b(
        f"{id}\0{task}\0{prompt}".encode("utf-8", "backslashreplace"), digest_size=16
    ).digest()


def short_digest(text: str) -> int:
    """Return 64 bits for a file's path or fingerprint; 0 for none."""
    if not text:
        return 0
    data = text.encode("utf-8", "backslashreplace")
    return int.from_bytes(hashlib.blake2b(data, digest_size=8).digest(), "big") or 1


def text_digest(text: object) -> int:
    """Return 64 bits for the text of a row, whatever its line ends and the space around it: a
    table program may change these. An empty text and none are the same in some of them.
    """
    lines = str("" if text is None else text).strip().splitlines()
    return short_digest("=" + "\n".join(line.rstrip() for line in lines))


class RowIndex:
    """Rows by key, numbered from 0 in the order they were first put."""

    def __init__(self) -> None:
        self._numbers: dict[bytes, int] = {}
        self._count = 0  # of numbers given, those of dropped rows included
        self._places = array("q")
        self._indexes = array("q")
        self._questions = array("i")
        self._sources = array("Q")
        self._fingerprints = array("Q")
        self._contents = array("Q")
        self._texts = array("Q")
        self._settings = array("Q")
        self._flags = array("B")

    def __len__(self) -> int:
        return len(self._numbers)

    def number(self, key: bytes) -> int | None:
        """Return the row's number; None when it is not there."""
        return self._numbers.get(key)

    def put(self, line: JournalLine, place: int, *, seen: bool = False) -> None:
        """Add the row of a journal line, or replace what is known about it.

        Args:
            line: The line.
            place: Offset of the row in the journal, or ``-1 - position`` in the OUTPUT of before.
            seen: Whether the row belongs to this run's items.
        """
        number = self._numbers.get(line.key)
        if number is None:
            number = self._count
            self._make_room(number)
            self._count += 1
        self._places[number] = place
        self._indexes[number] = line.row_index
        self._questions[number] = line.question
        self._sources[number] = line.source
        self._fingerprints[number] = line.fingerprint
        self._contents[number] = line.content
        self._texts[number] = line.text
        self._settings[number] = line.settings
        self._flags[number] = _FLAGS.get(line.status, 0) | (_SEEN if seen else 0)
        self._numbers[line.key] = number  # last, so that an interruption leaves no row half known

    def _make_room(self, number: int) -> None:
        if number < len(self._flags):
            return
        for column in (
            self._places,
            self._indexes,
            self._questions,
            self._sources,
            self._fingerprints,
            self._contents,
            self._texts,
            self._settings,
            self._flags,
        ):
            column.frombytes(bytes(column.itemsize * (number + _ROOM - len(column))))

    def shift_places(self, by: int) -> None:
        """Move the places of all rows in the journal, after its header has changed its length."""
        for number in range(self._count):
            if self._places[number] >= 0:
                self._places[number] += by

    def is_error(self, number: int) -> bool:
        """Return whether the row's status is ``error``."""
        return bool(self._flags[number] & _ERROR)

    def is_edited(self, number: int) -> bool:
        """Return whether the row's text is not the model's."""
        return bool(self._flags[number] & _EDITED)

    def is_told(self, number: int) -> bool:
        """Return whether ``tell`` was called for the row."""
        return bool(self._flags[number] & _TOLD)

    def is_seen(self, number: int) -> bool:
        """Return whether the row belongs to this run's items."""
        return bool(self._flags[number] & _SEEN)

    def place(self, number: int) -> int:
        """Return the place of the row, as in ``put``."""
        return self._places[number]

    def index(self, number: int) -> int:
        """Return the row's place in input order."""
        return self._indexes[number]

    def fingerprint(self, number: int) -> int:
        """Return the digest of the file's fingerprint; 0 when it is not known."""
        return self._fingerprints[number]

    def facts(self, number: int) -> dict[str, int]:
        """Return what a journal line says of a row beside its key, index and status."""
        return {
            "question": self._questions[number],
            "source": self._sources[number],
            "fingerprint": self._fingerprints[number],
            "content": self._contents[number],
            "text": self._texts[number],
            "settings": self._settings[number],
        }

    def source(self, number: int) -> int:
        """Return the digest of the path of the row's file; 0 when it is not known."""
        return self._sources[number]

    def content(self, number: int) -> int:
        """Return the digest of the file's content; 0 when it is not known."""
        return self._contents[number]

    def text(self, number: int) -> int:
        """Return the digest of the text as the model wrote it."""
        return self._texts[number]

    def settings(self, number: int) -> int:
        """Return the digest of the row's settings; 0 for those of the identity."""
        return self._settings[number]

    def settle_settings(self, old: int, own: int) -> None:
        """Change the identity's settings, whose digest in a row is 0, from ``old`` to ``own``."""
        for number in range(self._count):
            found = self._settings[number]
            self._settings[number] = 0 if found == own else found or old

    def has_only(self, settings: int) -> bool:
        """Return whether all rows have these settings, which are not those of the identity."""
        return all(found == settings for found in self._settings[: self._count])

    def set_file(self, number: int, source: int, fingerprint: int, content: int) -> None:
        """Set the file that the row was made from, and the state of that file."""
        self._sources[number] = source
        self._fingerprints[number] = fingerprint
        self._contents[number] = content

    def tell(self, number: int, line: JournalLine) -> int:
        """Take what a journal says about a row that was read from OUTPUT.

        Returns:
            The digest of its text there when that is not what was written; else 0.
        """
        self.set_file(number, line.source, line.fingerprint, line.content)
        self._settings[number] = line.settings
        self._flags[number] |= _TOLD
        there = self._texts[number]
        if line.text in (0, there):
            return 0
        self.mark_edited(number, line.text)
        return there

    def put_back(self, number: int, place: int) -> None:
        """Let a row be the edited one of OUTPUT again, in the place of a later one."""
        self._places[number] = place
        self.mark_edited(number, self._texts[number])

    def mark_edited(self, number: int, text: int) -> None:
        """Mark a row as edited; ``text`` is the digest of the text that the model wrote."""
        self._texts[number] = text
        self._flags[number] = self._flags[number] & ~_ERROR | _EDITED

    def move(self, number: int, index: int, question: int) -> bool:
        """Set the place of a row that this run has seen.

        Returns:
            Whether its index is another one than before.
        """
        moved = self._indexes[number] != index
        self._indexes[number] = index
        self._questions[number] = question
        self._flags[number] |= _SEEN
        return moved

    def in_order(self) -> Int64Array:
        """Return row numbers in the order of OUTPUT: by index, then those that this run has seen,
        then by question, then by age.
        """
        count = self._count
        places = self.places()
        flags = np.array(self._flags, np.uint8)[:count]
        unseen = (flags & _SEEN) == 0
        from_journal = places >= 0
        age = np.where(from_journal, places, -1 - places)
        questions, indexes = (
            np.array(self._questions, np.int32)[:count],
            np.array(self._indexes, np.int64)[:count],
        )
        order = np.lexsort((age, from_journal, questions, unseen, indexes)).astype(np.int64)
        kept: Int64Array = order[(flags[order] & _GONE) == 0]
        return kept

    def places(self) -> Int64Array:
        """Return the place of each row, by number, as in ``put``."""
        return np.array(self._places, np.int64)[: self._count]

    def outdated(self) -> tuple[Int64Array, Int64Array]:
        """Find rows of files that have changed, as far as this run has seen the files.

        Returns:
            Numbers of rows that this run has not seen, made from a file of which it has seen a
            later state; and numbers of the rows seen of these files.
        """
        flags = np.array(self._flags, np.uint8)[: self._count]
        sources, fingerprints = (
            np.array(column, np.uint64)[: self._count]
            for column in (self._sources, self._fingerprints)
        )
        contents = np.array(self._contents, np.uint64)[: self._count]
        known = (sources != 0) & (fingerprints != 0) & ((flags & _GONE) == 0)
        seen = known & ((flags & _SEEN) != 0)
        seen_sources, first = np.unique(sources[seen], return_index=True)
        if not len(seen_sources):
            return np.zeros(0, np.int64), np.zeros(0, np.int64)
        place = np.searchsorted(seen_sources, sources).clip(max=len(seen_sources) - 1)
        changed = (
            known
            & ~seen
            & ((flags & _EDITED) == 0)
            & (seen_sources[place] == sources)
            & (fingerprints[seen][first][place] != fingerprints)
            & ((contents == 0) | (contents[seen][first][place] != contents))
        )
        return np.flatnonzero(changed), np.flatnonzero(seen & np.isin(sources, sources[changed]))

    def unseen(self) -> Int64Array:
        """Return the numbers of the rows that this run has not seen, those in OUTPUT in its order,
        so that it is read once.
        """
        flags = np.array(self._flags, np.uint8)[: self._count]
        found = np.flatnonzero((flags & (_SEEN | _GONE)) == 0)
        order: Int64Array = found[np.argsort(-1 - self.places()[found], kind="stable")]
        return order

    def drop(self, numbers: Iterable[int]) -> None:
        """Take rows out."""
        gone = set(numbers)
        for number in gone:
            self._flags[number] |= _GONE
        for key in [key for key, number in self._numbers.items() if number in gone]:
            del self._numbers[key]

    def errors(self) -> int:
        """Return the number of rows with the status ``error``."""
        flags = np.array(self._flags, np.uint8)[: self._count]
        return int(np.count_nonzero((flags & (_ERROR | _GONE)) == _ERROR))

    def edited(self) -> int:
        """Return the number of rows whose text is not the model's."""
        flags = np.array(self._flags, np.uint8)[: self._count]
        return int(np.count_nonzero((flags & (_EDITED | _GONE)) == _EDITED))

    def lines(self) -> Iterator[JournalLine]:
        """Yield a line of the journal for every row, in the order of OUTPUT."""
        keys = [b""] * self._count
        for key, number in self._numbers.items():
            keys[number] = key
        for number in self.in_order().tolist():
            yield JournalLine(
                keys[number],
                **self.facts(number),
                row_index=self._indexes[number],
                status="edited"
                if self.is_edited(number)
                else "error"
                if self.is_error(number)
                else "ok",
            )
