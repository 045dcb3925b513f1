"""Inputs that are URLs: ``http`` and ``https``, and whatever fsspec knows (``s3://``, ``gs://``,
``hf://`` …). The one door to both.

What a URL costs: nothing is asked before its turn, but for a look at each URL that is an INPUT
itself. A picture is held in memory while a worker decodes it; a video, and a document whose pages
become Items, is a temporary file until nothing needs it any more.
"""

from __future__ import annotations

import functools
import io
import os
from collections.abc import Callable, Iterator
from typing import BinaryIO

from vlmbatch.core import Pixels
from vlmbatch.errors import MissingDependencyError, ReadError
from vlmbatch.job import Job
from vlmbatch.read.extras import need_remote
from vlmbatch.read.files.temporary import TemporaryFile
from vlmbatch.read.files.walk import Entry, Glob
from vlmbatch.urls import is_url, is_web, url_name


def load_bytes(url: str, job: Job) -> bytes:
    """What a URL holds.

    Args:
        url: ``http``, ``https``, or one that fsspec knows.
        job: Gives ``max_file_size`` and ``allow_private_urls``.

    Raises:
        ReadError: The bytes cannot be had, or must not; one line says why.
    """
    sink = io.BytesIO()
    _fetch(url, sink, job)
    return sink.getvalue()


def _fetch(url: str, sink: BinaryIO, job: Job) -> None:
    if not is_web(url):
        from vlmbatch.read.fetch import stores

        stores.fetch(url, sink, job.max_file_bytes, allow_private=job.allow_private_urls)
        return
    try:
        need_remote("web URLs")
    except MissingDependencyError as exc:
        raise ReadError(str(exc)) from exc
    from vlmbatch.read.fetch import http as web

    web.fetch(url, sink, job.max_file_bytes, allow_private=job.allow_private_urls)


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

    def __init__(self, url: str, job: Job) -> None:
        self._url, self._job = url, job
        self.kind = "file"
        self.glob: Glob | None = None
        if is_web(url):
            need_remote("web URLs")
            return
        from vlmbatch.read.fetch.stores import StoreInput

        self._store = StoreInput(url, allow_private=job.allow_private_urls)
        self.kind, self.glob = self._store.kind, self._store.glob

    def entries(self) -> Iterator[Entry]:
        """Yields the files."""
        if not is_web(self._url):
            yield from self._store.entries()
            return
        from vlmbatch.read.fetch import http as web

        yield Entry(
            self._url,
            url_name(self._url),
            fingerprint=web.fingerprint(self._url, allow_private=self._job.allow_private_urls),
        )


class OnDisk:
    """A file of the job as the operating system opens it; that of a URL is fetched, and deleted
    when nothing refers to it any more.

    Attributes:
        path: The file.

    Raises:
        ReadError: The bytes of the URL cannot be had.
    """

    def __init__(self, path: str, job: Job) -> None:
        self.path = path
        self._copy: TemporaryFile | None = None
        if is_url(path):
            self._copy = TemporaryFile(
                os.path.splitext(url_name(path))[1], lambda file: _fetch(path, file, job)
            )
            self.path = self._copy.path

    def bind(self, load: Callable[[str], Pixels]) -> Callable[[], Pixels]:
        """A ``load`` of the file at a path, which keeps it for as long as it may be called."""
        return (
            self._copy.bind(load) if self._copy is not None else functools.partial(load, self.path)
        )
