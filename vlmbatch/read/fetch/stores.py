"""Object stores and other file systems behind a URL, through fsspec: one file, and folders and
globs listed one folder at a time.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable
from typing import Any, BinaryIO, Literal

from vlmbatch.errors import JobError, MissingDependencyError, ReadError, one_line
from vlmbatch.filesystems import file_fingerprint, open_store
from vlmbatch.read.base import check_file_size, copy_within
from vlmbatch.read.files.walk import Entry, Glob, ListFolder, WalkedFile

_CHUNK_BYTES = 1 << 20


def fetch(url: str, sink: BinaryIO, max_bytes: int, *, allow_private: bool) -> None:
    """Write the bytes of a file; file systems retry by themselves where that helps.

    Raises:
        ReadError: The bytes cannot be had, or are more than ``max_bytes``.
    """
    try:
        files, path = open_store(url, allow_private=allow_private)
        check_file_size(files.info(path).get("size") or 0, max_bytes)
        with files.open(path, "rb") as file:
            chunks = iter(functools.partial(file.read, _CHUNK_BYTES), b"")
            copy_within(chunks, sink, max_bytes)
    except (JobError, MissingDependencyError) as exc:
        raise ReadError(str(exc)) from exc
    except ReadError:
        raise
    except FileNotFoundError as exc:
        raise ReadError("no such file") from exc
    except Exception as exc:  # botocore's, google's, aiohttp's …
        raise ReadError(one_line(exc)) from exc


class Stores:
    """The files behind URLs, as ``walk.Disk`` has those of this machine."""

    def __init__(self, *, allow_private: bool) -> None:
        self._allow_private = allow_private

    def kind_of(self, url: str) -> Literal["file", "folder"] | None:
        """Return what a URL is; None when nothing is there. Raises what the file system does.

        Raises:
            JobError: Its scheme is not known.
            MissingDependencyError: The scheme needs a package that is not installed.
        """
        store, path = open_store(url, allow_private=self._allow_private)
        if store.isdir(path):
            return "folder"
        return "file" if store.exists(path) else None

    def file(self, url: str) -> WalkedFile:
        """Return a file that was named."""
        store, path = open_store(url, allow_private=self._allow_private)
        name = path.rstrip("/").rpartition("/")[2]
        return WalkedFile(url, name, fingerprint=file_fingerprint(store.info(path)))

    def lister(self, root: str, glob: Glob | None) -> ListFolder:
        """Return what lists folders."""
        return self._list_folder

    def _list_folder(self, url: str, relative: str) -> Iterable[Entry]:
        """List a folder, sorted, without the object that some stores keep for the folder itself."""
        store, path = open_store(url, allow_private=self._allow_private)
        try:
            found: list[dict[str, Any]] = store.ls(path, detail=True)
        except FileNotFoundError:
            return ()
        entries = [
            Entry(
                str(info["name"]).rstrip("/").rpartition("/")[2],
                info["type"] == "directory",
                file_fingerprint(info),
            )
            for info in found
            if info["name"].strip("/") != path.strip("/")
        ]
        return sorted(entry for entry in entries if entry.name)
