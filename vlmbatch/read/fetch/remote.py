"""Inputs that are URLs: ``http`` and ``https``, and the schemes that fsspec knows (``s3://``,
``gs://``, ``hf://`` …). The one door to both.

Nothing is asked of a URL before its turn, but for a look at each URL that is an INPUT itself. A
picture is held in memory while a worker decodes it; a video, and a document whose pages become
Items, is a temporary file until nothing needs it any more.
"""

from __future__ import annotations

import io
from typing import BinaryIO, Literal

from vlmbatch.errors import MissingDependencyError, ReadError
from vlmbatch.job import InputOptions
from vlmbatch.read.extras import need_remote
from vlmbatch.read.fetch.stores import Stores, fetch
from vlmbatch.read.files.kinds import suffix_of
from vlmbatch.read.files.source import DiskFile, Source
from vlmbatch.read.files.walk import WalkedFile
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

    def digest(self) -> str:
        """Return a digest of the bytes if they were fetched: a changed ETag is worth no fetch of
        its own.
        """
        return self._digest or ""

    def read(self) -> bytes:
        """Fetch the bytes into memory."""
        sink = io.BytesIO()
        self._fetch(sink)
        return sink.getvalue()

    def as_file(self) -> DiskFile:
        """Fetch the bytes into a temporary file."""
        return DiskFile.copied(self.suffix, self._fetch)

    def _fetch(self, sink: BinaryIO) -> None:
        if not is_web(self._url):
            fetch(self._url, sink, self._max_bytes, allow_private=self._allow_private)
            return
        try:
            need_remote("web URLs")
        except MissingDependencyError as exc:
            raise ReadError(str(exc)) from exc
        from vlmbatch.read.fetch import http as web

        web.fetch(self._url, sink, self._max_bytes, allow_private=self._allow_private)


class Web(Stores):
    """The files of web servers. A server is asked nothing before a file's turn."""

    def kind_of(self, url: str) -> Literal["file"]:
        """Return that a URL is a file.

        Raises:
            MissingDependencyError: A package is not installed.
        """
        need_remote("web URLs")
        return "file"

    def file(self, url: str) -> WalkedFile:
        """Return a file that was named."""
        from vlmbatch.read.fetch import http as web

        fingerprint = web.fingerprint(url, allow_private=self._allow_private)
        return WalkedFile(url, url_name(url), fingerprint=fingerprint)
