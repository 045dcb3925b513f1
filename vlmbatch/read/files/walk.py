"""Folders and globs to paths, one folder at a time, in an order that does not depend on the file
system.
"""

from __future__ import annotations

import dataclasses
import itertools
import os
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from fnmatch import fnmatch
from typing import Literal, NamedTuple

from vlmbatch.errors import one_line
from vlmbatch.read.files.kinds import is_system_folder

_WILDCARD = re.compile(r"[*?\[]")


@dataclasses.dataclass(frozen=True, slots=True)
class WalkedFile:
    """A file below a folder.

    Attributes:
        path: What the operating system opens, or a URL.
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


class Entry(NamedTuple):
    """A file or folder in a folder.

    Attributes:
        name: Its name.
        is_folder: Whether it is a folder.
        fingerprint: As in ``WalkedFile``.
    """

    name: str
    is_folder: bool
    fingerprint: str = ""


ListFolder = Callable[[str, str], Iterable[Entry]]
"""Lists a folder, by its path and by its path below the root; sorted by name. Raises what the file
system does.
"""


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


def walk(root: str, list_folder: ListFolder, glob: Glob | None = None) -> Iterator[WalkedFile]:
    """Yield the files below a folder, or those that a glob matches, sorted by name in each folder.

    At any moment only the names of the folders from the root to the current one are held.

    Args:
        root: The folder; empty for the current one.
        list_folder: Lists a folder of its file system.
        glob: Says which files and folders are wanted; None takes all that are not hidden.
    """
    hidden = glob is not None and glob.hidden
    system = glob is not None and glob.system
    stack = [(root, "", iter(list_folder(root, "")))]
    while stack:
        folder, prefix, entries = stack[-1]
        entry = next(entries, None)
        if entry is None:
            stack.pop()
            continue
        path, relative = os.path.join(folder, entry.name), prefix + entry.name
        if entry.is_folder and not system and is_system_folder(entry.name):
            yield WalkedFile(path, relative, is_left_alone=True)
        elif entry.name.startswith(".") and not hidden:
            continue
        elif not entry.is_folder:
            if glob is None or glob.matches(relative):
                yield WalkedFile(path, relative, fingerprint=entry.fingerprint)
        elif glob is None or glob.enters(relative):
            try:
                stack.append((path, f"{relative}/", iter(list_folder(path, relative))))
            except Exception as exc:  # stores have errors of their own
                if glob is None or glob.matches(relative):
                    yield WalkedFile(path, relative, f"folder not listed: {one_line(exc)}")


class Disk:
    """The files of this machine."""

    def kind_of(self, path: str) -> Literal["file", "folder"] | None:
        """Return what a path is; None when nothing is there.

        Raises:
            OSError: It is a folder that cannot be listed.
        """
        if os.path.isdir(path):
            os.scandir(path).close()
            return "folder"
        return "file" if os.path.exists(path) else None

    def file(self, path: str) -> WalkedFile:
        """Return a file that was named."""
        return WalkedFile(path, os.path.basename(path))

    def lister(self, root: str, glob: Glob | None) -> ListFolder:
        """Return what lists folders for one walk.

        Links are followed, and a folder is listed once: at its own place where that is below the
        root too, or else where the first link to it stands. So a link neither hides its folder nor
        renames the files in it, and a loop of links ends. With a glob the place of a file decides
        whether it is wanted: there a folder is listed where the walk comes first, and without a
        ``**`` wherever a link leads to it from outside.
        """
        listed: set[tuple[int, int]] = set()
        real_root = os.path.realpath(root)
        own_places = glob is None or glob.parts[:-1] == ("**",)
        once = glob is None or "**" in glob.parts
        hidden = glob is not None and glob.hidden
        system = glob is not None and glob.system

        def is_met(link: str) -> bool:
            """Return whether the walk meets the folder behind a link at its own place."""
            inside = os.path.relpath(os.path.realpath(link), real_root).split(os.sep)
            return (
                inside[0] != os.pardir
                and (hidden or not any(name.startswith(".") for name in inside))
                and (system or not any(map(is_system_folder, inside)))
            )

        def list_folder(path: str, relative: str) -> Iterable[Entry]:
            if not relative:
                if glob is not None and not os.path.isdir(path or "."):
                    return ()  # a pattern that begins nowhere matches nothing
            elif own_places and os.path.islink(path) and is_met(path):
                return ()
            if once:
                status = os.stat(path or ".")
                identity = status.st_dev, status.st_ino
                if identity in listed:
                    return ()
                listed.add(identity)
            elif _is_loop(root, relative):
                return ()
            names, folders = _names(path)
            return (Entry(name, name in folders) for name in names)

        return list_folder


def _is_loop(root: str, relative: str) -> bool:
    """Return whether a folder is one of those above it."""
    names = relative.split("/") if relative else []
    above = [os.path.join(root, *names[:count]) or "." for count in range(len(names))]
    return any(os.path.samefile(os.path.join(root, relative), folder) for folder in above)


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
