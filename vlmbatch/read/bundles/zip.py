"""Entries of a zip file, read one by one on the worker's thread."""

from __future__ import annotations

import stat
import zipfile
from collections.abc import Iterator

from vlmbatch.errors import ReadError, one_line
from vlmbatch.read.bundles.limits import (
    COPY_BYTES,
    MAX_LINKS,
    Limits,
    Member,
    link_target,
    suffix_in,
)
from vlmbatch.read.files.kinds import printable
from vlmbatch.read.files.source import Source, Unreadable


class ZipEntry(Source):
    """The bytes of an entry."""

    def __init__(self, archive: zipfile.ZipFile, info: zipfile.ZipInfo, name: str) -> None:
        self._archive, self._info, self.suffix = archive, info, suffix_in(name)

    def blocks(self) -> Iterator[bytes]:
        """Unpack the entry in blocks."""
        try:
            with self._archive.open(self._info) as file:
                while block := file.read(COPY_BYTES):
                    yield block
        except Exception as exc:  # BadZipFile, zlib.error, NotImplementedError, EOFError …
            raise ReadError(f"damaged entry: {one_line(exc)}") from exc


def zip_members(path: str, limits: Limits) -> Iterator[Member]:
    """Yield the files of a zip archive in the order of its directory.

    Args:
        path: The archive.
        limits: The most that an entry may take.

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
        if info.is_dir():
            continue
        name = info.filename.replace("\\", "/")
        fingerprint = f"{info.CRC:08x}:{info.file_size}"
        content: Source
        try:
            found = _followed(archive, info, limits)
            fingerprint = f"{found.CRC:08x}:{found.file_size}"
            content = ZipEntry(archive, found, name)
        except ReadError as exc:
            content = Unreadable(str(exc))
        yield Member(name, content, fingerprint)


def _followed(archive: zipfile.ZipFile, info: zipfile.ZipInfo, limits: Limits) -> zipfile.ZipInfo:
    """Return an entry, or the entry behind a symbolic link.

    Raises:
        ReadError: It must not or cannot be read.
    """
    for _ in range(MAX_LINKS):
        trouble = limits.trouble(info.file_size, info.compress_size)
        if info.flag_bits & 1:
            trouble = "encrypted"
        if trouble:
            raise ReadError(trouble)
        if not stat.S_ISLNK(info.external_attr >> 16):
            return info
        written = ZipEntry(archive, info, "").read().decode("utf-8", "surrogateescape")
        target = link_target(info.filename, written)
        if target not in archive.NameToInfo:
            raise ReadError(f"a link to {printable(target)}, which is no file of the archive")
        info = archive.NameToInfo[target]
    raise ReadError("a link that leads back to itself")
