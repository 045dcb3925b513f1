"""Results: make rows of them, give similar frames their answers, and stop a hopeless run."""

from __future__ import annotations

import dataclasses

from vlmbatch.core import Record
from vlmbatch.engine import Engine
from vlmbatch.engine.queue import Channel
from vlmbatch.errors import ReadError, TooManyErrors
from vlmbatch.job import OutputOptions
from vlmbatch.run.events import event, events
from vlmbatch.run.record import RecordMaker
from vlmbatch.run.reporter import Reporter
from vlmbatch.run.summary import RowStats
from vlmbatch.run.task import Progress, Result
from vlmbatch.write import Writer

TICK_SECONDS = 1.0


class Results:
    """The work of the writer thread, and its counts.

    Attributes:
        engine: The engine that answers, once it is open.
        stats: The rows of this run.
        full_tiles: Tiles that the pictures so far took with full detail.
        native_tiles: Tiles that they would have taken with native detail.
        low_tiles: Tiles that they would have taken with low detail: one each.
        items_answered: Items that came through the engine and have all their rows.
    """

    def __init__(
        self,
        options: OutputOptions,
        maker: RecordMaker,
        writer: Writer,
        reporter: Reporter,
        results: Channel[Result],
    ) -> None:
        """Set up with a run's parts.

        Args:
            options: The error limit.
            maker: Makes the rows.
            writer: Writes them.
            reporter: Is told of finished items.
            results: Results of questions, in any order.
        """
        self._options, self._maker, self._writer = options, maker, writer
        self._reporter, self._results = reporter, results
        self._progress: dict[int, Progress] = {}
        self.engine: Engine | None = None
        self.stats = RowStats()
        self.native_tiles = self.low_tiles = self.full_tiles = self.items_answered = 0

    def run(self) -> None:
        """Write rows as they come, commit regularly, and stop a hopeless run."""
        while not self._results.ended:
            result = self._results.get(timeout=TICK_SECONDS)
            if result is None:
                self._writer.tick()
                continue
            record = self._record(result)
            if record is None:
                continue
            self._finish(result, record)
            original = result.task.original
            if original is not None and not result.task.is_similar:
                for waiting in original.answered(record):
                    self._finish(waiting, self._maker.similar(waiting, record))

    def check_share(self) -> None:
        """Check the share of error items of a finished run.

        Raises:
            TooManyErrors: It is above the limit.
        """
        errors, items = self.stats.error_items, self.stats.items
        if errors > self._options.error_limit(items, is_all=True):
            raise self._too_many(errors, items)

    def _record(self, result: Result) -> Record | None:
        """Make the row of a result; None if it waits for the answer of a similar item."""
        original = result.task.original
        if original is None or not result.task.is_similar:
            return self._maker.record(result, self.engine)
        found = original.records.get(result.question)
        if found is None and result.question in original.pending:
            original.waiting.setdefault(result.question, []).append(result)
            return None
        found = found or self._writer.find(original.id, self._maker.task, result.question)
        if found is None:
            error = ReadError(f"the row of {original.id}, which it resembles, cannot be read")
            return self._maker.record(dataclasses.replace(result, error=error), None)
        return self._maker.similar(result, found)

    def _finish(self, result: Result, record: Record) -> None:
        """Write a row, and report its item after the last one."""
        task = result.task
        progress = self._progress.setdefault(task.order, Progress(len(task.asked)))
        self._write_row(result, record, progress)
        if progress.missing:
            return
        del self._progress[task.order]
        self.items_answered += result.completion is not None
        self._add_tiles(result)
        self._reporter.item(error=progress.failed, kept=False, new_tokens=progress.new_tokens)
        errors, items = self.stats.error_items, self.stats.items
        if errors > self._options.error_limit(items):
            raise self._too_many(errors, items)

    def _write_row(self, result: Result, record: Record, progress: Progress) -> None:
        task = result.task
        number, _ = task.asked[result.position]
        self._writer.write(
            record,
            task.item.fingerprint,
            task.order + result.position,
            number,
            content=result.loaded.content,
        )
        is_first = progress.missing == len(task.asked)
        self.stats.add(record, new_item=is_first)
        if record.status == "error":
            if not progress.failed and not is_first:
                self.stats.error_items += 1  # its first row was fine
            progress.failed = True
            events.info(
                "%s: %s: %s",
                *(record.id, record.error_type, record.error),
                extra=event(
                    "item_error",
                    id=record.id,
                    source=record.source,
                    prompt=record.prompt,
                    error_type=record.error_type,
                    error=record.error,
                ),
            )
        progress.new_tokens += record.new_tokens or 0
        progress.missing -= 1

    def _add_tiles(self, result: Result) -> None:
        loaded = result.loaded
        if loaded.tiles and loaded.native_tiles is not None:
            self.full_tiles += loaded.tiles
            self.native_tiles += loaded.native_tiles
            self.low_tiles += 1

    def _too_many(self, errors: int, items: int) -> TooManyErrors:
        return TooManyErrors(
            f"{errors} of {items} items are errors, "
            f"more than --max-errors {self._options.max_errors}"
        )
