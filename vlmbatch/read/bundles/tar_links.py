"""Links inside tar files: the entries that they lead to, and their bytes."""

from __future__ import annotations

import contextlib
import tarfile
from collections.abc import Callable, Iterator
from typing import Any, BinaryIO, NamedTuple, Self

from vlmbatch.errors import ReadError, one_line
from vlmbatch.read.bundles.limits import COPY_BYTES, MAX_LINKS, link_target, plain_name
from vlmbatch.read.files.kinds import printable
from vlmbatch.read.files.source import Source
from vlmbatch.read.files.temporary import TemporaryFile

Unpack = Callable[[BinaryIO], Any]
"""Makes a stream of unpacked bytes of an open file."""


class TarHeader(tarfile.TarInfo):
    """A header of an entry. ``tarfile`` takes a damaged one in the middle, and a file that is cut
    off before one, for the end of the archive.
    """

    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> Self:
        """Read a block of 512 bytes.

        Raises:
            ReadError: It is neither a header nor the zeros that end an archive, or there is
                nothing.
        """
        try:
            return super().frombuf(buf, encoding, errors)
        except tarfile.HeaderError as exc:
            if not buf:
                raise ReadError(
                    "it ends without the zeros that end a tar archive: it may be cut off"
                ) from exc
            if any(buf):
                raise ReadError(f"no tar header where one should be: {one_line(exc)}") from exc
            raise


class TarSlice(Source):
    """The bytes of an entry of an uncompressed tar, by their place in it."""

    def __init__(
        self, path: str, start: int, size: int, suffix: str, keep: TemporaryFile | None = None
    ) -> None:
        """Take the place.

        Args:
            path: The tar.
            start: Where the entry starts.
            size: Bytes.
            suffix: The entry's extension.
            keep: The temporary file that the tar is, if it is one.
        """
        self._path, self._start, self._size, self._keep = path, start, size, keep
        self.suffix = suffix

    def blocks(self) -> Iterator[bytes]:
        """Read the entry in blocks."""
        try:
            with open(self._path, "rb") as file:
                file.seek(self._start)
                left = self._size
                while left:
                    block = file.read(min(COPY_BYTES, left))
                    if not block:
                        raise ReadError("the archive was cut off while it was read")
                    left -= len(block)
                    yield block
        except OSError as exc:
            raise ReadError(one_line(exc)) from exc


class _Place(NamedTuple):
    """An entry: where its header and its bytes are, and the name of another one for a link."""

    offset: int
    start: int
    size: int
    link: str | None
    trouble: str | None


class TarIndex:
    """The entries of a tar by name. Nothing is read before the first link is looked for.

    Of a compressed tar the entries before the link are unpacked to a temporary file.
    """

    def __init__(self, path: str, unpack: Unpack | None = None) -> None:
        self._path, self._unpack = path, unpack
        self._places: dict[str, list[_Place]] = {}
        self._indexed_to = 0
        self._is_whole = False
        self._copy: TemporaryFile | None = None
        self._opened = contextlib.ExitStack()

    def find(self, info: tarfile.TarInfo) -> tuple[int, int]:
        """Return start and size of the file that a link leads to.

        Raises:
            ReadError: It leads out of the archive, nowhere, in a circle, or to no regular file.
        """
        if self._unpack is not None:
            self._copy_to(info.offset)
        if not self._is_whole:
            self._index()
        name = link_target(info.name, info.linkname, is_hard=info.islnk())
        for _ in range(MAX_LINKS):
            found = self._step(name, info.offset)
            if isinstance(found, _Place):
                if found.trouble:
                    raise ReadError(f"a link to {printable(name)}, {found.trouble}")
                return found.start, found.size
            name = found
        raise ReadError("a link that leads back to itself")

    def slice(self, start: int, size: int, suffix: str) -> Source:
        """Return bytes of the unpacked copy."""
        assert self._copy is not None
        return TarSlice(self._copy.path, start, size, suffix, self._copy)

    def close(self) -> None:
        """Close the file that is unpacked."""
        self._opened.close()

    def _step(self, name: str, offset: int) -> _Place | str:
        """Return an entry, or the name behind the first link in a path.

        Of entries with the same name the last one before the link counts, as when they are
        unpacked, or else the first one behind it.
        """
        parts = name.split("/")
        for count in range(1, len(parts) + 1):
            places = self._places.get("/".join(parts[:count]), [])
            place = next((one for one in reversed(places) if one.offset < offset), None)
            place = place or next(iter(places), None)
            if place is not None and place.link is not None:
                return plain_name("/".join([place.link, *parts[count:]]))
            if place is not None and count == len(parts):
                return place
        before = " and stands before it" if self._unpack is not None else ""
        raise ReadError(
            f"a link to {printable(name)}: no file of the archive has this name{before}"
        )

    def _index(self) -> None:
        """Read the headers that are there and were not read yet."""
        path = self._path if self._copy is None else self._copy.path
        with open(path, "rb") as file, contextlib.suppress(tarfile.TarError, ReadError):
            file.seek(self._indexed_to)
            opened: Any = tarfile.open(fileobj=file, mode="r:", tarinfo=TarHeader)
            with opened as tar:
                while (info := tar.next()) is not None:
                    tar.members.clear()  # tarfile keeps every header that it has seen
                    self._indexed_to = tar.offset
                    self._note(info)
        self._is_whole = self._unpack is None

    def _note(self, info: tarfile.TarInfo) -> None:
        link = trouble = None
        try:
            if info.issym() or info.islnk():
                link = link_target(info.name, info.linkname, is_hard=info.islnk())
        except ReadError as exc:
            trouble = str(exc)
        if link is None and trouble is None and (not info.isreg() or info.issparse()):
            trouble = "which is no regular file"
        place = _Place(info.offset, info.offset_data, info.size, link, trouble)
        self._places.setdefault(plain_name(info.name), []).append(place)

    def _copy_to(self, end: int) -> None:
        """Unpack up to an offset; no more than was unpacked before, and so within its limits."""
        assert self._unpack is not None
        if self._copy is None:
            self._copy = TemporaryFile(".tar", lambda file: None)
            packed = self._opened.enter_context(open(self._path, "rb"))
            self._stream = self._opened.enter_context(contextlib.closing(self._unpack(packed)))
        try:
            with open(self._copy.path, "ab") as sink:
                while (left := end - sink.tell()) > 0:
                    block = self._stream.read1(min(COPY_BYTES, left))
                    if not block:
                        raise ReadError("the archive was cut off while it was read")
                    sink.write(block[:left])
        except OSError as exc:
            raise ReadError(f"no room for a copy: {one_line(exc)}") from exc
