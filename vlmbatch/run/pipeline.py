"""Wires the stages together: bounded queues, threads, back-pressure, and the one policy for errors.
Decides nothing about pictures or words.

    reader thread -> todo -> prepare threads -> requests -> engine (the calling thread) -> results
    -> writer thread

What the first and the last thread do, and what they count, is in ``reading.py`` and ``writing.py``;
the rest is here. Every queue is bounded, so a slow stage slows those before it and memory stays
flat. An error of one item becomes its error rows wherever it happens. Any other exception in a
thread stops the run and is raised in the calling thread, after everything finished is committed.
"""

from __future__ import annotations

import dataclasses
import datetime
import functools
import logging
import os
import time
import uuid
from collections.abc import Callable
from typing import Any, BinaryIO, TextIO

from vlmbatch.checkpoint import Checkpoint, find_checkpoint
from vlmbatch.core import Conversation, Pixels, Request, picture_size, utc_now
from vlmbatch.engine import Engine, RequestQueue, open_engine
from vlmbatch.engine.queue import Channel
from vlmbatch.errors import (
    DecodeError,
    EngineError,
    ItemError,
    JobError,
    PrepareError,
    TooManyErrors,
)
from vlmbatch.job import Job
from vlmbatch.prepare import Preparer
from vlmbatch.questions import Questions, read_questions
from vlmbatch.read import Reader, open_reader
from vlmbatch.run.intake import Reading
from vlmbatch.run.order import InputOrder
from vlmbatch.run.reporter import Reporter, Silent
from vlmbatch.run.results import Writing
from vlmbatch.run.rows import Result, RowMaker, Task, already_loaded
from vlmbatch.run.summary import RowStats, describe_run
from vlmbatch.run.threads import READER, WRITER, StageThreads
from vlmbatch.sample import make_sampler
from vlmbatch.write import Writer, open_output, open_sidecars, read_seen

logger = logging.getLogger(__name__)

MAX_READ_WORKERS = 8
REQUESTS_AHEAD = 64
HELD_BYTES = 64 << 20
"""Bytes of pictures out of archives and tables that wait to be decoded."""


@dataclasses.dataclass(frozen=True)
class Outcome:
    """How a run ended.

    Attributes:
        summary: What OUTPUT.summary.json holds.
        interrupted: Whether it was stopped before its end.
        error: What ended it, if anything did.
    """

    summary: dict[str, Any]
    interrupted: bool = False
    error: BaseException | None = None

    @property
    def exit_code(self) -> int:
        """What a command exits with: see the table of exit codes in README."""
        if self.error is not None:
            return getattr(self.error, "exit_code", 1)
        if self.interrupted:
            return 130
        return 3 if self.summary["status"].get("error") or self.summary["kept"]["errors"] else 0


class Run:
    """One run of a job. Make it, ``start`` it on one thread, ``stop`` it from anywhere."""

    def __init__(
        self,
        job: Job,
        *,
        engine: Engine | None = None,
        reporter: Reporter | None = None,
        stdin: BinaryIO | None = None,
        stdout: TextIO | None = None,
    ) -> None:
        """Checks everything that can be checked before work begins, and opens OUTPUT.

        Args:
            job: The job.
            engine: Answers instead of the checkpoint's model, which is then not needed.
            reporter: Hears how it goes.
            stdin: Where the INPUT ``-`` reads paths from.
            stdout: Where the OUTPUT ``-`` writes.

        Raises:
            JobError: An INPUT or the question file is not there.
            ModelLoadError: The checkpoint is not there.
            OutputError: OUTPUT cannot be written, or was made with other settings.
        """
        if not job.inputs:
            raise JobError(
                "nothing to do: give at least one INPUT (a file, a folder, a glob, or - for paths on stdin)"
            )
        self.job = job
        self.questions: Questions = read_questions(job)
        self.reader: Reader = open_reader(
            job,
            stdin=stdin,
            sampler=make_sampler(job) if job.media == "video" else None,
            # The reader is made before OUTPUT is opened, and asks only once it is iterated.
            is_done=lambda items: self._reading.is_done(items),
        )
        self.checkpoint: Checkpoint | None = (
            None if engine else find_checkpoint(job.model, job.revision)
        )
        self.preparer = (
            Preparer.from_checkpoint(self.checkpoint, job.detail, job.seed)
            if self.checkpoint
            else None
        )
        if job.per == "tile" and self.preparer is None:
            raise JobError(
                "per tile follows a checkpoint's tiles: it needs a model on this machine"
            )
        self.revision = self.checkpoint.revision if self.checkpoint else ""
        self.writer: Writer = open_output(
            job, {**job.identity(), "revision": self.revision}, stream=stdout
        )
        self._sidecars = open_sidecars(job, self.writer.path)
        self.reporter = reporter or Silent()
        self.engine = engine
        self.run_id = f"{datetime.datetime.now(datetime.UTC):%Y%m%dT%H%M%S}-{uuid.uuid4().hex[:6]}"
        # A worker that loads a clip holds all its frames as pictures: two of them keep an engine
        # busy.
        self._workers = job.read_workers or (
            2 if job.is_clip else min(MAX_READ_WORKERS, max(2, os.cpu_count() or 2))
        )
        # Frames and clips wait as decoded pictures, what a stream holds as bytes, files only as
        # paths.
        self._todo: Channel[Task] = Channel(
            2 if job.is_clip else 2 * self._workers,
            weight=lambda task: task.held_bytes,
            most_weight=HELD_BYTES,
        )
        self._requests = RequestQueue(REQUESTS_AHEAD)
        self._results: Channel[Result] = Channel(4 * REQUESTS_AHEAD)
        self._threads = StageThreads(self._todo, self._requests, self._results)
        order = InputOrder()
        self._reading = Reading(
            job,
            self.questions,
            self.writer,
            self.reporter,
            self._todo,
            self._results,
            order,
        )
        rows = RowMaker(job, self.revision, self.run_id, order)
        self._writing = Writing(job, rows, self.writer, self.reporter, self.preparer, self._results)
        self._totals: dict[str, int] = {}
        self._sidecar_counts: dict[str, int] | None = None

    @property
    def stats(self) -> RowStats:
        """What this run's rows add up to so far."""
        return self._writing.stats

    def stop(self) -> None:
        """Ends the run soon: what is finished is committed, what is in hand is dropped. May be
        called from a signal handler.
        """
        self._threads.stop()

    def start(self) -> Outcome:
        """Does the work, on this thread and a few others, and writes the summary."""
        began = time.perf_counter()
        started_at = utc_now()
        threads = self._threads
        try:
            threads.start(READER, functools.partial(self._reading.run, self.reader))
            threads.start(WRITER, self._writing.run)
            threads.start_stopper()
            if self._todo.wait():
                self._compute()
        except BaseException as error:
            threads.fail(error)
        finally:
            ended = threads.end()
            missing = self._reading.rows_asked - self.stats.rows
            if ended and threads.failure is None and missing > 0:
                threads.failure = EngineError(
                    f"{missing} row{' has' if missing == 1 else 's have'} no answer; the same command asks again"
                )
            self._close()
        if threads.is_well:
            try:
                self._writing.check_share(self._reading.kept["items"], self._reading.kept["errors"])
            except TooManyErrors as error:
                threads.failure = error
        return self._outcome(began, started_at)

    def _compute(self) -> None:
        """Loads the engine, starts the threads that feed it, and hands its answers on."""
        if self.engine is None:
            assert self.checkpoint is not None
            assert self.preparer is not None
            self.reporter.loading(self.checkpoint.name)
            self.engine = open_engine(
                self.job, self.checkpoint, self.preparer.prepare, self.preparer.decode
            )
        self._writing.engine = self.engine
        self._threads.start_preparers(self._workers, self._prepare)
        waits_for_first = not isinstance(self.reporter, Silent)
        for completion in self.engine.run(self._requests):
            if waits_for_first:  # to be counted: a long listing would hold up the first answer
                waits_for_first = False
                self._threads.start("counter", self._reading.count)
            task, part = completion.request.tag
            whole = task.join(part, completion)
            if whole is not None and not self._results.put(
                Result(task, completion.question, whole)
            ):
                return
        if not self._requests.ended:
            raise EngineError("the engine ended before its requests did")

    def _prepare(self) -> None:
        """Loads pixels and makes requests until nothing is left to do."""
        engine = self.engine
        assert engine is not None  # it is opened before these threads start
        for task in self._todo:
            try:
                pixels = self._load(task)
                conversation = Conversation(task.item.media, pixels, task.item.id)
                begun = time.perf_counter()
                requests = self._guarded(
                    PrepareError,
                    functools.partial(
                        self._make_requests,
                        engine,
                        conversation,
                        [question for _, question in task.asked],
                    ),
                )
                task.prepare_seconds = time.perf_counter() - begun
                task.tiles = sum(len(request.tiles) for request in requests)
                task.parts = len(requests)
            except ItemError as error:
                for position in range(len(task.asked)):
                    self._results.put(Result(task, position, error=error))
                continue
            for part, request in enumerate(requests):
                request.tag = (task, part)
                if not self._requests.put(request):
                    return

    def _make_requests(
        self, engine: Engine, conversation: Conversation, questions: list[str]
    ) -> list[Request]:
        """The request of an item, or one for each of its tiles."""
        if self.job.per != "tile" or self.preparer is None:
            return [engine.prepare(conversation, questions)]
        return [engine.prepare(tile, questions) for tile in self.preparer.cut(conversation)]

    def _load(self, task: Task) -> Pixels:
        begun = time.perf_counter()
        try:
            pixels: Pixels = self._guarded(DecodeError, task.item.load)
        finally:
            task.read_seconds = time.perf_counter() - begun
            # An item may hold a decoded frame or a picture's bytes; now that there are pixels, or
            # none, nobody needs them any more.
            task.item = dataclasses.replace(task.item, load=already_loaded)
        width, height = picture_size(pixels.frames[0])
        task.size = (width, height)
        return pixels

    @staticmethod
    def _guarded(kind: type[ItemError], call: Callable[[], Any]) -> Any:
        """Calls; an exception that nobody foresaw is an error of this item, not the end of the run."""
        try:
            return call()
        except ItemError:
            raise
        except Exception as error:
            logger.debug("unexpected error", exc_info=True)
            raise kind(f"{type(error).__name__}: {' '.join(str(error).split())}") from error

    def _close(self) -> None:
        """Commits and closes; a failure here is the run's failure, unless there was one before."""
        for close in (
            functools.partial(self.writer.close, finished=self._threads.is_well),
            self._write_sidecars,
            self.engine.close if self.engine else None,
        ):
            try:
                if close:
                    close()
            except BaseException as error:
                if self._threads.failure is None:
                    self._threads.failure = error
                else:
                    logger.error("%s", error)
        self._totals = self.writer.totals()

    def _write_sidecars(self) -> None:
        """Writes the sidecars of this run's items from all their rows in OUTPUT, earlier runs' too.
        Of a run that did not come to its end there are none.
        """
        if self._sidecars is None or not self._threads.is_well:
            return
        self._sidecar_counts = self._sidecars.write(read_seen(self.writer))

    def _outcome(self, began: float, started_at: str) -> Outcome:
        summary = describe_run(
            self.job,
            self.stats,
            wall_seconds=time.perf_counter() - began,
            engine=dataclasses.asdict(self.engine.stats) if self.engine else {},
            started_at=started_at,
            ended_at=utc_now(),
            run_id=self.run_id,
            revision=self.revision,
            interrupted=self._threads.interrupted,
            error=None
            if self._threads.failure is None
            else f"{type(self._threads.failure).__name__}: {self._threads.failure}",
            kept=self._reading.kept,
            found=self._reading.found,
            output=self._totals,
            sidecars=self._sidecar_counts,
            left_alone={
                **dataclasses.asdict(self.reader.counts),
                "without_question": self._reading.unasked,
            },
            questions=None
            if self._reading.found is None
            else self.questions.missed(is_all=self._reading.found != self.job.limit),
            native_tiles=self._writing.native_tiles if self.job.detail == "full" else None,
            full_tiles=self._writing.full_tiles if self.job.detail == "full" else None,
        )
        if not isinstance(self._threads.failure, JobError):
            try:
                self.writer.write_summary(summary)
            except Exception as error:
                if self._threads.failure is None:
                    self._threads.failure = error
        return Outcome(summary, self._threads.interrupted, self._threads.failure)


def run(
    job: Job, *, engine: Engine | None = None, reporter: Reporter | None = None
) -> dict[str, Any]:
    """Runs a job to its end and gives its summary.

    Args:
        job: The job.
        engine: Answers instead of the checkpoint's model.
        reporter: Hears how it goes.

    Raises:
        VlmbatchError: The run could not go on; everything finished is committed. Errors of single
            items are rows, not exceptions.
    """
    outcome = Run(job, engine=engine, reporter=reporter).start()
    if outcome.error is not None:
        raise outcome.error
    return outcome.summary


def count_items(job: Job, *, stdin: BinaryIO | None = None) -> int:
    """How many items a job finds; loads no picture and no model.

    Raises:
        JobError: What ``Run`` would refuse: an INPUT or the question file.
    """
    if not job.inputs:
        raise JobError(
            "nothing to do: give at least one INPUT (a file, a folder, a glob, or - for paths on stdin)"
        )
    questions = read_questions(job)
    # Frames are counted by their packets where that is possible.
    sampler = make_sampler(job) if job.media == "video" else None
    reader = open_reader(
        job,
        stdin=stdin,
        sampler=sampler,
        names_only=True,
    )
    count = 0
    for item in reader:
        questions.of(item)
        count += 1
    if (
        job.question_column is None
    ):  # what items ask themselves may stand where nobody looks who only counts
        questions.check()
    return count if job.limit is None else min(count, job.limit)
