"""What stands in a zip or tar file: entries with what reads them, one after the other, in memory
that does not grow with the archive.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import os
import posixpath
import stat
import tarfile
import zipfile
from collections.abc import Callable, Iterator
from typing import IO, Any, BinaryIO, Literal, Self, TypeVar

from vlmbatch.errors import ReadError
from vlmbatch.read.base import one_line
from vlmbatch.read.files.temporary import TemporaryFile

_BUFFER_BYTES = 1 << 16
"""Packed bytes that may have been read ahead, and so do not count against a compression ratio."""

_BLOCK_BYTES = 1 << 16
"""Unpacked bytes of a compressed tar that are asked for at once."""


_COPY_BYTES = 1 << 20
"""Bytes that are copied at once."""

T = TypeVar("T")


@dataclasses.dataclass(frozen=True, slots=True)
class Limits:
    """What an entry may take.

    Attributes:
        max_bytes: Unpacked bytes.
        max_ratio: Unpacked bytes for each packed one.
    """

    max_bytes: int
    max_ratio: float

    def trouble(self, unpacked_bytes: int, packed_bytes: int | None = None) -> str | None:
        """Why an entry is not unpacked; None when it may be."""
        if unpacked_bytes > self.max_bytes:
            return f"{unpacked_bytes:,} bytes are more than --max-file-size allows ({self.max_bytes:,})"
        if packed_bytes is not None and unpacked_bytes > self.max_ratio * (
            packed_bytes + _BUFFER_BYTES
        ):
            return f"{packed_bytes:,} bytes unpack to {unpacked_bytes:,}, more than --max-compression-ratio {self.max_ratio:g}"
        return None


@dataclasses.dataclass(frozen=True, slots=True)
class Member:
    """An entry of an archive.

    Attributes:
        name: As the archive has it, ``/`` as separator.
        read: Gives its bytes, on any thread; raises ``ReadError``.
        fingerprint: Changes when the entry does.
        error: Why it cannot be read; None when nothing is known against it.
        held_bytes: Bytes that ``read`` holds.
        copy: Makes a file of it, or gives the one that was made; raises ``ReadError``.
        is_copied: Whether ``copy`` gives a file that was made as the entry came by, and cannot be
            made again.
    """

    name: str
    read: Callable[[], bytes]
    fingerprint: str
    error: str | None = None
    held_bytes: int = 0
    copy: Callable[[], TemporaryFile] | None = None
    is_copied: bool = False


Wanted = Callable[[str, int], Literal["bytes", "file"] | None]
"""Says of a name and a size in bytes what is asked for: the bytes, a file of them, or neither."""


def zip_members(path: str, limits: Limits, wants: Wanted) -> Iterator[Member]:
    """Yields the files of a zip archive in the order of its directory.

    Args:
        path: The archive.
        limits: What an entry may take.
        wants: Not asked: entries are read when they are wanted.

    Raises:
        ReadError: It is no zip archive, or its directory is damaged or cut off.
    """
    try:
        archive = zipfile.ZipFile(path)
    except OSError as exc:
        raise ReadError(one_line(exc)) from exc
    except Exception as exc:  # damaged directories raise many kinds
        raise ReadError(
            f"not a zip archive, or cut off before its directory at the end: {one_line(exc)}"
        ) from exc
    for info in archive.infolist():
        if not info.is_dir():
            error = limits.trouble(info.file_size, info.compress_size)
            if stat.S_ISLNK(info.external_attr >> 16):
                error = "a link, not a file"
            elif info.flag_bits & 1:
                error = "encrypted"
            read, copy = (
                functools.partial(_read_zipped, archive, info),
                functools.partial(_copy, info.filename, functools.partial(_zipped, archive, info)),
            )
            yield Member(
                info.filename.replace("\\", "/"),
                read,
                f"{info.CRC:08x}:{info.file_size}",
                error,
                copy=copy,
            )


def _read_zipped(archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> bytes:
    try:
        return archive.read(info)
    except Exception as exc:  # BadZipFile, zlib.error, NotImplementedError, EOFError …
        raise ReadError(f"damaged entry: {one_line(exc)}") from exc


def _zipped(archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> Iterator[bytes]:
    try:
        with archive.open(info) as file:
            while block := file.read(_COPY_BYTES):
                yield block
    except GeneratorExit:
        raise
    except Exception as exc:  # as for ``_read_zipped``
        raise ReadError(f"damaged entry: {one_line(exc)}") from exc


def _copy(name: str, blocks: Callable[[], Iterator[bytes]]) -> TemporaryFile:
    """A file of an entry; it has the entry's suffix, which is what some formats are known by."""
    return TemporaryFile(posixpath.splitext(name)[1], lambda file: file.writelines(blocks()))


def tar_members(path: str, limits: Limits, wants: Wanted) -> Iterator[Member]:
    """Yields the files of a tar archive in its order.

    Args:
        path: The archive.
        limits: What an entry may take.
        wants: What is asked for; compressed archives are asked, as their entries cannot be read
            later.

    Raises:
        ReadError: It is no tar archive, or it is damaged or cut off; entries before that were
            yielded.
    """
    try:
        with open(path, "rb") as file:
            unpack = _decompressor(file.read(6))
            file.seek(0)
            yield from (
                _stored(path, file, limits)
                if unpack is None
                else _streamed(file, unpack, limits, wants)
            )
    except ReadError:
        raise
    except Exception as exc:  # TarError, OSError, EOFError, zlib.error, LZMAError, ArrowException …
        raise ReadError(one_line(exc)) from exc


def _stored(path: str, file: BinaryIO, limits: Limits) -> Iterator[Member]:
    """Entries of an uncompressed tar: where each stands, so that a worker reads it."""
    status = os.fstat(file.fileno())
    is_written = any(file.read(tarfile.BLOCKSIZE))
    file.seek(0)
    if (
        status.st_size
        and not is_written
        and (status.st_size > tarfile.RECORDSIZE or not path.lower().endswith(".tar"))
    ):
        raise ReadError(
            "nothing where the first entry should be: zeros"
        )  # an archive without entries is one record of zeros
    with tarfile.open(fileobj=file, mode="r:", tarinfo=_Header) as tar:
        for info in _entries(tar):
            if (
                info.isreg()
                and not info.issparse()
                and info.offset_data + info.size > status.st_size
            ):
                raise ReadError(f"cut off within {info.name}")
            read = functools.partial(_read_slice, path, info.offset_data, info.size)
            copy = functools.partial(
                _copy, info.name, functools.partial(_slices, path, info.offset_data, info.size)
            )
            yield Member(
                info.name,
                read,
                f"{status.st_size}:{status.st_mtime_ns}:{info.offset_data}:{info.size}",
                _trouble(info, limits),
                copy=copy,
            )


def _streamed(
    file: BinaryIO, unpack: Callable[[BinaryIO], Any], limits: Limits, wants: Wanted
) -> Iterator[Member]:
    """Entries of a compressed tar, with the bytes of those that are wanted."""
    opened: Any = _Unpacked(unpack(file), file, limits)  # has as much of a file as tarfile needs
    with (
        opened as stream,
        tarfile.open(fileobj=stream, mode="r|", bufsize=_BLOCK_BYTES, tarinfo=_Header) as tar,
    ):
        for info in _entries(tar):
            error = _trouble(info, limits)
            how = None if error else wants(info.name, info.size)
            extracted = tar.extractfile(info) if how else None
            data, copy, content = b"", None, hashlib.blake2b(digest_size=16)
            if how == "bytes" and extracted:
                content.update(data := extracted.read())
            elif how == "file" and extracted:
                try:
                    copy = _copy(info.name, functools.partial(_streamed_blocks, extracted, content))
                except _StreamError as exc:
                    raise exc.error from exc
                except ReadError as exc:
                    error = str(exc)
            given = functools.partial(_given, copy) if copy else None
            yield Member(
                info.name,
                functools.partial(_given, data),
                content.hexdigest(),
                error,
                len(data),
                given,
                is_copied=copy is not None,
            )
            del data, copy, given
            stream.next_entry()


class _StreamError(Exception):
    """The stream cannot be read any further, which is not an error of the copy."""

    def __init__(self, error: Exception) -> None:
        super().__init__(str(error))
        self.error = error


def _streamed_blocks(stream: IO[bytes], content: hashlib.blake2b) -> Iterator[bytes]:
    while True:
        try:
            block = stream.read(_COPY_BYTES)
        except Exception as exc:
            raise _StreamError(exc) from exc
        if not block:
            return
        content.update(block)
        yield block


def _entries(tar: Any) -> Iterator[tarfile.TarInfo]:
    """Headers of what is no folder, to the zeros that end an archive; what stands behind them is
    looked at, as a hole in the middle is zeros too.
    """
    while (info := tar.next()) is not None:
        tar.members.clear()  # tarfile keeps every header that it has seen
        if not info.isdir():
            yield info
    while block := tar.fileobj.read(_BLOCK_BYTES):
        if block.count(0) < len(block):
            raise ReadError(
                "zeros, as at the end of an archive, and more behind them, which is not read"
            )


def _trouble(info: tarfile.TarInfo, limits: Limits) -> str | None:
    if info.issym() or info.islnk():
        return "a link, not a file"
    if not info.isreg() or info.issparse():
        return "a sparse file" if info.isreg() else "not a regular file"
    return limits.trouble(info.size)


def _read_slice(path: str, start: int, size: int) -> bytes:
    try:
        with open(path, "rb") as file:
            file.seek(start)
            data = file.read(size)
    except OSError as exc:
        raise ReadError(one_line(exc)) from exc
    if len(data) < size:
        raise ReadError("the archive was cut off while it was read")
    return data


def _slices(path: str, start: int, size: int) -> Iterator[bytes]:
    """What ``_read_slice`` gives, in blocks."""
    end = start + size
    for place in range(start, end, _COPY_BYTES):
        yield _read_slice(path, place, min(_COPY_BYTES, end - place))


def _given(made: T) -> T:
    return made


class _Header(tarfile.TarInfo):
    """A header of an entry. ``tarfile`` takes a damaged one in the middle, and a file that is cut
    off before one, for the end of the archive.
    """

    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> Self:
        """Reads a block of 512 bytes.

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


class _Unpacked:
    """What a compressed archive unpacks to, as long as that is not out of all proportion."""

    def __init__(self, inner: Any, packed: BinaryIO, limits: Limits) -> None:
        self._inner, self._packed, self._limits = inner, packed, limits
        self._unpacked_bytes = 0
        self.next_entry()

    def next_entry(self) -> None:
        """Starts to count anew."""
        self._since = self._unpacked_bytes, self._packed.tell()

    def read(self, size: int) -> bytes:
        """At least one byte and at most so many; none at the end. What stands before a damage is
        given before that is raised.

        Raises:
            ReadError: The entry in hand unpacks to too many times its size.
        """
        data: bytes = self._inner.read1(size)
        self._unpacked_bytes += len(data)
        unpacked, packed = (
            self._unpacked_bytes - self._since[0],
            self._packed.tell() - self._since[1],
        )
        if unpacked > self._limits.max_ratio * (packed + 2 * _BUFFER_BYTES):
            raise ReadError(
                f"an entry unpacks to more than --max-compression-ratio {self._limits.max_ratio:g} times its size; the rest is not read"
            )
        return data

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self._inner.close()


def _decompressor(head: bytes) -> Callable[[BinaryIO], Any] | None:
    """What unpacks a file that starts with these 6 bytes; None when it is not compressed in a known
    way.
    """
    if head.startswith(b"\x1f\x8b"):
        import gzip

        return lambda file: gzip.GzipFile(fileobj=file)
    if head.startswith(b"BZh") and head.endswith(b"1A"):
        import bz2

        return bz2.BZ2File
    if head.startswith(b"\xfd7zXZ"):
        import lzma

        return lzma.LZMAFile
    if head.startswith(b"\x28\xb5\x2f\xfd") or (
        head[1:4] == b"\x2a\x4d\x18" and head[0] >> 4 == 5
    ):  # a frame, or a skippable one as pzstd writes
        import pyarrow

        class ZstdFile(pyarrow.CompressedInputStream):  # type: ignore[misc]
            def read1(self, size: int) -> bytes:
                """A tar's block: Arrow drops what it has unpacked of a larger piece when it meets a
                damage in it.
                """
                data: bytes = self.read(tarfile.BLOCKSIZE)
                return data

        return lambda file: ZstdFile(file, "zstd")
    return None
