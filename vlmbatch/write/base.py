"""The contract of a writer."""

from __future__ import annotations

import abc
import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from vlmbatch.core import Record, Status
from vlmbatch.errors import OutputError

logger = logging.getLogger(__name__)


class Writer(abc.ABC):
    """Takes records. What ``commit`` returned for survives ``kill -9``.

    A context manager: leaving the block closes the writer, so that what was finished is kept also
    when the run failed.
    """

    @abc.abstractmethod
    def write(
        self,
        record: Record,
        fingerprint: str = "",
        order: int | None = None,
        question: int = 0,
        *,
        content: str = "",
    ) -> None:
        """Take a record. A row with the same id, task and prompt is replaced. Commits now and then
        by itself.

        Args:
            record: The row.
            fingerprint: The item's; a later run with another one does the row again, unless the
                content is the same.
            order: The row's place among this run's rows, from 0 without a gap, for streams. None:
                as it comes.
            question: The question's place among those about the item.
            content: Digest of the content of the item's file.

        Raises:
            OutputError: The rows taken cannot be kept. Rows committed before stay good.
        """

    @abc.abstractmethod
    def commit(self) -> None:
        """Make every row taken so far durable.

        Raises:
            OutputError: As for ``write``.
        """

    @abc.abstractmethod
    def close(self, *, finished: bool = True) -> None:
        """Commit and finish the output. May be called again.

        Args:
            finished: Whether the run came to its end. If it did not, an earlier output is not
                replaced by one without rows.

        Raises:
            OutputError: As for ``write``.
        """

    def name_questions(self, names: Mapping[str, str]) -> None:
        """Give rows of earlier runs the names that questions have now, where rows can be read
        back. Called once, before anything else.
        """
        return

    @property
    def path(self) -> Path | None:
        """The file of this disk that has the rows once the writer is closed; None where there is
        none.
        """
        return None

    def write_summary(self, summary: Mapping[str, Any], *, replace: bool = True) -> None:
        """Write ``OUTPUT.summary.json``, where the output is a file. May be called after ``close``.

        Args:
            summary: Plain values.
            replace: Whether it takes the place of one that is there.

        Raises:
            OutputError: It cannot be written.
        """
        return

    def add_run(self, run: Mapping[str, Any]) -> None:
        """Add a line to ``OUTPUT.runs.jsonl``, where there is an OUTPUT. May be called after
        ``close``.

        Args:
            run: Plain values.

        Raises:
            OutputError: It cannot be written.
        """
        return

    def tick(self) -> None:
        """Commit when that is due. Called about once a second, so that rows do not wait for the
        next one to be committed.
        """
        return

    def done(
        self,
        id: str,
        task: str,
        prompt: str,
        source: str = "",
        fingerprint: str = "",
        digest: Callable[[], str] | None = None,
    ) -> bool:
        """Return whether the row is there from an earlier run and need not be done again.

        Args:
            id, task, prompt: The row's.
            source: The item's file.
            fingerprint: The file's.
            digest: Returns the digest of the file's content; called when the fingerprint differs.
        """
        return False

    def keep(self, id: str, task: str, prompt: str, index: int, question: int = 0) -> Status | None:
        """State that a row that is done belongs to this run's items, at this place in input order.
        Returns its status.
        """
        return None

    def find(self, id: str, task: str, prompt: str) -> Record | None:
        """Return a row that is done; None where rows cannot be read back."""
        return None

    def is_seen(self, id: str, task: str, prompt: str) -> bool:
        """Return whether a row was written or kept by this run, where rows can be read back. May be
        called after ``close``.
        """
        return False

    @property
    def num_uncommitted(self) -> int:
        """Number of rows taken that are not known to be durable."""
        return 0

    def totals(self) -> dict[str, int]:
        """Return the number of rows and of error rows, those of earlier runs included; nothing
        where that is not known.
        """
        return {}

    def edited(self) -> int:
        """Return the number of rows of earlier runs whose text was edited in OUTPUT: they are kept,
        whatever their files are now.
        """
        return 0

    def other_files(self) -> dict[str, Any]:
        """Return the number and an example of the files that have the id of another one: those
        whose rows were ``replaced``, and those for which an edited text was ``kept``. Nothing where
        that is not known.
        """
        return {}

    def gone(self, *, prune: bool) -> dict[str, Any]:
        """Find the rows of earlier runs whose sources are gone. Called after the last row, before
        ``close``.

        Args:
            prune: Whether they are removed; edited ones stay.

        Returns:
            The number of ``rows``, of ``edited`` ones beside them, of ``files``, and whether the
            rows were ``pruned``; nothing where that is not known.

        Raises:
            OutputError: Rows cannot be read back.
        """
        return {}

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if error is None:
            self.close()
            return
        try:
            self.close(finished=False)
        except OutputError as second:
            logger.error("%s", second)
