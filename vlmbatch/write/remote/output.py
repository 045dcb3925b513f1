"""An OUTPUT that is a URL: rows are kept in a staging folder on this disk, and the whole file is
uploaded now and then, and at the end.

The staged file is an OUTPUT of this disk, with its journal, its lock and all that a killed run
leaves. An upload that fails costs no row: the same command uploads what is kept here. When another
run has written the remote file meanwhile, nothing is mixed or replaced: the rows of this run are
published beside it, as ``NAME.part-RUN.jsonl``.
"""

from __future__ import annotations

import dataclasses
import datetime
import logging
import tempfile
import threading
import time
import uuid
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from vlmbatch.errors import OutputError, one_line
from vlmbatch.job import Job
from vlmbatch.write.atomic import beside, reason
from vlmbatch.write.journal import JournalScan
from vlmbatch.write.remote.file import RemoteFile, Wait
from vlmbatch.write.remote.staging import BESIDE, Staging, default_staging_root, size_and_time
from vlmbatch.write.runs import RUNS, merge_runs, read_runs
from vlmbatch.write.store import DEFAULT_POLICY, CommitPolicy, OutputStore
from vlmbatch.write.summary import summary_path

logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class UploadPolicy:
    """When the file is uploaded during a run.

    Attributes:
        seconds: Not before the last time is so long ago.
        share: Not before uploads took at most this share of the time since.
    """

    seconds: float = 60.0
    share: float = 0.1


class _WrittenElsewhere(OutputError):
    """Another run has written the remote file since this one went on from it."""


class StagedOutput(OutputStore):
    """A store in a staging folder, whose file is uploaded. Methods may be called from any thread.

    Args:
        job: Gives OUTPUT, ``staging_dir``, ``allow_private_urls``, and what the store takes.
        identity: The settings that the rows depend on; None: those that OUTPUT has.
        run_id: Part of the name of what is published beside an OUTPUT that another run has written.
        policy: When the store commits and publishes.
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
        identity: Mapping[str, Any] | None,
        *,
        run_id: str | None = None,
        policy: CommitPolicy = DEFAULT_POLICY,
        uploads: UploadPolicy = UploadPolicy(),
        remote: RemoteFile | None = None,
        clock: Callable[[], float] = time.monotonic,
        wait: Wait = time.sleep,
    ) -> None:
        self._remote = remote or RemoteFile(job.output_path, allow_private=job.allow_private_urls)
        self._run_id = run_id or _new_id()
        self._uploads, self._wait = uploads, wait
        self._thread: threading.Thread | None = None
        self._closing = threading.Event()
        self._is_uploaded = self._is_elsewhere = False
        self._next_upload = 0.0
        root = default_staging_root() if job.staging_dir is None else Path(job.staging_dir)
        self._staging = Staging(self._remote, root)
        try:
            self._refresh(job, identity)
            super().__init__(
                self._staging.path,
                job,
                identity,
                policy=policy,
                clock=clock,
                name=self._remote.shown,
            )
        except BaseException:
            self._staging.release()
            raise

    def _refresh(self, job: Job, identity: Mapping[str, Any] | None) -> None:
        """Make the staged file what the run goes on from. The remote one is fetched even when it is
        about to be overwritten, to be there again should the run end before its first row.
        """
        staging = self._staging
        staging.clean()
        there = self._remote.fingerprint()
        if there == staging.state.synced:
            return
        if there is None:
            staging.forget_remote()
            return
        if not job.overwrite and not staging.is_uploaded:
            self._publish_leftover(job, identity)
        staging.fetch(there)

    def _publish_leftover(self, job: Job, identity: Mapping[str, Any] | None) -> None:
        """Publish rows of an earlier run that were never uploaded, beside an OUTPUT that another
        machine has continued.
        """
        path = self._staging.path
        header = JournalScan(beside(path, ".journal")).header
        identity = header.identity if header else identity
        job = dataclasses.replace(job, keep=tuple((identity or {}).get("keep", ())))
        with OutputStore(path, job, identity, name=self._remote.shown) as store:
            is_empty = not store.n_rows
        if not is_empty:
            logger.warning(
                "%s was written by another run; rows that only this machine had are in %s",
                self._remote.shown,
                self._put_part(_new_id()),
            )

    def tick(self) -> None:
        """Commit and upload when that is due."""
        super().tick()
        self._upload_if_due()

    def close(self, *, finished: bool = True) -> None:
        """Publish what is new, upload it and let go of the folder.

        Raises:
            OutputError: The rows could not be kept here or not be uploaded, or another run has
                written OUTPUT; the message says where the rows are.
        """
        if self._closed:
            return
        self._closing.set()
        try:
            if self._thread is not None:
                self._thread.join()
            super().close(finished=finished)
            if self.path.exists() and size_and_time(self.path) != self._staging.state.staged:
                self._upload_last()
            self._is_uploaded = True
        finally:
            self._staging.release()

    def abandon(self) -> None:
        """Let go of OUTPUT as a kill would: files stay as they are, rows in memory are lost."""
        self._closing.set()
        super().abandon()
        self._staging.release()

    def write_summary(self, summary: Mapping[str, Any], *, replace: bool = True) -> None:
        """Write the summary beside the staged file, and upload it if the rows were."""
        super().write_summary(summary, replace=replace)
        if self._is_uploaded:
            self._remote.beside(".summary.json").put(summary_path(self.path), self._wait)

    def add_run(self, run: Mapping[str, Any]) -> None:
        """Add a line beside the staged file. If the rows were uploaded, so is it, with the lines of
        other machines.
        """
        super().add_run(run)
        if not self._is_uploaded or not beside(self.path, RUNS).exists():
            return
        remote = self._remote.beside(RUNS)
        with tempfile.TemporaryDirectory(prefix="vlmbatch-") as folder:
            copy = Path(folder) / self.path.name
            if remote.get(beside(copy, RUNS)):
                merge_runs(self.path, read_runs(copy))
        remote.put(beside(self.path, RUNS), self._wait)

    def _upload_if_due(self) -> None:
        """Start an upload of what the store has published, when one is due."""
        now = self._clock()
        is_busy = self._thread is not None and self._thread.is_alive()
        if now < self._next_upload or is_busy or self._is_elsewhere:
            return
        self._next_upload = now + 1.0
        if self._job.overwrite and not self._publisher.has_published:
            return  # the staged file still is the one to be overwritten
        if size_and_time(self.path) not in (None, self._staging.state.staged):
            self._thread = threading.Thread(
                target=self._upload_in_background, name="uploader", daemon=True
            )
            self._thread.start()

    def _upload_in_background(self) -> None:
        begun = self._clock()
        try:
            self._upload(self._closing.wait)
        except Exception as error:  # the end of the run tries again
            self._is_elsewhere = isinstance(error, _WrittenElsewhere)
            logger.warning(
                "%s; the run goes on, the rows are kept in %s", one_line(error), self.path
            )
        taken = self._clock() - begun
        self._next_upload = self._clock() + max(self._uploads.seconds, taken / self._uploads.share)

    def _upload_last(self) -> None:
        part = None
        try:
            try:
                self._upload(self._wait)
            except _WrittenElsewhere:
                part = self._put_part(self._run_id)
        except OutputError as error:
            raise OutputError(
                f"{error}; every finished row is kept in {self.path}, and the same command "
                "uploads them"
            ) from error
        if part is not None:
            raise OutputError(
                f"{self._remote.shown} was written by another run meanwhile; the rows of this run "
                f"are in {part}, and the same command goes on from what the other run wrote"
            )

    def _put_part(self, run_id: str) -> str:
        """Publish the staged file beside OUTPUT; return its URL."""
        part = self._remote.part(run_id)
        part.put(self._staging.path, self._wait)
        self._staging.save(staged=size_and_time(self._staging.path))
        return part.shown

    def _upload(self, wait: Wait) -> None:
        """Upload the staged file and its journal at rest.

        Raises:
            OutputError: They cannot be uploaded, or another run has written there meanwhile.
        """
        there = self._remote.fingerprint()
        if there not in (None, self._staging.state.synced):
            raise _WrittenElsewhere(f"{self._remote.shown} was written by another run meanwhile")
        try:
            copy, state = self._staging.copy()
            journal = beside(copy, ".journal")
            with self._guard:
                self._known.write_journal(journal)
            if there is not None and self._staging.state.identity != self._known.identity:
                for suffix in BESIDE:  # of other settings than those of the rows to come
                    self._remote.beside(suffix).remove()
            self._remote.put(copy, wait)
            there = self._remote.fingerprint()
            self._staging.save(synced=there, identity=self._known.identity)
            self._remote.beside(".journal").put(journal, wait)
            self._staging.save(staged=state)
        except OSError as error:
            raise OutputError(f"cannot copy {self.path}: {reason(error)}") from error
        finally:
            self._staging.remove_copy()


def _new_id() -> str:
    """Return an id in the form of a run's: the time, and what makes it unique."""
    return f"{datetime.datetime.now(datetime.UTC):%Y%m%dT%H%M%S}-{uuid.uuid4().hex[:6]}"
