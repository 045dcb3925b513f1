"""The way in: items are listed, what is done already is sorted out, and the rest is queued."""

from __future__ import annotations

import dataclasses
import logging
import random
from collections.abc import Iterator, Sequence

from vlmbatch.core import Item
from vlmbatch.engine.queue import Channel
from vlmbatch.job import Job
from vlmbatch.questions import Questions
from vlmbatch.read import Reader, is_stream, open_reader
from vlmbatch.run.order import InputOrder
from vlmbatch.run.reporter import Reporter
from vlmbatch.run.rows import Original, Result, Task, already_loaded
from vlmbatch.urls import is_url
from vlmbatch.write import Writer

logger = logging.getLogger(__name__)


class Reading:
    """What the reader thread does, and what it has found.

    Attributes:
        found: Items in all; None until the listing has ended.
        rows_asked: Rows that this run is to make; known with ``found``.
        unasked: Items that nothing is asked about.
        kept: Items, rows and error rows that were there before.
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
        """Takes what it works with.

        Args:
            job: The job.
            questions: What is asked.
            writer: Knows which rows are done.
            reporter: Hears of items that are done.
            todo: Where what is to be loaded goes.
            results: Where what needs no loading goes.
            order: Notes the places of the items.
        """
        self._job, self._questions, self._writer, self._reporter = job, questions, writer, reporter
        self._todo, self._results = todo, results
        self._resumes = bool(writer.totals().get("rows"))
        self.order = order
        self.found: int | None = None
        self.rows_asked = self.unasked = 0
        self.kept = {"items": 0, "rows": 0, "errors": 0}

    def run(self, reader: Reader) -> None:
        """Lists the items, sorts out what is done already, and queues the rest."""
        order = 0
        count = 0
        original: Original | None = None
        for item in self._items(reader):
            if self._todo.stopped:
                return
            count += 1
            asked = self._questions.of(item)
            if not asked:
                self.unasked += 1
                self._reporter.item(error=False, kept=True, new_tokens=0)
                continue
            todo = []
            failed = False
            for number, question in enumerate(asked):
                if self._writer.done(
                    item.id, self._job.task, question, item.source, item.fingerprint
                ):
                    failed |= (
                        self._writer.keep(
                            item.id, self._job.task, question, self.order.index(item.place), number
                        )
                        == "error"
                    )
                else:
                    todo.append((number, question))
            if (
                item.similar_to is None
                or original is None
                or original.id != item.similar_to
                or not original.asked.issuperset(asked)
            ):
                original = Original(
                    item.id, frozenset(asked), frozenset(question for _, question in todo)
                )
            self.kept["rows"] += len(asked) - len(todo)
            self.kept["errors"] += failed
            if not todo:
                self.kept["items"] += 1
                self._reporter.item(error=failed, kept=True, new_tokens=0)
                continue
            task = Task(
                item, tuple(todo), order, len(todo), original=original, held_bytes=item.held_bytes
            )
            if not self._send(task):
                return
            order += len(todo)
        if count != self._job.limit:
            self._questions.check()
        self.found = count
        self.rows_asked = order
        self._reporter.total(count)
        self._todo.close()

    def _send(self, task: Task) -> bool:
        """Sends a task on its way: to the engine, or straight to the writer when its answers are
        another's. False when the run is to end.
        """
        if not task.is_similar:
            return self._todo.put(task)
        task.item = dataclasses.replace(
            task.item, load=already_loaded
        )  # many may wait for one answer, and none needs its pixels
        return all(self._results.put(Result(task, position)) for position in range(len(task.asked)))

    def _items(self, reader: Reader) -> Iterator[Item]:
        """Items of the job, shuffled and limited as it says."""
        limit = self._job.limit
        if self._job.shuffle:
            items = list(self._numbered(reader))
            random.Random(self._job.seed).shuffle(items)
            del items[limit or len(items) :]
            items.reverse()
            # An item may keep a copy of its video on the disk: it is dropped once it was yielded.
            while items:
                yield items.pop()
            return
        for count, item in enumerate(self._numbered(reader)):
            if limit is not None and count >= limit:
                return
            yield item

    def _numbered(self, reader: Reader) -> Iterator[Item]:
        """Items in input order, each with its place noted."""
        for item in reader:
            self.order.add(item.place)
            yield item

    def is_done(self, items: Sequence[Item]) -> bool:
        """Whether every row about these items is there, so that their pixels are not needed."""
        if not self._resumes or self._job.retry_errors:
            return False
        return all(
            self._writer.done(item.id, self._job.task, question, item.source, item.fingerprint)
            for item in items
            for question in item.questions or self._questions.about(item.id)
        )

    def count(self) -> None:
        """Lists the items once more, ahead of the work and without it, so that the time left can be
        told.
        """
        if self._job.media == "video" or any(
            is_url(text) or is_stream(text) for text in self._job.inputs
        ):
            # counting would mean decoding, unpacking or fetching twice, or eat what is to be read
            return
        count = 0
        try:
            for count, _ in enumerate(open_reader(self._job, names_only=True), 1):
                if self._todo.ended:
                    return  # the reader knows better by now
                if count == self._job.limit:
                    break
        except Exception:  # the reader will meet it too, and there it counts
            logger.debug("counting failed", exc_info=True)
            return
        self._reporter.total(count)
