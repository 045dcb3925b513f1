"""Copies of videos whose frames are asked for in any order: each is made when it is needed, and
those that were not needed for the longest time go.
"""

from __future__ import annotations

import collections
import functools
import os
import shutil
import threading
from collections.abc import Callable

from vlmbatch.core import Pixels
from vlmbatch.read.files.temporary import TemporaryFile

MAX_BYTES = 8 << 30
"""The copies together take no more than this, nor more than they leave free; those in use are not
counted once they had to go.
"""


class Copies:
    """Keeps copies while there is room for them. For any number of threads."""

    def __init__(self) -> None:
        self._guard = threading.Lock()
        self._kept: collections.OrderedDict[str, tuple[TemporaryFile, int]] = (
            collections.OrderedDict()
        )

    def get(self, name: str, make: Callable[[], TemporaryFile]) -> TemporaryFile:
        """The copy of a name, made if it is not there; it stays for as long as the caller refers to
        it.

        Args:
            name: What it is known by.
            make: Makes it. Two threads may both do so at the same time; then one copy is kept.

        Raises:
            ReadError: It cannot be made.
        """
        with self._guard:
            if name in self._kept:
                self._kept.move_to_end(name)
                return self._kept[name][0]
        made = make()
        with self._guard:
            self._kept[name] = made, os.path.getsize(made.path)
            self._kept.move_to_end(name)
            while len(self._kept) > 1 and sum(size for _, size in self._kept.values()) > min(
                MAX_BYTES, shutil.disk_usage(made.path).free
            ):
                self._kept.popitem(last=False)
        return made


class OnDemand:
    """A file that is a copy while it is needed, and is copied anew when it had to go.

    Attributes:
        path: The copy that is there for as long as this object is.

    Raises:
        ReadError: It cannot be made.
    """

    def __init__(self, copies: Copies, name: str, make: Callable[[], TemporaryFile]) -> None:
        self._get = functools.partial(copies.get, name, make)
        self._copy = self._get()
        self.path = self._copy.path

    def bind(self, load: Callable[[str], Pixels]) -> Callable[[], Pixels]:
        """A ``load`` of the file at a path, which has it copied if need be; nothing is kept until
        then.
        """
        return functools.partial(_load, self._get, load)


def _load(get: Callable[[], TemporaryFile], load: Callable[[str], Pixels]) -> Pixels:
    copy = get()
    return load(copy.path)
