"""What a run keeps in memory about every row of OUTPUT: where it stands, not what it says. About 200 bytes a row."""

from __future__ import annotations

import hashlib
from array import array
from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

Int64Array = npt.NDArray[np.int64]

_ERROR, _SEEN = 1, 2
_ROOM = 65536


def key_digest(id: str, task: str, prompt: str) -> bytes:
    """What stands for a row's identity: 16 bytes, so that two rows among 10^12 share one with a probability of about 10^-15."""
    return hashlib.blake2b(f"{id}\0{task}\0{prompt}".encode("utf-8", "backslashreplace"), digest_size=16).digest()


def fingerprint_digest(fingerprint: str) -> int:
    """What stands for a file's fingerprint: 64 bits, 0 for none."""
    if not fingerprint:
        return 0
    return int.from_bytes(hashlib.blake2b(fingerprint.encode("utf-8", "backslashreplace"), digest_size=8).digest(), "big") or 1


class RowTable:
    """The rows by key, numbered from 0 in the order they were first put."""

    def __init__(self) -> None:
        self._numbers: dict[bytes, int] = {}
        self._places = array("q")
        self._indexes = array("q")
        self._questions = array("i")
        self._fingerprints = array("Q")
        self._flags = array("B")

    def __len__(self) -> int:
        return len(self._numbers)

    def number(self, key: bytes) -> int | None:
        """The row's number in this table; None when it is not there."""
        return self._numbers.get(key)

    def put(self, key: bytes, *, place: int, index: int, status: str, question: int = 0, fingerprint: int = 0, seen: bool = False) -> None:
        """Adds a row, or replaces what is known about it.

        Args:
            key: From ``key_digest``.
            place: Where the row stands: an offset in the journal, or ``-1 - position`` in the OUTPUT of before.
            index: Place of the item in input order.
            status: The row's.
            question: The question's place among those about the item.
            fingerprint: From ``fingerprint_digest``.
            seen: Whether the row belongs to this run's items.
        """
        number = self._numbers.get(key)
        if number is None:
            number = len(self._numbers)
            self._make_room(number)
        self._places[number] = place
        self._indexes[number] = index
        self._questions[number] = question
        self._fingerprints[number] = fingerprint
        self._flags[number] = (_ERROR if status == "error" else 0) | (_SEEN if seen else 0)
        self._numbers[key] = number  # last, so that an interruption leaves no row half known

    def _make_room(self, number: int) -> None:
        if number < len(self._flags):
            return
        for column in (self._places, self._indexes, self._questions, self._fingerprints, self._flags):
            column.frombytes(bytes(column.itemsize * (number + _ROOM - len(column))))

    def is_error(self, number: int) -> bool:
        """Whether the row's status is ``error``."""
        return bool(self._flags[number] & _ERROR)

    def place(self, number: int) -> int:
        """Where the row stands: see ``put``."""
        return self._places[number]

    def index(self, number: int) -> int:
        """The row's place in input order."""
        return self._indexes[number]

    def fingerprint(self, number: int) -> int:
        """The digest of the file that the row was made from; 0 when it is not known."""
        return self._fingerprints[number]

    def set_fingerprint(self, number: int, fingerprint: int) -> None:
        """States what file the row was made from."""
        self._fingerprints[number] = fingerprint

    def move(self, number: int, index: int, question: int) -> bool:
        """States the place of a row that this run has seen.

        Returns:
            Whether its index is another one than before.
        """
        moved = self._indexes[number] != index
        self._indexes[number] = index
        self._questions[number] = question
        self._flags[number] |= _SEEN
        return moved

    def in_order(self) -> Int64Array:
        """Row numbers in the order of OUTPUT: by index, at the same index those that this run has seen first, then by question, then by age."""
        count = len(self)
        places = self.places()
        unseen = (np.array(self._flags, np.uint8)[:count] & _SEEN) == 0
        from_journal = places >= 0
        age = np.where(from_journal, places, -1 - places)
        questions, indexes = np.array(self._questions, np.int32)[:count], np.array(self._indexes, np.int64)[:count]
        return np.lexsort((age, from_journal, questions, unseen, indexes)).astype(np.int64)

    def places(self) -> Int64Array:
        """Where each row stands, by number: an offset in the journal, or ``-1 - position`` in the OUTPUT of before."""
        return np.array(self._places, np.int64)[: len(self)]

    def fingerprints(self) -> Iterator[tuple[bytes, int]]:
        """Key and fingerprint of every row whose fingerprint is known."""
        return ((key, self._fingerprints[number]) for key, number in self._numbers.items() if self._fingerprints[number])
