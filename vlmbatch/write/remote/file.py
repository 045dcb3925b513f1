"""A file behind a URL that is fetched and replaced as a whole, and tried again when the network
fails.
"""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from vlmbatch.errors import JobError, MissingDependencyError, OutputError, one_line
from vlmbatch.filesystems import file_fingerprint, open_store
from vlmbatch.urls import is_url, scheme_of, url_name, without_credentials
from vlmbatch.write.atomic import beside, replacing
from vlmbatch.write.runs import RUNS

if TYPE_CHECKING:
    from fsspec import AbstractFileSystem

logger = logging.getLogger(__name__)

BACK_OFF_SECONDS = (1.0, 2.0, 4.0, 8.0)
"""Seconds before each further try."""

WHOLE_OR_NOT_AT_ALL = frozenset(
    {"memory", "s3", "s3a", "gs", "gcs", "az", "abfs", "abfss", "adl", "hf", "oss", "oci"}
)
"""Schemes of object stores, where an object is replaced once the new one is complete."""

_LOCAL = frozenset({"file", "local"})
_FINAL = (
    FileNotFoundError,
    FileExistsError,
    PermissionError,
    IsADirectoryError,
    NotADirectoryError,
    NotImplementedError,
    OutputError,
)
"""Errors that another try does not mend."""

_CHUNK_BYTES = 1 << 20

T = TypeVar("T")
Wait = Callable[[float], Any]
"""Waits so many seconds. A true result ends the tries."""


class RemoteFile:
    """A file of a store.

    Args:
        url: Where it is.
        allow_private: Whether schemes are opened that connect to hosts whose addresses cannot be
            checked.
        back_off: Seconds before each further try.
    """

    def __init__(
        self, url: str, *, allow_private: bool = False, back_off: Sequence[float] = BACK_OFF_SECONDS
    ) -> None:
        self.url = url
        self.shown = without_credentials(url)
        self._allow_private = allow_private
        self._back_off = back_off

    def beside(self, suffix: str) -> RemoteFile:
        """Return the file beside it whose name has ``suffix`` added."""
        return RemoteFile(
            self.url + suffix, allow_private=self._allow_private, back_off=self._back_off
        )

    def part(self, run_id: str) -> RemoteFile:
        """Return the file beside it for the rows of one run: ``run.part-ID.jsonl``."""
        stem, suffix = os.path.splitext(self.url)
        return RemoteFile(
            f"{stem}.part-{run_id}{suffix}",
            allow_private=self._allow_private,
            back_off=self._back_off,
        )

    def fingerprint(self) -> str | None:
        """Return a text that changes with the file; None when it is not there.

        Raises:
            JobError: There is no such scheme.
            MissingDependencyError: It needs a package that is not installed.
            OutputError: The store does not answer, or it is a folder.
        """

        def look() -> str | None:
            files, path = self._open()
            files.invalidate_cache(
                files._parent(path)
            )  # the listings that some stores keep do not know what others have done
            try:
                info = files.info(path)
            except FileNotFoundError:
                return None
            if info.get("type") == "directory":
                raise OutputError("it is a folder")
            return file_fingerprint(info)

        return self._tried("cannot look at", look)

    def get(self, target: Path) -> bool:
        """Fetch it, and return whether there is such a file. ``target`` is replaced whole or not at
        all.

        Raises:
            OutputError: It cannot be fetched; also the errors of ``fingerprint``.
        """

        def fetch() -> bool:
            files, path = self._open()
            try:
                source = files.open(path, "rb")
            except FileNotFoundError:
                return False
            # Not ``replacing``: errors of the store are not those of the disk.
            temporary = beside(target, ".tmp")
            try:
                with source, open(temporary, "wb") as file:
                    shutil.copyfileobj(source, file, _CHUNK_BYTES)
                    file.flush()
                    os.fsync(file.fileno())
                os.replace(temporary, target)
            finally:
                temporary.unlink(missing_ok=True)
            return True

        return self._tried("cannot read", fetch)

    def put(self, source: Path, wait: Wait = time.sleep) -> None:
        """Put a file of this disk in its place: whole or not at all, as far as the store can do
        that.

        Args:
            source: The file; it does not change meanwhile.
            wait: Waits before another try.

        Raises:
            OutputError: It cannot be written, as often as it was tried; also the errors of
                ``fingerprint``.
        """
        self._tried("cannot write", lambda: self._put(source), wait)

    def remove(self) -> None:
        """Remove it, if it is there.

        Raises:
            OutputError: It cannot be removed; also the errors of ``fingerprint``.
        """

        def remove() -> None:
            files, path = self._open()
            with contextlib.suppress(FileNotFoundError):
                files.rm_file(path)

        self._tried("cannot remove", remove)

    def _put(self, source: Path) -> None:
        files, path = self._open()
        scheme = scheme_of(self.url)
        if scheme in _LOCAL:
            Path(path).parent.mkdir(parents=True, exist_ok=True)
            try:
                with open(source, "rb") as rows, replacing(Path(path)) as file:
                    shutil.copyfileobj(rows, file, _CHUNK_BYTES)
            except OutputError as error:
                raise error.__cause__ or error from None
        elif scheme in WHOLE_OR_NOT_AT_ALL:
            files.put_file(str(source), path)
        else:
            temporary = f"{path}.tmp"
            files.put_file(str(source), temporary)
            files.mv(temporary, path)

    def _open(self) -> tuple[AbstractFileSystem, str]:
        return open_store(self.url, allow_private=self._allow_private)

    def _tried(self, what: str, call: Callable[[], T], wait: Wait = time.sleep) -> T:
        """Call, and call again after an error that may pass."""
        for seconds in (*self._back_off, None):
            try:
                return call()
            except (JobError, MissingDependencyError):
                raise
            except Exception as error:  # botocore's, google's, aiohttp's, the operating system's …
                if seconds is None or isinstance(error, _FINAL):
                    raise OutputError(f"{what} {self.shown}: {one_line(error)}") from error
                logger.info(
                    "%s %s: %s; another try in %g s", what, self.shown, one_line(error), seconds
                )
                if wait(seconds):
                    raise OutputError(f"{what} {self.shown}: {one_line(error)}") from error
        raise AssertionError("unreachable")


@contextlib.contextmanager
def local_copy(output: str, *, allow_private: bool = False) -> Iterator[Path]:
    """Provide OUTPUT as a file of this disk: itself, or for a URL a copy of it, its summary and
    its runs, which is deleted when the block ends.

    Raises:
        OutputError: It is not there or cannot be fetched.
        JobError: There is no such scheme.
        MissingDependencyError: It needs a package that is not installed.
    """
    if not is_url(output):
        yield Path(output)
        return
    remote = RemoteFile(output, allow_private=allow_private)
    with tempfile.TemporaryDirectory(prefix="vlmbatch-") as folder:
        path = Path(folder) / url_name(output)
        if not remote.get(path):
            raise OutputError(f"cannot read {remote.shown}: no such file")
        for suffix in (".summary.json", RUNS):
            remote.beside(suffix).get(beside(path, suffix))
        yield path
