"""Sources of bytes, and the things that a listing gives.

A picture, a document or a video may be a file, a URL, an entry of an archive or a cell of a table.
``Source`` is the one way to its bytes, so that nobody else asks where they are.
"""

from __future__ import annotations

import dataclasses
import io
import math
import os
import types
from collections.abc import Callable, Iterator, Mapping
from typing import IO, Any, BinaryIO, NoReturn, Self

from vlmbatch.core import Pixels
from vlmbatch.errors import DecodeError, ItemError, ReadError, one_line
from vlmbatch.read.base import check_file_size, content_digest
from vlmbatch.read.files.temporary import TemporaryFile

_NOTHING: Mapping[str, Any] = types.MappingProxyType({})
HEAD_BYTES = 512


class Source:
    """The bytes of one picture, document or video. Made without reading them; for any thread.

    Attributes:
        suffix: Extension that its name has, in small letters with its dot; empty without one.
        held_bytes: Bytes that are held in memory.
        is_held: Whether the bytes are held, in memory or in a temporary file, because they cannot
            be read again cheaply.
        needs_copy: Whether ``as_file`` makes a temporary file.
        is_near: Whether reading the bytes again is cheap.
    """

    suffix = ""
    held_bytes = 0
    is_held = False
    needs_copy = True
    is_near = True
    _digest: str | None = None

    def digest(self) -> str:
        """Return a digest of the bytes, those that ``open`` gave last if it was called; empty when
        they could not be had.

        Raises:
            ReadError: They cannot be had.
            DecodeError: There are none.
        """
        if self._digest is None:
            self.open().close()
        return self._digest or ""

    def read(self) -> bytes:
        """Return all bytes. Every source has its own way, here or in ``blocks``.

        Raises:
            ReadError: They cannot be had.
        """
        return b"".join(self.blocks())

    def head(self) -> bytes:
        """Return some of the first bytes where that costs nothing; else none."""
        return b""

    def blocks(self) -> Iterator[bytes]:
        """Yield the bytes in blocks; raises ``ReadError``."""
        yield self.read()

    def open(self, max_bytes: float = math.inf) -> IO[bytes]:
        """Return the bytes as an open file that can be sought in.

        Raises:
            ReadError: They cannot be had, or are more than ``max_bytes``.
            DecodeError: There are none.
        """
        self._digest = ""
        file = _checked(io.BytesIO(self.read()), max_bytes)
        self._digest = content_digest(file)
        file.seek(0)
        return file

    def as_file(self) -> DiskFile:
        """Return a file with these bytes; a temporary one where they are none.

        Raises:
            ReadError: They cannot be had, or the disk has no room for them.
        """
        return DiskFile.copied(self.suffix, lambda file: file.writelines(self.blocks()))


class DiskFile(Source):
    """A file that the operating system opens.

    Attributes:
        path: Its path; that of a temporary file is valid for as long as this object exists.
    """

    needs_copy = False

    def __init__(self, path: str, kept: TemporaryFile | None = None) -> None:
        self.path, self._kept = path, kept
        self.suffix = os.path.splitext(path)[1].lower()

    @classmethod
    def copied(cls, suffix: str, fill: Callable[[BinaryIO], object]) -> Self:
        """Make a temporary file; see ``TemporaryFile``."""
        copy = TemporaryFile(suffix, fill)
        return cls(copy.path, copy)

    def digest(self) -> str:
        """Return the digest of the file as it was at the first call."""
        if self._digest is None:
            with self._opened() as file:
                self._digest = content_digest(file)
        return self._digest

    def read(self) -> bytes:
        """Return all bytes."""
        with self._opened() as file:
            return file.read()

    def head(self) -> bytes:
        """Return the first bytes; none where the file cannot be read."""
        try:
            with self._opened() as file:
                return file.read(HEAD_BYTES)
        except (OSError, ReadError):
            return b""

    def open(self, max_bytes: float = math.inf) -> IO[bytes]:
        """Open the file."""
        return _checked(self._opened(), max_bytes)

    def as_file(self) -> DiskFile:
        """Return this file."""
        return self

    def bind(self, load: Callable[[str], Pixels]) -> Callable[[], Pixels]:
        """Return a ``load`` of the file at a path; the file stays for as long as it exists."""
        return lambda: load(self.path)

    def _opened(self) -> IO[bytes]:
        try:
            return open(self.path, "rb")
        except (OSError, ValueError) as exc:  # ValueError: a NUL in the name
            raise ReadError(one_line(exc)) from exc


class HeldBytes(Source):
    """Bytes in memory."""

    is_held = True

    def __init__(self, data: bytes, suffix: str = "") -> None:
        self._data, self.suffix, self.held_bytes = data, suffix, len(data)

    def read(self) -> bytes:
        """Return all bytes."""
        return self._data

    def head(self) -> bytes:
        """Return the first bytes."""
        return self._data[:HEAD_BYTES]


class Unreadable(Source):
    """A source that is known to have no bytes, with the reason."""

    needs_copy = False

    def __init__(self, reason: str) -> None:
        self.reason = " ".join(reason.split())  # names in it may have line breaks

    def read(self) -> NoReturn:
        """Raise ``ReadError``."""
        raise ReadError(self.reason)

    def as_file(self) -> NoReturn:
        """Raise ``ReadError``."""
        raise ReadError(self.reason)


def _checked(file: IO[bytes], max_bytes: float) -> IO[bytes]:
    size = file.seek(0, os.SEEK_END)
    file.seek(0)
    try:
        if size == 0:
            raise DecodeError("empty file")
        check_file_size(size, max_bytes)
    except ItemError:
        file.close()
        raise
    return file


@dataclasses.dataclass(frozen=True, slots=True)
class Listed:
    """A thing of the job: a file, or what stands for one in a manifest or archive.

    Attributes:
        id: Stable name, valid UTF-8: the path below its INPUT, with ``/`` as separator.
        source: The path for a person to read, valid UTF-8.
        content: The bytes.
        fingerprint: ``size:mtime_ns``, or what a server states; empty when there is neither.
        questions: Asked about it instead of the job's questions.
        extra: Values that are carried into its rows.
    """

    id: str
    source: str
    content: Source
    fingerprint: str = ""
    questions: tuple[str, ...] = ()
    extra: Mapping[str, Any] = dataclasses.field(default_factory=lambda: _NOTHING)


@dataclasses.dataclass(frozen=True, slots=True)
class Candidate:
    """A thing that a manifest or archive names, before it is known whether it belongs to the job.

    Attributes:
        listed: The thing; its id may be that of another one.
        match: Name that ``include`` and ``exclude`` are held against.
        label: Put behind an id that is taken.
        repeats: Makes it the same as another one that was given before; empty when nothing does.
    """

    listed: Listed
    match: str
    label: str = ""
    repeats: str = ""
