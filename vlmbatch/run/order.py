"""Convert places of items to their index in input order."""

from __future__ import annotations

import array


class InputOrder:
    """Counts the items of each source, to turn places into indices. Eight bytes per source.

    One thread adds; any thread may ask for the index of an added place.
    """

    def __init__(self) -> None:
        self._starts = array.array("q")
        self._count = 0

    def add(self, place: tuple[int, int]) -> None:
        """Record an item. Items must come in input order, whatever the order of processing."""
        while len(self._starts) <= place[0]:  # sources without an item have a start, too
            self._starts.append(self._count)
        self._count += 1

    def index(self, place: tuple[int, int]) -> int:
        """Return the index of an item among all items, from 0."""
        return self._starts[place[0]] + place[1]
