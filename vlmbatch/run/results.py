"""The way out: results become rows, frames that resemble others get their answers, and a hopeless
run is stopped.
"""

from __future__ import annotations

import dataclasses
import logging

from vlmbatch.core import Record
from vlmbatch.engine import Engine
from vlmbatch.engine.queue import Channel
from vlmbatch.errors import ReadError, TooManyErrors
from vlmbatch.job import Job
from vlmbatch.prepare import Preparer
from vlmbatch.run.reporter import Reporter
from vlmbatch.run.rows import Result, RowMaker
from vlmbatch.run.summary import RowStats
from vlmbatch.write import Writer

logger = logging.getLogger(__name__)

TICK_SECONDS = 1.0


class Writing:
    """What the writer thread does, and what it has counted.

    Attributes:
        engine: What the answers come from, once there is one.
        stats: The rows of this run.
        native_tiles: Tiles that the pictures so far would have taken with ``--detail native``.
        full_tiles: Tiles that they took.
    """

    def __init__(
        self,
        job: Job,
        rows: RowMaker,
        writer: Writer,
        reporter: Reporter,
        preparer: Preparer | None,
        results: Channel[Result],
    ) -> None:
        """Takes what it works with.

        Args:
            job: The job.
            rows: Makes the rows.
            writer: Takes them.
            reporter: Hears of items that are finished.
            preparer: Knows how many tiles a picture takes.
            results: What has become of questions, in any order.
        """
        self._job, self._rows, self._writer, self._reporter, self._preparer, self._results = (
            job,
            rows,
            writer,
            reporter,
            preparer,
            results,
        )
        self.engine: Engine | None = None
        self.stats = RowStats()
        self.native_tiles = self.full_tiles = 0

    def run(self) -> None:
        """Writes rows as they come, commits in time, and stops a hopeless run."""
        while not self._results.ended:
            result = self._results.get(timeout=TICK_SECONDS)
            if result is None:
                self._writer.tick()
                continue
            record = self._record(result)
            if record is None:
                continue
            self._finish(result, record)
            if result.task.original is not None and not result.task.is_similar:
                for waiting in result.task.original.answered(record):
                    self._finish(waiting, self._rows.similar(waiting, record))

    def _record(self, result: Result) -> Record | None:
        """The row of a result; None when it resembles an item that is not answered yet, and waits
        for it.
        """
        original = result.task.original
        if original is None or not result.task.is_similar:
            return self._rows.record(result, self.engine)
        found = original.records.get(result.question)
        if found is None and result.question in original.pending:
            original.waiting.setdefault(result.question, []).append(result)
            return None
        found = found or self._writer.find(original.id, self._job.task, result.question)
        if found is None:
            return self._rows.record(
                dataclasses.replace(
                    result,
                    error=ReadError(
                        f"the row of {original.id}, which it resembles, cannot be read"
                    ),
                ),
                None,
            )
        return self._rows.similar(result, found)

    def _finish(self, result: Result, record: Record) -> None:
        """Writes a row, and tells when it was the last of its item."""
        self._write_row(result, record)
        task = result.task
        task.missing -= 1
        if task.missing:
            return
        self._reporter.item(error=task.failed, kept=False, new_tokens=task.new_tokens)
        self.check_errors()

    def check_errors(self) -> None:
        """Ends a run with more errors than it may have so far.

        Raises:
            TooManyErrors: It has.
        """
        errors, items = self.stats.error_items, self.stats.items
        if errors > self._job.error_limit(items):
            raise TooManyErrors(
                f"{errors} of {items} items are errors, more than --max-errors {self._job.max_errors}"
            )

    def check_share(self, kept_items: int, kept_errors: int) -> None:
        """Says of a run that has come to its end whether too large a share of its items are errors,
        those counted in that were done before it.

        Raises:
            TooManyErrors: It is so.
        """
        errors, items = self.stats.error_items + kept_errors, self.stats.items + kept_items
        if self.stats.error_items and errors > self._job.error_limit(items, is_all=True):
            raise TooManyErrors(
                f"{errors} of {items} items are errors, more than --max-errors {self._job.max_errors}"
            )

    def _write_row(self, result: Result, record: Record) -> None:
        task = result.task
        number, _ = task.asked[result.position]
        self._writer.write(record, task.item.fingerprint, task.order + result.position, number)
        self.stats.add(dataclasses.asdict(record), new_item=task.missing == len(task.asked))
        if record.status == "error":
            if not task.failed and task.missing < len(task.asked):
                self.stats.error_items += 1  # its first row was fine
            task.failed = True
            logger.info("%s: %s: %s", record.id, record.error_type, record.error)
        task.new_tokens += record.new_tokens or 0
        if (
            self._preparer
            and self._job.per != "tile"
            and task.missing == 1
            and task.size
            and task.tiles
            and task.item.media != "clip"
        ):
            self.full_tiles += task.tiles
            self.native_tiles += self._preparer.native_tiles(*task.size)
