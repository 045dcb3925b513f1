"""Folders and globs to paths, one folder at a time, in an order that does not depend on the file
system.
"""

from __future__ import annotations

import dataclasses
import itertools
import os
import re
from collections.abc import Callable, Iterator, Sequence
from fnmatch import fnmatch

from vlmbatch.read.base import one_line
from vlmbatch.read.files.kinds import is_system_folder

_WILDCARD = re.compile(r"[*?\[]")


@dataclasses.dataclass(frozen=True, slots=True)
class WalkedFile:
    """A file below a folder.

    Attributes:
        path: What the operating system opens.
        relative: Path below the folder, ``/`` as separator.
        error: Why a folder could not be listed; None for a file.
        fingerprint: Changes with the file, where the listing says so.
        is_left_alone: Whether this is a folder that a system keeps for itself; it is not listed.
    """

    path: str
    relative: str
    error: str | None = None
    fingerprint: str = ""
    is_left_alone: bool = False


class Begun:
    """Files of which the first is known already. The first iteration goes on from there, so that a
    huge folder is not listed twice; later ones list anew.

    Attributes:
        is_empty: Whether there are none.
    """

    def __init__(self, list_files: Callable[[], Iterator[WalkedFile]]) -> None:
        """Take a function that lists, and look for the first file.

        Raises:
            OSError: The folder where it begins cannot be listed.
        """
        self._list_files = list_files
        rest = list_files()
        first: list[WalkedFile] = []
        for file in rest:
            first.append(file)
            if not file.is_left_alone:
                break
        self.is_empty = all(file.is_left_alone for file in first)
        self._begun: Iterator[WalkedFile] | None = itertools.chain(first, rest)

    def __iter__(self) -> Iterator[WalkedFile]:
        """Yield the files."""
        begun, self._begun = self._begun, None
        yield from self._list_files() if begun is None else begun


def walk(
    root: str,
    enters: Callable[[str], bool] = lambda relative: True,
    hidden: bool = False,
    system: bool = False,
    *,
    own_places: bool = True,
    once: bool = True,
) -> Iterator[WalkedFile]:
    """Yield the files below a folder, sorted by name in each folder.

    Links are followed, and a folder is listed once: at its own place where that is below the root
    too, or else where the first link to it stands. So a link neither hides its folder nor renames
    the files in it, and a loop of links ends. At any moment only the names of the folders from the
    root to the current one are held.

    Args:
        root: The folder; empty for the current one.
        enters: Says for a relative path whether that folder is to be listed.
        hidden: Whether names that start with a dot are taken.
        system: Whether folders that a system keeps for itself are listed.
        own_places: Whether a folder below the root is listed at its own place; else where the walk
            comes first, which matters when the place of a file decides whether it is wanted.
        once: Whether a folder is listed once. Otherwise it is listed wherever a link leads to it
            from outside: for a walk that ends at some depth.
    """
    listed: set[tuple[int, int]] = set()
    stack: list[tuple[str, str, Iterator[str], set[str], tuple[int, int]]] = []
    real_root = os.path.realpath(root)

    def push(folder: str, prefix: str) -> None:
        status = os.stat(folder or ".")
        identity = (status.st_dev, status.st_ino)
        if identity not in (listed if once else [above[-1] for above in stack]):
            listed.add(identity)
            names, folders = _names(folder)
            stack.append((folder, prefix, iter(names), folders, identity))

    push(root, "")
    while stack:
        folder, prefix, names, folders, _ = stack[-1]
        name = next(names, "")
        if not name:
            stack.pop()
            continue
        path, relative = os.path.join(folder, name), prefix + name
        if name in folders and not system and is_system_folder(name):
            yield WalkedFile(path, relative, is_left_alone=True)
        elif name.startswith(".") and not hidden:
            continue
        elif name not in folders:
            yield WalkedFile(path, relative)
        elif enters(relative) and not (
            own_places and os.path.islink(path) and _is_met(path, real_root, hidden, system)
        ):
            try:
                push(path, relative + "/")
            except OSError as exc:
                yield WalkedFile(path, relative, f"folder not listed: {one_line(exc)}")


def _is_met(link: str, real_root: str, hidden: bool, system: bool) -> bool:
    """Return whether a walk meets the folder behind a link at its own place."""
    inside = os.path.relpath(os.path.realpath(link), real_root).split(os.sep)
    return (
        inside[0] != os.pardir
        and (hidden or not any(name.startswith(".") for name in inside))
        and (system or not any(map(is_system_folder, inside)))
    )


def _names(folder: str) -> tuple[list[str], set[str]]:
    """List a folder, sorted, and the folders among it; pipes, sockets and devices are left out."""
    names: list[str] = []
    folders: set[str] = set()
    with os.scandir(folder or ".") as entries:
        for entry in entries:
            try:
                if not entry.is_file(follow_symlinks=False):
                    if entry.is_dir():
                        folders.add(entry.name)
                    elif not entry.is_symlink():
                        continue
            except OSError:
                pass  # a link that leads back to itself: kept as a file, which then fails to open
            names.append(entry.name)
    names.sort()
    return names, folders


def is_glob(text: str) -> bool:
    """Return whether a path has wildcards."""
    return _WILDCARD.search(text) is not None


@dataclasses.dataclass(frozen=True, slots=True)
class Glob:
    """A path with wildcards, cut where the first one stands.

    ``*``, ``?`` and ``[…]`` stay within a name, ``**`` stands for any number of folders. A folder
    that the whole pattern matches is taken with all below it, unless the pattern has a ``**``.
    Hidden names only match a pattern that starts with a dot.

    Attributes:
        root: The folder before the first wildcard; empty for the current one.
        parts: The components from there on.
    """

    root: str
    parts: tuple[str, ...]

    @classmethod
    def parse(cls, text: str) -> Glob:
        """Cut a pattern; it must have a wildcard."""
        components = text.replace(os.sep, "/").split("/")
        first = next(number for number, component in enumerate(components) if is_glob(component))
        root = "/".join(components[:first])
        if first and not root:
            root = "/"
        return cls(root, tuple(part for part in components[first:] if part))

    def files(self) -> Iterator[WalkedFile]:
        """Yield the files that match; nothing when the folder before the first wildcard is none."""
        if not os.path.isdir(self.root or "."):
            return
        for file in walk(
            self.root,
            self.enters,
            self.hidden,
            self.system,
            own_places=self.parts[:-1] == ("**",),
            once="**" in self.parts,
        ):
            if file.is_left_alone or self.matches(file.relative):
                yield file

    @property
    def hidden(self) -> bool:
        """Whether names that start with a dot can match."""
        return any(part.startswith(".") for part in self.parts)

    @property
    def system(self) -> bool:
        """Whether the pattern names a folder that a system keeps for itself."""
        return any(is_system_folder(part) for part in self.parts)

    def matches(self, relative: str) -> bool:
        """Return whether a path below ``root`` matches."""
        return _matches(relative.split("/"), self.parts, "**" in self.parts)

    def enters(self, relative: str) -> bool:
        """Return whether a file below this folder could match."""
        return _matches(relative.split("/"), self.parts, "**" in self.parts, partial=True)

    def names(self, relative: str) -> bool:
        """Return whether the pattern stands for this path itself, not for a folder above it."""
        return _matches(relative.split("/"), self.parts, deep=True)

    def names_suffix(self, suffix: str) -> bool:
        """Return whether the pattern itself spells out this extension."""
        return bool(suffix) and self.parts[-1].lower().endswith(suffix)


def _matches(names: Sequence[str], parts: Sequence[str], deep: bool, partial: bool = False) -> bool:
    """Return whether a path matches; with ``partial``, whether a path below this folder could.

    Args:
        names: Components of the path.
        parts: Components of the pattern.
        deep: Whether the pattern has a ``**``; otherwise it also covers everything below a folder
            that it matches.
        partial: See above.
    """
    if not parts:
        return not names or not deep
    if not names:
        return partial or all(part == "**" for part in parts)
    name, part = names[0], parts[0]
    if part == "**":
        visible = not name.startswith(".")
        return _matches(names, parts[1:], deep, partial) or (
            visible and _matches(names[1:], parts, deep, partial)
        )
    if name.startswith(".") and not part.startswith("."):
        return False
    return fnmatch(name, part) and _matches(names[1:], parts[1:], deep, partial)
