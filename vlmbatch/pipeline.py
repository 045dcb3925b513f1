"""Wires the stages together: bounded queues, threads, back-pressure, and the one policy for errors. Decides nothing about pictures or words.

    reader thread -> todo -> prepare threads -> requests -> engine (the calling thread) -> results -> writer thread

Every queue is bounded, so a slow stage slows those before it and memory stays flat. An error of one item becomes its error rows wherever it happens. Any other
exception in a thread stops the run and is raised in the calling thread, after everything finished is committed.
"""

from __future__ import annotations

import dataclasses
import datetime
import functools
import logging
import os
import random
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from typing import Any, BinaryIO, TextIO

from vlmbatch.channel import Channel
from vlmbatch.checkpoint import Checkpoint, find_checkpoint
from vlmbatch.engine import Engine, RequestQueue, open_engine
from vlmbatch.errors import DecodeError, EngineError, ItemError, JobError, PrepareError, ReadError, TooManyErrors
from vlmbatch.job import Job
from vlmbatch.prepare import Preparer
from vlmbatch.read import Reader, is_stream, open_reader
from vlmbatch.read.questions import Questions, read_questions
from vlmbatch.records import Conversation, Item, Pixels, Record, Request, picture_size, utc_now
from vlmbatch.reporter import Reporter, Silent
from vlmbatch.rows import Original, Result, RowMaker, Task
from vlmbatch.sample import make_sampler
from vlmbatch.summary import RowStats, describe_run
from vlmbatch.threads import READER, WRITER, StageThreads
from vlmbatch.urls import is_url
from vlmbatch.write import Writer, open_output, open_sidecars, read_records

logger = logging.getLogger(__name__)

MAX_READ_WORKERS = 8
REQUESTS_AHEAD = 64
TICK_SECONDS = 1.0
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
        self, job: Job, *, engine: Engine | None = None, reporter: Reporter | None = None, stdin: BinaryIO | None = None, stdout: TextIO | None = None
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
            raise JobError("nothing to do: give at least one INPUT (a file, a folder, a glob, or - for paths on stdin)")
        self.job = job
        self.questions: Questions = read_questions(job)
        self.reader: Reader = open_reader(job, stdin=stdin, sampler=make_sampler(job) if job.media == "video" else None, needless=self._needless)
        self.checkpoint: Checkpoint | None = None if engine else find_checkpoint(job.model, job.revision)
        self.preparer = Preparer.from_checkpoint(self.checkpoint, job.detail, job.seed) if self.checkpoint else None
        if job.per == "tile" and self.preparer is None:
            raise JobError("per tile follows a checkpoint's tiles: it needs a model on this machine")
        self.revision = self.checkpoint.revision if self.checkpoint else ""
        self.writer: Writer = open_output(job, {**job.identity(), "revision": self.revision}, stream=stdout)
        self._sidecars = open_sidecars(job, self.writer.path)
        self._resumes = bool(self.writer.totals().get("rows"))
        self.reporter = reporter or Silent()
        self.engine = engine
        self.stats = RowStats()
        self.run_id = f"{datetime.datetime.now(datetime.UTC):%Y%m%dT%H%M%S}-{uuid.uuid4().hex[:6]}"
        self._rows = RowMaker(job, self.revision, self.run_id)
        # A worker that loads a clip holds all its frames as pictures: two of them keep an engine busy.
        self._workers = job.read_workers or (2 if job.is_clip else min(MAX_READ_WORKERS, max(2, os.cpu_count() or 2)))
        # Frames and clips wait as decoded pictures, what a stream holds as bytes, files only as paths.
        self._todo: Channel[Task] = Channel(2 if job.is_clip else 2 * self._workers, weight=lambda task: task.held_bytes, most_weight=HELD_BYTES)
        self._requests = RequestQueue(REQUESTS_AHEAD)
        self._results: Channel[Result] = Channel(4 * REQUESTS_AHEAD)
        self._threads = StageThreads(self._todo, self._requests, self._results)
        self._unasked = 0
        self._found: int | None = None
        self._rows_asked = 0
        self._totals: dict[str, int] = {}
        self._sidecar_counts: dict[str, int] | None = None
        self._kept = {"items": 0, "rows": 0, "errors": 0}
        self._native_tiles = self._full_tiles = 0

    def stop(self) -> None:
        """Ends the run soon: what is finished is committed, what is in hand is dropped. May be called from a signal handler."""
        self._threads.stop()

    def start(self) -> Outcome:
        """Does the work, on this thread and a few others, and writes the summary."""
        began = time.perf_counter()
        started_at = utc_now()
        threads = self._threads
        try:
            threads.start(READER, self._read)
            threads.start(WRITER, self._write)
            threads.start_stopper()
            if self._todo.wait():
                self._compute()
        except BaseException as error:
            threads.fail(error)
        finally:
            ended = threads.end()
            missing = self._rows_asked - self.stats.rows
            if ended and threads.failure is None and missing > 0:
                threads.failure = EngineError(f"{missing} row{' has' if missing == 1 else 's have'} no answer; the same command asks again")
            self._close()
        if threads.is_well:
            try:
                self._check_errors(is_all=True)
            except TooManyErrors as error:
                threads.failure = error
        return self._outcome(began, started_at)

    def _compute(self) -> None:
        """Loads the engine, starts the threads that feed it, and hands its answers on."""
        if self.engine is None:
            assert self.checkpoint is not None
            assert self.preparer is not None
            self.reporter.loading(self.checkpoint.name)
            self.engine = open_engine(self.job, self.checkpoint, self.preparer.prepare, self.preparer.decode)
        self._threads.start_preparers(self._workers, self._prepare)
        waits_for_first = not isinstance(self.reporter, Silent)
        for completion in self.engine.run(self._requests):
            if waits_for_first:  # to be counted: a long listing would hold up the first answer
                waits_for_first = False
                self._threads.start("counter", self._count)
            task, part = completion.request.tag
            whole = task.join(part, completion)
            if whole is not None and not self._results.put(Result(task, completion.question, whole)):
                return
        if not self._requests.ended:
            raise EngineError("the engine ended before its requests did")

    def _read(self) -> None:
        """Lists the items, sorts out what is done already, and queues the rest."""
        order = 0
        count = 0
        original: Original | None = None
        for item in self._items():
            if self._todo.stopped:
                return
            count += 1
            if self._sidecars:
                self._sidecars.expect(item.id, item.source, item.questions)
            asked = self.questions.of(item)
            if not asked:
                self._unasked += 1
                self.reporter.item(error=False, kept=True, new_tokens=0)
                continue
            todo = []
            failed = False
            for number, question in enumerate(asked):
                if self.writer.done(item.id, self.job.task, question, item.source, item.fingerprint):
                    failed |= self.writer.keep(item.id, self.job.task, question, item.index, number) == "error"
                else:
                    todo.append((number, question))
            if item.similar_to is None or original is None or original.id != item.similar_to or not original.asked.issuperset(asked):
                original = Original(item.id, frozenset(asked), frozenset(question for _, question in todo))
            self._kept["rows"] += len(asked) - len(todo)
            self._kept["errors"] += failed
            if not todo:
                self._kept["items"] += 1
                self.reporter.item(error=failed, kept=True, new_tokens=0)
                continue
            task = Task(item, tuple(todo), order, len(todo), original=original, held_bytes=item.held_bytes)
            if not self._send(task):
                return
            order += len(todo)
        if count != self.job.limit:
            self.questions.check()
        self._found = count
        self._rows_asked = order
        self.reporter.total(count)
        self._todo.close()

    def _send(self, task: Task) -> bool:
        """Sends a task on its way: to the engine, or straight to the writer when its answers are another's. False when the run is to end."""
        if not task.is_similar:
            return self._todo.put(task)
        task.item = dataclasses.replace(task.item, load=_already_loaded)  # many may wait for one answer, and none needs its pixels
        return all(self._results.put(Result(task, position)) for position in range(len(task.asked)))

    def _needless(self, video_id: str, fingerprint: str, frames: Callable[[], Sequence[Item]]) -> bool:
        """Whether every row about a video's frames is done, so that it need not be decoded."""

        def is_done(id: str, asked: Sequence[str], source: str = "") -> bool:
            return all(self.writer.done(id, self.job.task, question, source, fingerprint) for question in asked)

        # A row about the video itself tells of damage, which only decoding finds; it is among this run's items then.
        if not self._resumes or self.job.retry_errors or is_done(video_id, self.questions.about(video_id)):
            return False
        items = frames()
        return bool(items) and all(is_done(item.id, item.questions or self.questions.about(item.id), item.source) for item in items)

    def _items(self) -> Iterator[Item]:
        """Items of the job, shuffled and limited as it says."""
        limit = self.job.limit
        if self.job.shuffle:
            items = list(self.reader)
            random.Random(self.job.seed).shuffle(items)
            yield from items[:limit]
            return
        for count, item in enumerate(self.reader):
            if limit is not None and count >= limit:
                return
            yield item

    def _count(self) -> None:
        """Lists the items once more, ahead of the work and without it, so that the time left can be told."""
        if self.job.media == "video" or any(is_url(text) or is_stream(text) for text in self.job.inputs):
            return  # counting would mean decoding, unpacking or fetching twice, or eat what is to be read
        count = 0
        try:
            for count, _ in enumerate(open_reader(self.job, names_only=True), 1):
                if self._todo.ended:
                    return  # the reader knows better by now
                if count == self.job.limit:
                    break
        except Exception:  # the reader will meet it too, and there it counts
            logger.debug("counting failed", exc_info=True)
            return
        self.reporter.total(count)

    def _prepare(self) -> None:
        """Loads pixels and makes requests until nothing is left to do."""
        engine = self.engine
        assert engine is not None  # it is opened before these threads start
        for task in self._todo:
            try:
                pixels = self._load(task)
                conversation = Conversation(task.item.media, pixels, task.item.id)
                begun = time.perf_counter()
                requests = self._guarded(PrepareError, functools.partial(self._make_requests, engine, conversation, [question for _, question in task.asked]))
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

    def _make_requests(self, engine: Engine, conversation: Conversation, questions: list[str]) -> list[Request]:
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
            # An item may hold a decoded frame or a picture's bytes; now that there are pixels, or none, nobody needs them any more.
            task.item = dataclasses.replace(task.item, load=_already_loaded)
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

    def _write(self) -> None:
        """Writes rows as they come, commits in time, and stops a hopeless run."""
        while not self._results.ended:
            result = self._results.get(timeout=TICK_SECONDS)
            if result is None:
                self.writer.tick()
                continue
            record = self._record(result)
            if record is None:
                continue
            self._finish(result, record)
            if result.task.original is not None and not result.task.is_similar:
                for waiting in result.task.original.answered(record):
                    self._finish(waiting, self._rows.similar(waiting, record))

    def _record(self, result: Result) -> Record | None:
        """The row of a result; None when it resembles an item that is not answered yet, and waits for it."""
        original = result.task.original
        if original is None or not result.task.is_similar:
            return self._rows.record(result, self.engine)
        found = original.records.get(result.question)
        if found is None and result.question in original.pending:
            original.waiting.setdefault(result.question, []).append(result)
            return None
        found = found or self.writer.find(original.id, self.job.task, result.question)
        if found is None:
            return self._rows.record(dataclasses.replace(result, error=ReadError(f"the row of {original.id}, which it resembles, cannot be read")), None)
        return self._rows.similar(result, found)

    def _finish(self, result: Result, record: Record) -> None:
        """Writes a row, and tells when it was the last of its item."""
        self._write_row(result, record)
        task = result.task
        task.missing -= 1
        if task.missing:
            return
        self.reporter.item(error=task.failed, kept=False, new_tokens=task.new_tokens)
        self._check_errors()

    def _check_errors(self, *, is_all: bool = False) -> None:
        """Ends a run with more errors than it may have, so far or in all."""
        if self.stats.error_items > self.job.error_limit(self.stats.items, is_all=is_all):
            raise TooManyErrors(f"{self.stats.error_items} of {self.stats.items} items are errors, more than --max-errors {self.job.max_errors}")

    def _write_row(self, result: Result, record: Record) -> None:
        task = result.task
        number, _ = task.asked[result.position]
        self.writer.write(record, task.item.fingerprint, task.order + result.position, number)
        self.stats.add(dataclasses.asdict(record), new_item=task.missing == len(task.asked))
        if record.status == "error":
            if not task.failed and task.missing < len(task.asked):
                self.stats.error_items += 1  # its first row was fine
            task.failed = True
            logger.info("%s: %s: %s", record.id, record.error_type, record.error)
        task.new_tokens += record.new_tokens
        if self.preparer and self.job.per != "tile" and task.missing == 1 and task.size and task.tiles and task.item.media != "clip":
            self._full_tiles += task.tiles
            self._native_tiles += self.preparer.native_tiles(*task.size)

    def _close(self) -> None:
        """Commits and closes; a failure here is the run's failure, unless there was one before."""
        for close in (functools.partial(self.writer.close, finished=self._threads.is_well), self._write_sidecars, self.engine.close if self.engine else None):
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
        """Writes the sidecars of this run's items from all their rows in OUTPUT, earlier runs' too. Of a run that did not come to its end there are none."""
        if self._sidecars is None or not self._threads.is_well:
            return
        assert self.writer.path is not None  # a job with sidecars has an OUTPUT that can be read back
        for row in read_records(self.writer.path):
            if row["task"] == self.job.task and self._sidecars.expects(row["id"], row["prompt"], self.questions.about(row["id"])):
                self._sidecars.add(row)
        self._sidecar_counts = self._sidecars.write()

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
            error=None if self._threads.failure is None else f"{type(self._threads.failure).__name__}: {self._threads.failure}",
            kept=self._kept,
            found=self._found,
            output=self._totals,
            sidecars=self._sidecar_counts,
            left_alone={**dataclasses.asdict(self.reader.counts), "without_question": self._unasked},
            questions=None if self._found is None else self.questions.missed(is_all=self._found != self.job.limit),
            native_tiles=self._native_tiles if self.job.detail == "full" else None,
            full_tiles=self._full_tiles if self.job.detail == "full" else None,
        )
        if not isinstance(self._threads.failure, JobError):
            try:
                self.writer.write_summary(summary)
            except Exception as error:
                if self._threads.failure is None:
                    self._threads.failure = error
        return Outcome(summary, self._threads.interrupted, self._threads.failure)


def _already_loaded() -> Pixels:
    raise ReadError("its pixels were loaded before")


def run(job: Job, *, engine: Engine | None = None, reporter: Reporter | None = None) -> dict[str, Any]:
    """Runs a job to its end and gives its summary.

    Args:
        job: The job.
        engine: Answers instead of the checkpoint's model.
        reporter: Hears how it goes.

    Raises:
        VlmbatchError: The run could not go on; everything finished is committed. Errors of single items are rows, not exceptions.
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
        raise JobError("nothing to do: give at least one INPUT (a file, a folder, a glob, or - for paths on stdin)")
    questions = read_questions(job)
    # Frames are counted by their packets where that is possible.
    sampler = make_sampler(job) if job.media == "video" else None
    reader = open_reader(job, stdin=stdin, sampler=sampler, names_only=True, needless=lambda video_id, fingerprint, frames: bool(frames()))
    count = 0
    for item in reader:
        questions.of(item)
        count += 1
    questions.check()
    return count if job.limit is None else min(count, job.limit)
