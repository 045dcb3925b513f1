"""OUTPUT as a file: rows go to a journal first and are published in OUTPUT, whole and in input
order, at the end and now and then in between.

At rest OUTPUT holds the rows, and the journal beside it has a short line for each: the file that it
was made from. During a run the journal takes the new rows, and a row counts as kept once its line
is on the disk. Publishing writes a new OUTPUT beside the old one and puts it in its place; then the
journal is made short again. A run that is killed anywhere in between leaves rows in the journal, in
OUTPUT or in both. Each has its key, so none is there twice.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import logging
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from vlmbatch.core import Record, Status
from vlmbatch.errors import ItemError, OutputError
from vlmbatch.job import Job
from vlmbatch.write.atomic import beside, remove
from vlmbatch.write.base import Writer
from vlmbatch.write.columns import Row, clean_text, row_of
from vlmbatch.write.formats import find_format
from vlmbatch.write.known.known_rows import CorrectionOutcome, KnownRows
from vlmbatch.write.known.row_index import key_digest
from vlmbatch.write.lock import OutputLock
from vlmbatch.write.place import resolve_output
from vlmbatch.write.publish import Publisher
from vlmbatch.write.runs import append_run
from vlmbatch.write.sources import input_folders, is_gone
from vlmbatch.write.summary import summary_path, write_summary

logger = logging.getLogger(__name__)

SECONDS_PER_ROW = 30e-6
"""First estimate of the time that publishing a row takes."""


@dataclasses.dataclass(frozen=True)
class CommitPolicy:
    """When a store commits and publishes by itself.

    Attributes:
        rows: It commits when so many rows are waiting.
        seconds: It commits when the first of them has waited so long.
        publish_seconds: It publishes with a commit when the last time is at least so long ago.
        publish_share: It does so only when publishing took at most this share of the time since.
    """

    rows: int = 256
    seconds: float = 10.0
    publish_seconds: float = 10.0
    publish_share: float = 0.05


DEFAULT_POLICY = CommitPolicy()


class OutputStore(Writer):
    """Writes OUTPUT, and goes on with one that is there. Methods may be called from any thread.

    Args:
        output: OUTPUT; its folder is made when it is not there.
        job: Gives ``overwrite`` and ``retry_errors``; Parquet files hold it as metadata.
        identity: The settings that the rows depend on, as plain JSON values; None: those that
            OUTPUT has.
        policy: When to commit.
        clock: Seconds, monotonic.
        name: Name of OUTPUT in messages, where that is not its path.

    Raises:
        JobError: OUTPUT is a pipe or a device, or its name is too long.
        OutputLockedError: Another run holds OUTPUT.
        OutputError: OUTPUT cannot be written, was made with other settings or is not ours.
        MissingDependencyError: The format needs a package that is not installed.
    """

    def __init__(
        self,
        output: Path,
        job: Job,
        identity: Mapping[str, Any] | None,
        *,
        policy: CommitPolicy = DEFAULT_POLICY,
        clock: Callable[[], float] = time.monotonic,
        name: str | None = None,
    ) -> None:
        self._path, self._job, self._policy, self._clock = output, job, policy, clock
        self._name = name or str(output)
        self._guard = threading.RLock()
        self._waiting = 0
        self._waiting_since = 0.0
        self._failed = self._closed = False
        format = find_format(output)
        self._output = resolve_output(output, self._name)
        self._lock = OutputLock(self._output, self._name)
        try:
            for path in (self._output, beside(self._output, ".journal")):
                remove(beside(path, ".tmp"))  # of a run that was killed
            self._known = KnownRows(
                self._output,
                format,
                identity,
                overwrite=job.overwrite,
                name=self._name,
                redo=bool(job.redo),
            )
            self._chosen = self._choose(job) if job.redo else None
        except BaseException:
            self._lock.release()
            raise
        self._publisher = Publisher(self._output, format, job, self._known, self._name)
        self._unnamed: set[str] = set()
        self._published_at = clock()
        self._publish_cost = len(self._known) * SECONDS_PER_ROW

    def _choose(self, job: Job) -> frozenset[bytes]:
        """Return the keys of the rows that ``--redo`` names."""
        try:
            if not len(self._known):
                raise OutputError(
                    f"{self._name} has no rows to ask again for: give the same command without "
                    "--redo first"
                )
            return self._known.chosen(job.redo, job.task)
        except BaseException:
            self._known.close()
            if not len(self._known):
                self._known.forget()
            raise

    @property
    def n_rows(self) -> int:
        """Number of rows that OUTPUT will have, those of earlier runs included."""
        return len(self._known)

    @property
    def num_uncommitted(self) -> int:
        """Number of rows taken since the last commit."""
        return self._waiting

    @property
    def path(self) -> Path:
        """OUTPUT."""
        return self._path

    def write_summary(self, summary: Mapping[str, Any], *, replace: bool = True) -> None:
        """Write the summary beside OUTPUT."""
        if replace or not summary_path(self._path).exists():
            write_summary(self._path, summary)

    def add_run(self, run: Mapping[str, Any]) -> None:
        """Add a line beside OUTPUT, once OUTPUT or rows for it are there."""
        if self._path.exists() or beside(self._output, ".journal").exists():
            append_run(self._path, run)

    def done(
        self,
        id: str,
        task: str,
        prompt: str,
        source: str = "",
        fingerprint: str = "",
        digest: Callable[[], str] | None = None,
    ) -> bool:
        """Return whether the row is there, its file is the same as far as is known, and it is no
        error to be done again. A text that was edited in OUTPUT is done, whatever its file is now.
        """
        key, known = (id, task, prompt), self._known
        if self._chosen is not None:
            is_done, state = key_digest(*key) not in self._chosen, "redo"
        else:
            retry = self._job.retry_errors
            with self._guard:
                state = known.state(*key, source, fingerprint, retry_errors=retry)
            is_done = state == "done"
        if state in ("touched", "other") and digest is not None:
            with contextlib.suppress(ItemError):
                content = digest()  # reads the file: the lock is not held
                with self._guard:
                    is_done = known.has_content(*key, source, fingerprint, content)
        if not is_done:
            with self._guard:
                known.note_other_file(*key, source, "kept" if state == "other" else "replaced")
        return is_done or state == "other"

    def keep(self, id: str, task: str, prompt: str, index: int, question: int = 0) -> Status | None:
        """Give a row of an earlier run its place in this run's input order."""
        with self._guard:
            is_error = self._known.keep(id, task, prompt, index, question)
            if prompt in self._unnamed and (found := self._known.find(id, task, prompt)):
                self._unnamed.discard(prompt)
                is_named = self._publisher.has_name(prompt, found.extra)
                self._known.is_changed |= not is_named
        return None if is_error is None else "error" if is_error else "ok"

    def name_questions(self, names: Mapping[str, str]) -> None:
        """Give the rows the names that questions have now."""
        self._unnamed = set(names)
        self._publisher.name_questions(names)

    def find(self, id: str, task: str, prompt: str) -> Record | None:
        """Read a row back, from the journal or from the OUTPUT of before."""
        with self._guard:
            return self._known.find(id, task, prompt)

    def is_seen(self, id: str, task: str, prompt: str) -> bool:
        """Return whether the row was written or kept by this run. May be called after ``close``."""
        with self._guard:
            return self._known.is_seen(id, task, prompt)

    def totals(self) -> dict[str, int]:
        """Return the number of rows and of error rows that OUTPUT has in all."""
        with self._guard:
            return self._known.totals()

    def rows(self, columns: Sequence[str]) -> Iterator[Row]:
        """Yield the rows of earlier runs, in order, restricted to ``columns``."""
        return self._known.rows(self._known.in_order(), columns)

    def correct(
        self, id: str, task: str, prompt: str, text: str, *, is_ours: bool = False
    ) -> CorrectionOutcome:
        """Put a person's text in the place of a row's; see ``KnownRows.correct``."""
        with self._guard:
            self._check_open()
            return self._known.correct(id, task, prompt, clean_text(text), is_ours=is_ours)

    def edited(self) -> int:
        """Return the number of rows of earlier runs whose text was edited in OUTPUT."""
        with self._guard:
            return self._known.edited()

    def other_files(self) -> dict[str, Any]:
        """Return the files that have the id of another one; see ``OtherFiles.describe``."""
        with self._guard:
            return self._known.other_files.describe()

    def gone(self, *, prune: bool) -> dict[str, Any]:
        """Find the rows that this run has not seen and whose sources are gone."""
        is_source_gone = functools.partial(is_gone, folders=input_folders(self._job.inputs))
        with self._guard:
            return self._known.gone(is_source_gone, prune=prune)._asdict()

    def write(
        self,
        record: Record,
        fingerprint: str = "",
        order: int | None = None,
        question: int = 0,
        *,
        content: str = "",
    ) -> None:
        """Take a record. ``order`` does not matter here, as rows are sorted by index."""
        row = row_of(record)
        with self._guard:
            self._check_open()
            self._known.add(row, fingerprint, question, content)
            self._publisher.learn(row)
            if not self._waiting:
                self._waiting_since = self._clock()
            self._waiting += 1
            self.tick()

    def tick(self) -> None:
        """Commit when enough rows have waited, or one has waited long enough."""
        with self._guard:
            if self._waiting and (
                self._waiting >= self._policy.rows
                or self._clock() - self._waiting_since >= self._policy.seconds
            ):
                self.commit()

    def commit(self) -> None:
        """Make the rows taken so far durable, and publish when that is due."""
        with self._guard:
            self._check_open()
            try:
                self._known.journal.commit()
            except OutputError:
                self._failed = True
                raise
            self._waiting = 0
            since = self._clock() - self._published_at
            if (
                self._known.is_changed
                and since >= self._policy.publish_seconds
                and self._publish_cost <= self._policy.publish_share * since
            ):
                self._publish_early()

    def close(self, *, finished: bool = True) -> None:
        """Commit, publish what is new, make the journal short and let go of OUTPUT. After a failure
        only let go.
        """
        with self._guard:
            if self._closed:
                return
            try:
                if not self._failed:
                    self._finish(finished)
            finally:
                self._let_go()

    def abandon(self) -> None:
        """Let go of OUTPUT as a kill would: files stay as they are, rows in memory are lost."""
        self._let_go()

    def _let_go(self) -> None:
        with self._guard:
            if not self._closed:
                self._closed = True
                self._known.close()
                self._lock.release()

    def _finish(self, finished: bool) -> None:
        known, publisher = self._known, self._publisher
        known.journal.commit()
        self._waiting = 0
        if not finished and not len(known):
            known.forget()
            return
        known.drop_outdated()
        order = known.in_order()
        is_old = known.is_changed or not self._output.exists() or not known.is_as_it_was(order)
        if is_old:
            try:
                publisher.publish(order)
            except OutputError as error:
                raise OutputError(
                    f"{error}; what was finished is kept in {self._output.name}.journal, and the "
                    "same command goes on from there"
                ) from error
        if finished and self._job.redo:
            known.settle(self._job.task, is_whole="stale" in self._job.redo)
        if is_old or not known.is_described:
            known.rest(publisher.state)

    def _publish_early(self) -> None:
        """Publish for readers that do not want to wait. A failure does no harm, as the journal has
        the rows.
        """
        begun = self._clock()
        try:
            self._publisher.publish(self._known.in_order())
            self._known.is_changed = False
        except OutputError as error:
            logger.warning(
                "%s; the run goes on, the rows are kept in %s.journal", error, self._output.name
            )
        self._published_at = self._clock()
        self._publish_cost = self._published_at - begun

    def _check_open(self) -> None:
        if self._failed:
            raise OutputError(f"{self._name} takes no more rows: writing to it has failed")
        if self._closed:
            raise OutputError(f"{self._name} is closed")
