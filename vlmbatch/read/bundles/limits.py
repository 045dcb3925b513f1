"""Entries of archives: their limits, their links, and what all archives give of one."""

from __future__ import annotations

import dataclasses
import posixpath
from collections.abc import Callable
from typing import Literal

from vlmbatch.errors import ReadError
from vlmbatch.read.files.kinds import printable
from vlmbatch.read.files.source import Source

BUFFER_BYTES = 1 << 16
"""Packed bytes that may have been read ahead, and so do not count against a compression ratio."""

COPY_BYTES = 1 << 20
"""Bytes that are copied at once."""

MAX_LINKS = 40
"""Links that are followed one after the other, as Linux does."""


@dataclasses.dataclass(frozen=True, slots=True)
class Limits:
    """The most that an entry may take.

    Attributes:
        max_bytes: Unpacked bytes.
        max_ratio: Unpacked bytes for each packed one.
    """

    max_bytes: int
    max_ratio: float

    def trouble(self, unpacked_bytes: int, packed_bytes: int | None = None) -> str | None:
        """Return why an entry is not unpacked; None when it may be."""
        if unpacked_bytes > self.max_bytes:
            return (
                f"{unpacked_bytes:,} bytes are more than --max-file-size allows "
                f"({self.max_bytes:,})"
            )
        if packed_bytes is not None and unpacked_bytes > self.max_ratio * (
            packed_bytes + BUFFER_BYTES
        ):
            return (
                f"{packed_bytes:,} bytes unpack to {unpacked_bytes:,}, "
                f"more than --max-compression-ratio {self.max_ratio:g}"
            )
        return None


@dataclasses.dataclass(frozen=True, slots=True)
class Member:
    """An entry of an archive that is no folder.

    Attributes:
        name: As the archive has it, ``/`` as separator.
        content: Its bytes.
        fingerprint: Changes when the entry does.
    """

    name: str
    content: Source
    fingerprint: str


HowToTake = Callable[[str, int], Literal["bytes", "file"] | None]
"""Says for a name and a size in bytes whether an entry is held as bytes, as a file, or not at all;
raises ``ReadError`` for one that must not be held.
"""


def suffix_in(name: str) -> str:
    """Return the extension of an entry, in small letters with its dot."""
    return posixpath.splitext(name)[1].lower()


def plain_name(name: str) -> str:
    """Return the name of an entry without ``./`` and the like."""
    return posixpath.normpath(name.rstrip("/"))


def link_target(name: str, target: str, *, is_hard: bool = False) -> str:
    """Return the name that a link in an archive leads to, from the archive's root.

    Args:
        name: The entry that is the link.
        target: As it is written: from the link's folder, or from the root for a hard link.
        is_hard: Whether it is a hard link.

    Raises:
        ReadError: It leads out of the archive.
    """
    path = plain_name(target if is_hard else posixpath.join(posixpath.dirname(name), target))
    if path.startswith(("/", "../")) or path == ".." or not target:
        raise ReadError(f"a link that leads out of the archive: {printable(target)}")
    return path
