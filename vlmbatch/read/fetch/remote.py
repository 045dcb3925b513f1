"""Inputs that are URLs: ``http`` and ``https``, and the schemes that fsspec knows (``s3://``,
``gs://``, ``hf://`` …). The one door to both.

Nothing is asked of a URL before its turn, but for a look at each URL that is an INPUT itself. A
picture is held in memory while a worker decodes it; a video, and a document whose pages become
Items, is a temporary file until nothing needs it any more.
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from typing import BinaryIO

from vlmbatch.errors import MissingDependencyError, ReadError
from vlmbatch.job import InputOptions
from vlmbatch.read.extras import need_remote
from vlmbatch.read.files.kinds import suffix_of
from vlmbatch.read.files.source import DiskFile, LocalFile, Source
from vlmbatch.read.files.temporary import TemporaryFile
from vlmbatch.read.files.walk import Glob, WalkedFile
from vlmbatch.urls import is_url, is_web, url_name


def source_of(path: str, options: InputOptions) -> Source:
    """Return the bytes of a file, or of a URL."""
    return RemoteFile(path, options) if is_url(path) else DiskFile(path)


class RemoteFile(Source):
    """A file behind a URL: ``http``, ``https``, or a scheme that fsspec knows. Every use fetches it
    anew.
    """

    is_near = False

    def __init__(self, url: str, options: InputOptions) -> None:
        self._url, self.suffix = url, suffix_of(url)
        self._max_bytes, self._allow_private = options.max_file_bytes, options.allow_private_urls

    def read(self) -> bytes:
        """Fetch the bytes into memory."""
        sink = io.BytesIO()
        self._fetch(sink)
        return sink.getvalue()

    def as_file(self) -> LocalFile:
        """Fetch the bytes into a temporary file."""
        return TemporaryFile(self.suffix, self._fetch)

    def _fetch(self, sink: BinaryIO) -> None:
        if not is_web(self._url):
            from vlmbatch.read.fetch import stores

            stores.fetch(self._url, sink, self._max_bytes, allow_private=self._allow_private)
            return
        try:
            need_remote("web URLs")
        except MissingDependencyError as exc:
            raise ReadError(str(exc)) from exc
        from vlmbatch.read.fetch import http as web

        web.fetch(self._url, sink, self._max_bytes, allow_private=self._allow_private)


class RemoteInput:
    """An INPUT that is a URL. A folder or glob of a file system is listed one folder at a time.

    Attributes:
        kind: ``file``, ``folder`` or ``glob``.
        glob: The pattern, when it is one.

    Raises:
        JobError: It is not there (``http`` and ``https`` are not asked yet), or its scheme is not
            known.
        MissingDependencyError: It needs a package that is not installed.
    """

    def __init__(self, url: str, *, allow_private: bool) -> None:
        self._url, self._allow_private = url, allow_private
        self.kind = "file"
        self.glob: Glob | None = None
        if is_web(url):
            need_remote("web URLs")
            return
        from vlmbatch.read.fetch.stores import StoreInput

        self._store = StoreInput(url, allow_private=allow_private)
        self.kind, self.glob = self._store.kind, self._store.glob

    def files(self) -> Iterator[WalkedFile]:
        """Yield the files."""
        if not is_web(self._url):
            yield from self._store.files()
            return
        from vlmbatch.read.fetch import http as web

        yield WalkedFile(
            self._url,
            url_name(self._url),
            fingerprint=web.fingerprint(self._url, allow_private=self._allow_private),
        )
