"""A batch run: stages connected by bounded queues and threads, and the one policy for errors.
Nothing here knows about pixels or text.

    reader thread -> todo -> prepare threads -> requests -> engine -> results -> writer thread

The engine runs on the calling thread. The first and the last thread's work and counts are in
``intake.py`` and ``results.py``. Every queue is bounded, so a slow stage slows those before it and
memory stays flat. An error of one item becomes its error rows wherever it happens. Any other
exception in a thread stops the run; it is raised in the calling thread after everything finished is
committed.
"""

from __future__ import annotations

import dataclasses
import datetime
import functools
import logging
import threading
import time
import uuid
from typing import Any, BinaryIO, TextIO

from vlmbatch.core import utc_now
from vlmbatch.engine import Engine, RequestQueue
from vlmbatch.engine.constraints import checked_constraint
from vlmbatch.engine.queue import Channel
from vlmbatch.errors import (
    EngineError,
    JobError,
    NothingFound,
    TooManyErrors,
)
from vlmbatch.job import Job
from vlmbatch.questions import Questions, read_questions
from vlmbatch.read import Reader, open_reader
from vlmbatch.run.events import event, events
from vlmbatch.run.intake import Intake, check_inputs, count_ahead
from vlmbatch.run.nothing import explain_nothing
from vlmbatch.run.opening import EngineAndOutput
from vlmbatch.run.order import InputOrder
from vlmbatch.run.outcome import Outcome
from vlmbatch.run.preparation import Preparation, num_workers
from vlmbatch.run.record import RecordMaker
from vlmbatch.run.reporter import Activity, Reporter, Silent
from vlmbatch.run.results import Results
from vlmbatch.run.summary import RowStats, describe_run
from vlmbatch.run.task import Result, Task
from vlmbatch.run.threads import READER, WRITER, StageThreads
from vlmbatch.sample import make_sampler
from vlmbatch.urls import without_credentials
from vlmbatch.write import Writer, read_seen, remove_orphans

logger = logging.getLogger(__name__)

REQUESTS_AHEAD = 64
HELD_BYTES = 64 << 20
"""Maximum bytes of queued pictures from archives and tables."""


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
        """Check everything that can be checked before work begins, and open OUTPUT.

        Args:
            job: The job.
            engine: An open engine, in place of the one that the job names.
            reporter: Is told of the progress.
            stdin: Source of paths for the INPUT ``-``.
            stdout: Target of the OUTPUT ``-``.

        Raises:
            JobError: An INPUT or the question file is missing, the constraint cannot be
                compiled, or the engine cannot honour an option.
            ModelLoadError: The checkpoint is missing.
            OutputError: OUTPUT cannot be written, or was made with other settings.
        """
        check_inputs(job)
        self.job = job
        self.questions: Questions = read_questions(job)
        self._constraint = checked_constraint(job)
        self.reader: Reader = open_reader(
            job,
            stdin=stdin,
            sampler=make_sampler(job) if job.media == "video" else None,
            # The reader is made before OUTPUT is opened, and calls ``is_done`` only once it is
            # iterated.
            is_done=lambda items: self._intake.is_done(items),
        )
        now = datetime.datetime.now(datetime.UTC)
        self.run_id = f"{now:%Y%m%dT%H%M%S}-{uuid.uuid4().hex[:6]}"
        self._opened = EngineAndOutput(job, engine, stdout=stdout, run_id=self.run_id)
        self.reporter = reporter or Silent()
        self._has_answered = threading.Event()
        self._totals: dict[str, int] = {}
        self._edited = 0
        self._gone: dict[str, Any] = {}
        self._other_files: dict[str, Any] = {}
        self._sidecar_counts: dict[str, int] | None = None
        self._connect()

    def _connect(self) -> None:
        """Make the queues between the stages, and the stages."""
        job = self.job
        workers = num_workers(job, is_clip=job.is_clip, on_cpu=True)
        # Queued frames and clips are decoded pictures, entries of a stream bytes, files paths.
        self._todo: Channel[Task] = Channel(
            2 if job.is_clip else 2 * workers,
            weight=lambda task: task.item.held_bytes,
            max_weight=HELD_BYTES,
        )
        self._requests = RequestQueue(REQUESTS_AHEAD)
        self._queue: Channel[Result] = Channel(4 * REQUESTS_AHEAD)
        self._threads = StageThreads(self._todo, self._requests, self._queue)
        self._make_stages()

    def _make_stages(self) -> None:
        """Make what works between the queues, for the engine and OUTPUT at hand."""
        job, plan, writer, order = self.job, self._opened.plan, self.writer, InputOrder()
        writer.name_questions(self.questions.names)
        self._intake = Intake(
            job, self.questions, writer, self.reporter, self._todo, self._queue, order
        )
        self._preparation = Preparation(
            job, self._constraint, self._todo, self._requests, self._queue
        )
        maker = RecordMaker(
            job.task,
            plan.model,
            plan.revision,
            job.kept_columns,
            self.run_id,
            order,
            self.questions.names,
        )
        self._results = Results(job, maker, writer, self.reporter, self._queue)

    @property
    def writer(self) -> Writer:
        """OUTPUT."""
        return self._opened.writer

    @property
    def stats(self) -> RowStats:
        """Sums over this run's rows so far."""
        return self._results.stats

    def stop(self) -> None:
        """End the run soon: commit finished rows, drop the rest. May be called from a signal
        handler.
        """
        self._threads.stop()

    def start(self) -> Outcome:
        """Run to the end, on this thread and a few others, and write the summary."""
        began = time.perf_counter()
        started_at = utc_now()
        threads = self._threads
        events.info(
            "run %s begins: %s by %s",
            *(self.run_id, self.job.task, self._opened.plan.model),
            extra=event(
                "run_started",
                task=self.job.task,
                engine=self._opened.plan.name,
                model=self._opened.plan.model,
                output=without_credentials(self.job.output_path),
                rows_before=self.writer.totals().get("rows", 0),
            ),
        )
        try:
            if self._opened.is_undecided:
                self.reporter.loading(self._opened.plan.model)
                self._opened.open(self._make_stages)
            threads.start(READER, functools.partial(self._intake.run, self.reader))
            threads.start(WRITER, self._results.run)
            threads.start_stopper()
            if not isinstance(self.reporter, Silent):
                threads.start("counter", self._count)
            if self._todo.wait():
                self._compute()
        except KeyboardInterrupt:
            threads.stop()
        except BaseException as error:
            threads.fail(error)
        finally:
            self._has_answered.set()
            ended = threads.end()
            missing = self._intake.rows_asked - self.stats.rows
            if ended and threads.failure is None and missing > 0:
                rows = "row has" if missing == 1 else "rows have"
                threads.failure = EngineError(
                    f"{missing} {rows} no answer; the same command asks again"
                )
            self._check_found()
            self._close()
        if threads.is_well:
            try:
                self._results.check_share()
            except TooManyErrors as error:
                threads.failure = error
        return self._outcome(began, started_at)

    def _check_found(self) -> None:
        """Refuse to call a run a success that had nothing to ask about."""
        intake = self._intake
        # Behind --limit there may be items with a question.
        is_empty = intake.found == 0 or intake.found == intake.unasked != self.job.limit
        if is_empty and self._threads.is_well and not self.job.allow_empty:
            why = explain_nothing(self.job, self.reader.counts, intake.unasked)
            self._threads.failure = NothingFound(why)

    def _compute(self) -> None:
        """Open the engine, start the threads that feed it, and forward its answers."""
        if self._opened.engine is None:
            self.reporter.loading(self._opened.plan.model)
        engine = self._results.engine = self._opened.open()
        events.info(
            "%s answers on %s, %s",
            *(engine.model, engine.device or "?", engine.dtype or "?"),
            extra=event(
                "engine_ready", engine=engine.name, device=engine.device, dtype=engine.dtype
            ),
        )
        self.reporter.started(self._activity)
        prepare = functools.partial(self._preparation.run, engine)
        on_cpu = engine.device == "cpu"
        workers = num_workers(self.job, is_clip=self.job.is_clip, on_cpu=on_cpu)
        self._threads.start_preparers(workers, prepare)
        for completion in engine.run(self._requests):
            self._has_answered.set()
            ticket, part = completion.request.tag
            result = ticket.join(part, completion)
            if result is not None and not self._queue.put(result):
                return
        if not self._requests.ended:
            raise EngineError("the engine ended before its requests did")

    def _count(self) -> None:
        """Count the items once the first answer has arrived; a long listing would delay it."""
        self._has_answered.wait()
        if self._threads.is_well and not self._todo.ended:
            count_ahead(self.job, self._todo, self.reporter)

    def _activity(self) -> Activity:
        """The work of this run now; called from the reporter's thread."""
        assert self._opened.engine is not None  # the reporter asks once it is open
        stats = self._opened.engine.stats
        return Activity(
            items_prepared=self._preparation.items,
            tiles_prepared=self._preparation.tiles,
            tiles=stats.tiles + stats.tiles_reused,
            tokens=stats.decode_tokens,
            encode_seconds=stats.vision_seconds + stats.prefill_seconds,
            decode_seconds=stats.decode_seconds,
            in_work=max(0, self._preparation.items - self._results.items_answered),
        )

    def _close(self) -> None:
        """Commit and close. A failure here is the run's failure, unless there was one before."""
        is_well = self._threads.is_well
        engine, writer = self._opened.engine, self.writer
        close_writer = functools.partial(writer.close, finished=is_well)
        for close in (
            self._find_gone if is_well else None,
            close_writer,
            self._write_sidecars,
            engine.close if engine else None,
        ):
            try:
                if close:
                    close()
            except BaseException as error:
                if self._threads.failure is None:
                    self._threads.failure = error
                else:
                    logger.error("%s", error)
        self._totals, self._edited = writer.totals(), writer.edited()
        self._other_files = writer.other_files()

    def _find_gone(self) -> None:
        self._gone = self.writer.gone(prune=self.job.prune)

    def _write_sidecars(self) -> None:
        """Write the sidecars of this run's items from all their rows in OUTPUT, earlier runs' too.
        A run that did not finish writes none. ``--prune`` removes those of files that are gone.
        """
        sidecars = self._opened.sidecars
        if sidecars is not None and self._threads.is_well:
            self._sidecar_counts = sidecars.write(read_seen(self.writer))
        if self.job.prune and self.writer.path is not None and self._threads.is_well:
            removed = remove_orphans(self.writer.path, self.job.inputs)
            self._gone |= {"sidecars": removed} if removed else {}

    def _outcome(self, began: float, started_at: str) -> Outcome:
        threads, intake, results = self._threads, self._intake, self._results
        engine, writer = self._opened.engine, self.writer
        failure = threads.failure
        is_full = self.job.detail == "full"
        summary = describe_run(
            self.job,
            self.stats,
            identity=self._opened.identity,
            wall_seconds=time.perf_counter() - began,
            engine=dataclasses.asdict(engine.stats) if engine else {},
            started_at=started_at,
            ended_at=utc_now(),
            run_id=self.run_id,
            revision=self._opened.plan.revision,
            interrupted=threads.interrupted,
            error=None if failure is None else f"{type(failure).__name__}: {failure}",
            kept={**intake.kept, **({"edited": self._edited} if self._edited else {})},
            found=intake.found,
            gone=self._gone,
            other_files=self._other_files,
            output=self._totals,
            uncommitted=writer.num_uncommitted,
            sidecars=self._sidecar_counts,
            left_alone={
                **self.reader.counts.numbers(),
                "without_question": intake.unasked,
                "not_in_output": intake.not_there,
            },
            questions=None
            if intake.found is None
            else self.questions.missed(is_all=intake.found != self.job.limit),
            native_tiles=results.native_tiles if is_full else None,
            low_tiles=results.low_tiles if is_full else None,
            full_tiles=results.full_tiles if is_full else None,
        )
        self._write_beside(Outcome(summary, threads.interrupted, failure))
        return Outcome(summary, threads.interrupted, threads.failure)

    def _write_beside(self, outcome: Outcome) -> None:
        """Write the summary and the line of this run. A run that had nothing to do leaves the
        summary of the last one that had.
        """
        is_changed = self.stats.rows or self._gone.get("pruned") or self.job.overwrite
        has_done = bool(is_changed or outcome.error)
        try:
            if not isinstance(outcome.error, JobError | NothingFound):
                self.writer.write_summary(outcome.summary, replace=has_done)
            self.writer.add_run(outcome.run_line(self._opened.engine))
        except Exception as error:
            if self._threads.failure is None:
                self._threads.failure = error
