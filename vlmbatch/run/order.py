"""From the places of items to their index in input order."""

from __future__ import annotations

import array


class InputOrder:
    """Count the items of each source, so that places become indexes. Eight bytes a source.

    One thread adds; any thread may ask for the index of a place that was added.
    """

    def __init__(self) -> None:
        self._starts = array.array("q")
        self._count = 0

    def add(self, place: tuple[int, int]) -> None:
        """Note an item. Items come in input order, also where they are taken in another one."""
        while len(self._starts) <= place[0]:  # sources without an item have a start, too
            self._starts.append(self._count)
        self._count += 1

    def index(self, place: tuple[int, int]) -> int:
        """The position of an item among all items, from 0."""
        return self._starts[place[0]] + place[1]
