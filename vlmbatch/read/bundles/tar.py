"""Entries of a tar file, in memory that does not grow with the archive.

Those of an uncompressed tar are read one by one on the worker's thread. A compressed one is read
once, front to back; what a link in it leads to is unpacked a second time.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import tarfile
from collections.abc import Callable, Iterator
from typing import IO, Any, BinaryIO

from vlmbatch.errors import ReadError, one_line
from vlmbatch.read.bundles.limits import (
    BUFFER_BYTES,
    COPY_BYTES,
    HowToTake,
    Limits,
    Member,
    suffix_in,
)
from vlmbatch.read.bundles.tar_links import TarHeader, TarIndex, TarSlice, Unpack
from vlmbatch.read.files.kinds import printable
from vlmbatch.read.files.source import DiskFile, HeldBytes, Source, Unreadable

_BLOCK_BYTES = 1 << 16
"""Unpacked bytes of a compressed tar that are asked for at once."""

_NOT_TAKEN = Unreadable("not read, as entries are only counted")


class HeldFile(DiskFile):
    """A temporary file that was made as an entry came by, and cannot be made again."""

    is_held = True


def tar_members(path: str, limits: Limits, how: HowToTake) -> Iterator[Member]:
    """Yield the files of a tar archive in its order.

    Args:
        path: The archive.
        limits: The most that an entry may take.
        how: Says how an entry of a compressed archive is held, as it cannot be read later.

    Raises:
        ReadError: It is no tar archive, or it is damaged or cut off; entries before that were
            yielded.
    """
    try:
        with open(path, "rb") as file:
            unpack = _decompressor(file.read(6))
            file.seek(0)
            yield from (
                _stored(path, file, limits, how)
                if unpack is None
                else _streamed(path, file, unpack, limits, how)
            )
    except ReadError:
        raise
    except Exception as exc:  # TarError, OSError, _StreamError …
        raise ReadError(one_line(exc)) from exc


def _stored(path: str, file: BinaryIO, limits: Limits, how: HowToTake) -> Iterator[Member]:
    """Yield entries of an uncompressed tar, each by its place, so that a worker reads it."""
    status = os.fstat(file.fileno())
    is_written = any(file.read(tarfile.BLOCKSIZE))
    file.seek(0)
    if (
        status.st_size
        and not is_written
        and (status.st_size > tarfile.RECORDSIZE or not path.lower().endswith(".tar"))
    ):
        # An archive without entries is one record of zeros.
        raise ReadError("nothing where the first entry should be: zeros")
    index = TarIndex(path)
    with tarfile.open(fileobj=file, mode="r:", tarinfo=TarHeader) as tar:
        for info in _entries(tar):
            is_plain = info.isreg() and not info.issparse()
            if is_plain and info.offset_data + info.size > status.st_size:
                raise ReadError(f"cut off within {printable(info.name)}")
            start, size = info.offset_data, info.size
            content: Source
            try:
                if _is_link(info):
                    start, size = index.find(info) if how(info.name, 0) else (start, 0)
                _check(info, size, limits)
                content = TarSlice(path, start, size, suffix_in(info.name))
            except ReadError as exc:
                content = Unreadable(str(exc))
            fingerprint = f"{status.st_size}:{status.st_mtime_ns}:{start}:{size}"
            yield Member(info.name, content, fingerprint)


def _streamed(
    path: str, file: BinaryIO, unpack: Unpack, limits: Limits, how: HowToTake
) -> Iterator[Member]:
    """Yield entries of a compressed tar, with the bytes of those that are taken."""
    opened: Any = _Unpacked(unpack(file), file, limits)  # has as much of a file as tarfile needs
    with (
        contextlib.closing(TarIndex(path, unpack)) as index,
        contextlib.closing(opened) as stream,
        tarfile.open(fileobj=stream, mode="r|", bufsize=_BLOCK_BYTES, tarinfo=TarHeader) as tar,
    ):
        for info in _entries(tar):
            digest = hashlib.blake2b(digest_size=16)
            content: Source
            try:
                _check(info, info.size, limits)
                content = _NOT_TAKEN
                if wanted := how(info.name, info.size):
                    content = (
                        _behind(info, index, limits, digest)
                        if _is_link(info)
                        else _held(tar, info, wanted == "file", digest)
                    )
            except ReadError as exc:
                content = Unreadable(str(exc))
            yield Member(info.name, content, digest.hexdigest())
            del content
            stream.next_entry()


def _held(
    tar: tarfile.TarFile, info: tarfile.TarInfo, as_file: bool, digest: hashlib.blake2b
) -> Source:
    """Take an entry from a stream."""
    extracted = tar.extractfile(info)
    assert extracted is not None
    suffix = suffix_in(info.name)
    blocks = _stream_blocks(extracted, digest)
    if as_file:
        return HeldFile.copied(suffix, lambda file: file.writelines(blocks))
    return HeldBytes(b"".join(blocks), suffix)


def _behind(
    info: tarfile.TarInfo, index: TarIndex, limits: Limits, digest: hashlib.blake2b
) -> Source:
    """Return the earlier entry that a link in a stream leads to."""
    start, size = index.find(info)
    _check(info, size, limits)
    content = index.slice(start, size, suffix_in(info.name))
    for block in content.blocks():
        digest.update(block)
    return content


class _StreamError(Exception):
    """The stream cannot be read any further, which is an error neither of an entry nor of its
    copy.
    """


def _stream_blocks(stream: IO[bytes], digest: hashlib.blake2b) -> Iterator[bytes]:
    while block := stream.read(COPY_BYTES):
        digest.update(block)
        yield block


def _entries(tar: Any) -> Iterator[tarfile.TarInfo]:
    """Yield headers of entries that are no folder, to the zeros that end an archive. The rest is
    looked at too, as a hole in the middle is zeros as well.
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


def _is_link(info: tarfile.TarInfo) -> bool:
    return info.issym() or info.islnk()


def _check(info: tarfile.TarInfo, size: int, limits: Limits) -> None:
    """Refuse an entry that must not or cannot be read, with ``ReadError``."""
    trouble = limits.trouble(size)
    if info.isreg() and info.issparse():
        trouble = "a sparse file"
    elif not info.isreg() and not _is_link(info):
        trouble = "not a regular file"
    if trouble:
        raise ReadError(trouble)


class _Unpacked:
    """The stream that a compressed archive unpacks to, as long as its size is in proportion."""

    def __init__(self, inner: Any, packed: BinaryIO, limits: Limits) -> None:
        self._inner, self._packed, self._limits = inner, packed, limits
        self._unpacked_bytes = 0
        self.next_entry()

    def next_entry(self) -> None:
        """Start to count anew."""
        self._since = self._unpacked_bytes, self._packed.tell()

    def read(self, size: int) -> bytes:
        """Return at least one byte and at most so many; none at the end. Bytes before a damage are
        given before it is raised.

        Raises:
            _StreamError: The entry in hand unpacks to too many times its size, or the bytes are
                damaged.
        """
        try:
            data: bytes = self._inner.read1(size)
        except Exception as exc:  # OSError, EOFError, zlib.error, LZMAError, ArrowException …
            raise _StreamError(one_line(exc)) from exc
        self._unpacked_bytes += len(data)
        unpacked = self._unpacked_bytes - self._since[0]
        packed = self._packed.tell() - self._since[1]
        if unpacked > self._limits.max_ratio * (packed + 2 * BUFFER_BYTES):
            raise _StreamError(
                "an entry unpacks to more than --max-compression-ratio "
                f"{self._limits.max_ratio:g} times its size; the rest is not read"
            )
        return data

    def close(self) -> None:
        """Close the decompressor."""
        self._inner.close()


def _decompressor(head: bytes) -> Callable[[BinaryIO], Any] | None:
    """Return the decompressor for a file that starts with these 6 bytes; None when it is not
    compressed in a known way.
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
                """Return a tar's block: Arrow drops what it has unpacked of a larger piece when it
                meets a damage in it.
                """
                data: bytes = self.read(tarfile.BLOCKSIZE)
                return data

        return lambda file: ZstdFile(file, "zstd")
    return None
