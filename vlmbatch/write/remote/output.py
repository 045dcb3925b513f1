"""An OUTPUT that is a URL: rows are kept in a staging folder on this disk, and the whole file is
uploaded now and then, and at the end.

Everything that holds for an OUTPUT on this disk holds for the staged one, as it is one: the
journal, the lock, what a killed run leaves. An upload that fails
costs no row: the same command uploads what is kept here.
"""

from __future__ import annotations

import dataclasses
import logging
import os
import shutil
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from vlmbatch.core import Record, Status
from vlmbatch.errors import OutputError, one_line
from vlmbatch.job import Job
from vlmbatch.write.atomic import beside, reason
from vlmbatch.write.base import Writer
from vlmbatch.write.journal import plain_json
from vlmbatch.write.remote.file import RemoteFile, Wait
from vlmbatch.write.remote.staging import Staging, default_staging_root, file_state
from vlmbatch.write.store import CommitPolicy, OutputStore
from vlmbatch.write.summary import summary_path, write_summary

logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class UploadPolicy:
    """When the file is uploaded during a run.

    Attributes:
        seconds: Not before the last time is so long ago,
        share: nor before uploads took at most this share of the time since.
    """

    seconds: float = 60.0
    share: float = 0.1


class StagedOutput(Writer):
    """Writes to a staging folder and uploads. Methods may be called from any thread.

    Args:
        job: Gives OUTPUT, ``staging_dir``, ``allow_private_urls``, and what the store takes.
        identity: The settings that the rows depend on.
        policy: When the store commits and publishes; None: as usual.
        uploads: When what it has published is uploaded.
        remote: The file behind the URL; made from the job unless given.
        clock: Seconds, monotonic.
        wait: Waits before another try of the last upload.

    Raises:
        JobError: The URL's scheme is not known.
        OutputLockedError: Another run of this machine holds OUTPUT.
        OutputError: OUTPUT cannot be fetched, was made with other settings or is not ours.
        MissingDependencyError: The format or the scheme needs a package that is not installed.
    """

    def __init__(
        self,
        job: Job,
        identity: Mapping[str, Any],
        *,
        policy: CommitPolicy | None = None,
        uploads: UploadPolicy = UploadPolicy(),
        remote: RemoteFile | None = None,
        clock: Callable[[], float] = time.monotonic,
        wait: Wait = time.sleep,
    ) -> None:
        self._remote = remote or RemoteFile(job.output_path, allow_private=job.allow_private_urls)
        self._identity: dict[str, Any] = plain_json(dict(identity))
        self._uploads = uploads
        self._clock = clock
        self._wait = wait
        self._guard = threading.Lock()
        self._thread: threading.Thread | None = None
        self._closing = threading.Event()
        self._closed = self._failed = False
        self._next_upload = 0.0
        self._staging = Staging(
            self._remote,
            default_staging_root() if job.staging_dir is None else Path(job.staging_dir),
        )
        try:
            self._staging.bring_together(self._identity, overwrite=job.overwrite)
            self._overwrites = job.overwrite
            self._store = OutputStore(
                self._staging.path,
                job,
                identity,
                policy=policy or CommitPolicy(),
                clock=clock,
                name=self._remote.shown,
            )
        except BaseException:
            self._staging.release()
            raise

    @property
    def path(self) -> Path:
        """The staged file."""
        return self._staging.path

    def write(
        self, record: Record, fingerprint: str = "", order: int | None = None, question: int = 0
    ) -> None:
        """Takes a record, as the store does."""
        if not self._staging.state.has_new_rows:
            with self._guard:
                self._staging.save(
                    has_new_rows=True
                )  # before the row, so that a killed run knows of it
        self._store.write(record, fingerprint, order, question)
        self._upload_now_and_then()

    def tick(self) -> None:
        """Commits and uploads when that is due."""
        self._store.tick()
        self._upload_now_and_then()

    def commit(self) -> None:
        """Makes the rows durable on this disk."""
        self._store.commit()

    def done(
        self, id: str, task: str, prompt: str, source: str = "", fingerprint: str = ""
    ) -> bool:
        """Whether the row is there."""
        return self._store.done(id, task, prompt, source, fingerprint)

    def keep(self, id: str, task: str, prompt: str, index: int, question: int = 0) -> Status | None:
        """Gives a row its place in this run's input order."""
        return self._store.keep(id, task, prompt, index, question)

    def find(self, id: str, task: str, prompt: str) -> Record | None:
        """Reads a row back."""
        return self._store.find(id, task, prompt)

    def totals(self) -> dict[str, int]:
        """Rows and error rows in all."""
        return self._store.totals()

    def close(self, *, finished: bool = True) -> None:
        """Publishes what is new, uploads it and lets go of the folder.

        Raises:
            OutputError: The rows could not be kept here, or not be uploaded; the message says where
                they are.
        """
        if self._closed:
            return
        self._closed = True
        self._closing.set()
        try:
            if self._thread is not None:
                self._thread.join()
            self._failed = True
            self._store.close(finished=finished)
            if self.path.exists():
                self._upload_last()
            self._failed = False
        finally:
            self._staging.release()

    def write_summary(self, summary: Mapping[str, Any]) -> None:
        """Writes the summary beside the staged file, and uploads it if the rows were."""
        write_summary(self.path, summary)
        if not self._failed:
            self._remote.beside(".summary.json").put(summary_path(self.path), self._wait)

    def _upload_now_and_then(self) -> None:
        """Starts an upload of what the store has published, when one is due."""
        now = self._clock()
        if now < self._next_upload or (self._thread is not None and self._thread.is_alive()):
            return
        self._next_upload = now + 1.0
        if (
            file_state(self.path) not in (None, self._staging.state.staged)
            and not self._overwrites_the_old()
        ):
            self._thread = threading.Thread(
                target=self._upload_in_background, name="uploader", daemon=True
            )
            self._thread.start()

    def _overwrites_the_old(self) -> bool:
        """Whether the staged file still is the one that ``--overwrite`` is about to replace."""
        if self._overwrites and self._store.has_published:
            self._overwrites = False
        return self._overwrites

    def _upload_in_background(self) -> None:
        began = self._clock()
        try:
            self._upload(self._closing.wait)
        except Exception as error:  # a failure is no harm yet: the rows are here, and the end of the run tries again
            logger.warning(
                "%s; the run goes on, the rows are kept in %s", one_line(error), self.path
            )
        self._next_upload = self._clock() + max(
            self._uploads.seconds, (self._clock() - began) / self._uploads.share
        )

    def _upload_last(self) -> None:
        try:
            if file_state(self.path) != self._staging.state.staged:
                self._upload(self._wait)
            if self._staging.state.has_new_rows:
                self._staging.save(has_new_rows=False)
        except OutputError as error:
            raise OutputError(
                f"{error}; every finished row is kept in {self.path}, and the same command uploads them"
            ) from error

    def _upload(self, wait: Wait) -> None:
        """Uploads the staged file and its journal at rest.

        Raises:
            OutputError: They cannot be uploaded, or another run has written there meanwhile.
        """
        there = self._remote.fingerprint()
        if there not in (None, self._staging.state.synced):
            raise OutputError(
                f"{self._remote.shown} was written by another run meanwhile; the same command brings the rows of both together"
            )
        upload = beside(self.path, ".upload")
        journal = beside(upload, ".journal")
        try:
            state = _snapshot(self.path, upload)
            self._store.write_known_files(journal)
            if there is not None and self._staging.state.identity != self._identity:
                for suffix in (".journal", ".summary.json"):
                    self._remote.beside(
                        suffix
                    ).remove()  # they tell of other settings than those of the rows to come
            self._remote.put(upload, wait)
            there = self._remote.fingerprint()
            with self._guard:
                self._staging.save(synced=there, identity=self._identity)
            self._remote.beside(".journal").put(journal, wait)
            with self._guard:
                self._staging.save(staged=state)
        except OSError as error:
            raise OutputError(f"cannot copy {self.path}: {reason(error)}") from error
        finally:
            for path in (upload, journal):
                path.unlink(missing_ok=True)


def _snapshot(path: Path, copy: Path) -> tuple[int, int] | None:
    """Keeps a file as it is now under another name, whatever takes its place; gives its size and
    time.
    """
    copy.unlink(missing_ok=True)
    try:
        os.link(path, copy)
    except OSError:
        shutil.copy2(path, copy)
    return file_state(copy)
