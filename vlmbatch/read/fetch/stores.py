"""Object stores and other file systems behind a URL, through fsspec: one file, and folders and
globs listed one folder at a time.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, BinaryIO

from vlmbatch.errors import JobError, MissingDependencyError, ReadError
from vlmbatch.filesystems import file_fingerprint, open_store
from vlmbatch.read.base import one_line
from vlmbatch.read.files.kinds import is_system_folder
from vlmbatch.read.files.walk import Begun, Glob, WalkedFile, is_glob
from vlmbatch.urls import is_web, without_credentials

if TYPE_CHECKING:
    from fsspec import AbstractFileSystem

logger = logging.getLogger(__name__)

_CHUNK_BYTES = 1 << 20


def fetch(url: str, sink: BinaryIO, max_bytes: int, *, allow_private: bool) -> None:
    """Write the bytes of a file; file systems retry by themselves where that helps.

    Raises:
        ReadError: The bytes cannot be had, or are more than ``max_bytes``.
    """
    try:
        files, path = open_store(url, allow_private=allow_private)
        size = files.info(path).get("size")
        if size is not None and size > max_bytes:
            raise ReadError(f"{size:,} bytes are more than --max-file-size allows ({max_bytes:,})")
        total = 0
        with files.open(path, "rb") as file:
            while chunk := file.read(_CHUNK_BYTES):
                total += len(chunk)
                if total > max_bytes:
                    raise ReadError(f"more bytes than --max-file-size allows ({max_bytes:,})")
                sink.write(chunk)
    except (JobError, MissingDependencyError) as exc:
        raise ReadError(str(exc)) from exc
    except ReadError:
        raise
    except FileNotFoundError as exc:
        raise ReadError("no such file") from exc
    except Exception as exc:  # botocore's, google's, aiohttp's …
        raise ReadError(one_line(exc)) from exc


class StoreInput:
    """An INPUT in a file system: a file, a folder or a glob, looked at once.

    Attributes:
        kind: ``file``, ``folder`` or ``glob``.
        glob: The pattern, when it is one.

    Raises:
        JobError: It is not there, or cannot be looked at.
        MissingDependencyError: The scheme needs a package that is not installed.
    """

    def __init__(self, url: str, *, allow_private: bool) -> None:
        assert not is_web(url)
        self._url, self._allow_private = url, allow_private
        self.glob: Glob | None = None
        files, path = self._open(url)
        try:
            if files.isdir(path):
                self.kind = "folder"
            elif files.exists(path):
                self.kind = "file"
            elif is_glob(url):
                self.kind = "glob"
                self._url, self.glob = _split_glob(url)
            else:
                raise JobError(f"no such file or folder: {without_credentials(url)}")
            self._begun = Begun(self._list) if self.kind == "glob" else None
            if self._begun is not None and self._begun.is_empty:
                raise JobError(f"no file matches {without_credentials(url)}")
        except JobError:
            raise
        except Exception as exc:
            raise JobError(
                f"{without_credentials(url)} cannot be looked at: {one_line(exc)}"
            ) from exc

    def _open(self, url: str) -> tuple[AbstractFileSystem, str]:
        return open_store(url, allow_private=self._allow_private)

    def files(self) -> Iterator[WalkedFile]:
        """Yield the files, sorted by name in each folder; a folder that cannot be listed comes with
        an error.
        """
        yield from self._begun if self._begun is not None else self._list()

    def _list(self) -> Iterator[WalkedFile]:
        store, path = self._open(self._url)
        if self.kind == "file":
            info = store.info(path)
            yield WalkedFile(
                self._url, path.rstrip("/").rpartition("/")[2], fingerprint=file_fingerprint(info)
            )
            return
        hidden = self.glob is not None and self.glob.hidden
        system = self.glob is not None and self.glob.system
        stack: list[tuple[str, Iterator[dict[str, Any]]]] = [("", iter(self._names(store, path)))]
        while stack:
            prefix, infos = stack[-1]
            info = next(infos, None)
            if info is None:
                stack.pop()
                continue
            name = _base(info)
            relative = prefix + name
            url = f"{self._url.rstrip('/')}/{relative}"
            if info["type"] == "directory" and not system and is_system_folder(name):
                yield WalkedFile(url, relative, is_left_alone=True)
                continue
            if name.startswith(".") and not hidden:
                continue
            if info["type"] != "directory":
                if self.glob is None or self.glob.matches(relative):
                    yield WalkedFile(url, relative, fingerprint=file_fingerprint(info))
            elif self.glob is None or self.glob.enters(relative):
                try:
                    stack.append((relative + "/", iter(self._names(store, info["name"]))))
                except Exception as exc:
                    yield WalkedFile(url, relative, f"folder not listed: {one_line(exc)}")

    @staticmethod
    def _names(files: AbstractFileSystem, path: str) -> list[dict[str, Any]]:
        """List a folder, sorted, without the object that some stores keep for the folder itself."""
        try:
            found = files.ls(path, detail=True)
        except FileNotFoundError:
            return []
        return sorted(
            (info for info in found if info["name"].strip("/") != path.strip("/") and _base(info)),
            key=_base,
        )


def _base(info: dict[str, Any]) -> str:
    return str(info["name"]).rstrip("/").rpartition("/")[2]


def _split_glob(url: str) -> tuple[str, Glob]:
    """Return the URL of the folder before the first wildcard, and the pattern below it."""
    scheme, _, rest = url.partition("://")
    host, *parts = rest.split("/")
    first = next((number for number, part in enumerate(parts) if is_glob(part)), None)
    if first is None:
        raise JobError(f"a bucket cannot be a pattern: {without_credentials(url)}")
    return "/".join([f"{scheme}://{host}", *parts[:first]]), Glob(
        "", tuple(part for part in parts[first:] if part)
    )
