"""Intake: list the items, skip the finished ones, and queue the rest."""

from __future__ import annotations

import logging
import random
from collections.abc import Iterator, Sequence

from vlmbatch.core import Item
from vlmbatch.engine.queue import Channel
from vlmbatch.errors import JobError
from vlmbatch.job import Job
from vlmbatch.questions import Questions
from vlmbatch.read import Reader, is_stream, open_reader
from vlmbatch.run.order import InputOrder
from vlmbatch.run.reporter import Reporter
from vlmbatch.run.task import Loaded, Original, Result, Task, content_of
from vlmbatch.urls import is_url
from vlmbatch.write import Writer

logger = logging.getLogger(__name__)


class Intake:
    """The work of the reader thread, and its counts.

    Attributes:
        found: Number of items; None until the listing has ended.
        rows_asked: Rows that this run is to make; known with ``found``.
        unasked: Items without a question.
        kept: Items, rows and error rows from earlier runs.
        not_there: Rows that ``--redo`` did not ask about, as OUTPUT does not have them.
    """

    def __init__(
        self,
        job: Job,
        questions: Questions,
        writer: Writer,
        reporter: Reporter,
        todo: Channel[Task],
        results: Channel[Result],
        order: InputOrder,
    ) -> None:
        """Set up with a run's parts.

        Args:
            job: The job.
            questions: The questions.
            writer: Knows the finished rows.
            reporter: Is told of finished items.
            todo: Receives tasks to load.
            results: Receives results that need no loading.
            order: Records the places of the items.
        """
        self._job, self._questions, self._writer, self._reporter = job, questions, writer, reporter
        self._todo, self._results, self._order = todo, results, order
        self._resumes = bool(writer.totals().get("rows"))
        self._original: Original | None = None
        self.found: int | None = None
        self.rows_asked = self.unasked = self.not_there = 0
        self.kept = {"items": 0, "rows": 0, "errors": 0}

    def run(self, reader: Reader) -> None:
        """List the items, skip the finished ones, and queue the rest."""
        order = count = 0
        for item in self._items(reader):
            if self._todo.stopped:
                return
            count += 1
            task = self._task(item, order)
            if task is None:
                continue
            if not self._send(task):
                return
            order += len(task.asked)
        if count != self._job.limit and not self._job.allow_empty:
            self._questions.check()
        self.found = count
        self.rows_asked = order
        self._reporter.total(count)
        self._todo.close()

    def is_done(self, items: Sequence[Item]) -> bool:
        """True if all rows of these items exist, so that their pixels are not needed."""
        if not self._resumes or self._job.retry_errors:
            return False
        return all(
            self._is_done(item, question)
            for item in items
            for question in item.questions or self._questions.about(item.id)
        )

    def _is_done(self, item: Item, question: str) -> bool:
        return self._writer.done(
            item.id, self._job.task, question, item.source, item.fingerprint, item.digest
        )

    def _task(self, item: Item, order: int) -> Task | None:
        """Make the task of an item; None if nothing is asked or all of it is done."""
        asked = self._questions.of(item)
        if not asked:
            self.unasked += 1
            self._reporter.item(error=False, kept=True, new_tokens=0)
            return None
        todo, num_failed, num_kept, task = [], 0, 0, self._job.task
        for number, question in enumerate(asked):
            if self._is_done(item, question):
                index = self._order.index(item.place)
                status = self._writer.keep(item.id, task, question, index, number)
                num_failed += status == "error"
                num_kept += status is not None  # --redo asks about no new rows
            else:
                todo.append((number, question))
        original = self._original
        if (
            item.similar_to is None
            or original is None
            or original.id != item.similar_to
            or not original.asked.issuperset(asked)
        ):
            pending = frozenset(question for _, question in todo)
            self._original = original = Original(item.id, frozenset(asked), pending)
        self.kept["rows"] += num_kept
        self.not_there += len(asked) - len(todo) - num_kept
        self.kept["errors"] += num_failed
        if not todo:
            self.kept["items"] += 1
            self._reporter.item(error=num_failed > 0, kept=True, new_tokens=0)
            return None
        return Task(item, tuple(todo), order, original)

    def _send(self, task: Task) -> bool:
        """Queue a task for loading, or send it to the writer if its answers are another item's.
        Return False if the run is to end.
        """
        if not task.is_similar:
            return self._todo.put(task)
        loaded = Loaded(content=content_of(task.item))
        task = task.without_pixels()  # many may wait for one answer
        return all(
            self._results.put(Result(task, position, loaded)) for position in range(len(task.asked))
        )

    def _items(self, reader: Reader) -> Iterator[Item]:
        """Yield the items of the job, shuffled and limited."""
        limit = self._job.limit
        if self._job.shuffle:
            items = list(self._numbered(reader))
            random.Random(self._job.seed).shuffle(items)
            yield from items[:limit]
            return
        for count, item in enumerate(self._numbered(reader), 1):
            yield item
            if count == limit:  # the next path on stdin may never come
                return

    def _numbered(self, reader: Reader) -> Iterator[Item]:
        """Yield the items in input order and record the place of each."""
        for item in reader:
            self._order.add(item.place)
            yield item


def count_ahead(job: Job, todo: Channel[Task], reporter: Reporter) -> None:
    """Count the items in a second listing ahead of the work, for the remaining time.

    Args:
        job: The job.
        todo: The queue of the reader, whose own count counts once it has ended.
        reporter: Is told the total.
    """
    if job.media == "video" or any(is_url(text) or is_stream(text) for text in job.inputs):
        return  # counting would decode, unpack or fetch twice, or consume the input
    count = 0
    try:
        for count, _ in enumerate(open_reader(job, names_only=True), 1):
            if todo.ended:
                return
            if count == job.limit:
                break
    except Exception:  # the reader will meet this error too, and report it
        logger.debug("counting failed", exc_info=True)
        return
    reporter.total(count)


def check_inputs(job: Job) -> None:
    """Check that a job has an INPUT.

    Raises:
        JobError: It has none.
    """
    if not job.inputs:
        raise JobError(
            "nothing to do: give at least one INPUT (a file, a folder, a glob, or - for paths on "
            "stdin)"
        )
