"""The staging folder of an OUTPUT that is a URL: the file that a run works on, and what is known
about the file behind the URL.

``ROOT/DIGEST/NAME`` stands for the OUTPUT, with its journal beside it. ``staging.json`` says from
which state of the remote file these rows go on.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import logging
import os
import shutil
from pathlib import Path
from typing import Any

from vlmbatch.errors import OutputError, one_line
from vlmbatch.job.resources import usual_cache_root
from vlmbatch.urls import url_name
from vlmbatch.write.atomic import beside, reason, remove, replacing
from vlmbatch.write.formats import find_format
from vlmbatch.write.journal import JournalScan
from vlmbatch.write.lock import OutputLock
from vlmbatch.write.place import resolve_output
from vlmbatch.write.remote.file import RemoteFile

logger = logging.getLogger(__name__)

BESIDE = (".journal", ".summary.json")
"""Suffixes of the files beside OUTPUT, here and there."""


def default_staging_root(cache: Path | None = None) -> Path:
    """Return the folder for staging folders, unless the job names one.

    Args:
        cache: The user's folder for caches, where that is not the platform's usual one.
    """
    return (cache or usual_cache_root()) / "vlmbatch" / "outputs"


@dataclasses.dataclass
class StagingState:
    """The content of ``staging.json``.

    Attributes:
        url: The OUTPUT, without credentials.
        synced: The fingerprint of the remote file that the staged rows go on from; None: of none.
        staged: (size, mtime_ns) of the staged file when its rows were last uploaded or fetched;
            None: they never were.
        identity: The settings of the rows there, as far as they are known.
        is_partial: Whether the staged files are being replaced by fetched ones, and do not count.
    """

    url: str
    synced: str | None = None
    staged: tuple[int, int] | None = None
    identity: dict[str, Any] | None = None
    is_partial: bool = False


class Staging:
    """A staging folder, held by one run.

    Args:
        remote: The file behind the URL.
        root: The folder that staging folders are in.

    Attributes:
        path: The staged file.
        state: What is known about the remote one.

    Raises:
        JobError: The name of OUTPUT is too long for the files beside it.
        OutputLockedError: Another run of this machine holds it.
        OutputError: It cannot be made.
        MissingDependencyError: The format needs a package that is not installed.
    """

    def __init__(self, remote: RemoteFile, root: Path) -> None:
        self.remote = remote
        self.folder = root / hashlib.blake2b(remote.shown.encode(), digest_size=12).hexdigest()
        self.path = self.folder / url_name(remote.url)
        find_format(self.path)
        try:
            self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError as error:
            raise OutputError(
                f"cannot make the staging folder {self.folder}: {reason(error)}"
            ) from error
        resolve_output(self.path, remote.shown)
        self._state_path = self.folder / "staging.json"
        self._lock = OutputLock(self.folder / "staging", remote.shown)
        self.state = self._load_state()

    def release(self) -> None:
        """Let go of the folder."""
        self._lock.release()

    @property
    def is_uploaded(self) -> bool:
        """True when every row that is here was uploaded.

        Raises:
            OutputError: The journal cannot be read.
        """
        scan = JournalScan(beside(self.path, ".journal"))
        return size_and_time(self.path) == self.state.staged and all(
            line.place < 0 for line in scan
        )

    def save(self, **changes: Any) -> None:
        """Change the state, on the disk too.

        Raises:
            OutputError: It cannot be written.
        """
        state = dataclasses.replace(self.state, **changes)
        with replacing(self._state_path) as file:
            file.write(json.dumps(dataclasses.asdict(state), indent=2).encode() + b"\n")
        self.state = state

    def clean(self) -> None:
        """Remove what a killed run had fetched in part."""
        if self.state.is_partial:
            self._discard()
            self.save(synced=None, staged=None, is_partial=False)

    def forget_remote(self) -> None:
        """Go on after the remote file was deleted: without its rows, but with those that were never
        uploaded.
        """
        is_uploaded = self.is_uploaded
        logger.warning(
            "%s is gone: it is made anew%s",
            self.remote.shown,
            "" if is_uploaded else ", from the rows that are kept here",
        )
        if is_uploaded:
            remove(self.path)
        self.save(synced=None, staged=None)

    def fetch(self, there: str) -> None:
        """Put the remote files in the place of the staged ones.

        Args:
            there: Fingerprint of the remote file.

        Raises:
            OutputError: They cannot be fetched.
        """
        self.save(is_partial=True)
        self._discard()
        if self.remote.get(self.path):
            for suffix in BESIDE:
                self.remote.beside(suffix).get(beside(self.path, suffix))
        try:
            header = JournalScan(beside(self.path, ".journal")).header
        except OutputError:  # the store says so, unless it is to be overwritten
            header = None
        self.save(
            synced=there,
            staged=size_and_time(self.path),
            identity=header and header.identity,
            is_partial=False,
        )

    def copy(self) -> tuple[Path, tuple[int, int] | None]:
        """Keep the staged file as it is now in ``upload/``, whatever takes its place.

        Returns:
            The copy, and its size and time.

        Raises:
            OSError: It cannot be copied.
        """
        self.remove_copy()
        copy = self.folder / "upload" / self.path.name
        copy.parent.mkdir()
        try:
            os.link(self.path, copy)
        except OSError:
            shutil.copy2(self.path, copy)
        return copy, size_and_time(copy)

    def remove_copy(self) -> None:
        """Remove the copy and what was put beside it."""
        shutil.rmtree(self.folder / "upload", ignore_errors=True)

    def _load_state(self) -> StagingState:
        fresh = StagingState(self.remote.shown)
        try:
            values = json.loads(self._state_path.read_bytes())
            if values["staged"] is not None:
                values["staged"] = tuple(values["staged"])
            return StagingState(**values)
        except FileNotFoundError:
            return fresh
        except (OSError, ValueError, TypeError, KeyError) as error:
            logger.warning(
                "%s cannot be read (%s): rows that are here count as not uploaded",
                self._state_path,
                one_line(error),
            )
            return fresh

    def _discard(self) -> None:
        for path in (self.path, *(beside(self.path, suffix) for suffix in BESIDE)):
            remove(path)


def size_and_time(path: Path) -> tuple[int, int] | None:
    """Return the size and the time of the last change (ns), which a copy keeps; None when there is
    no file.
    """
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_size, found.st_mtime_ns
