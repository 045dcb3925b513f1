"""The rows of an OUTPUT during a run: those of earlier runs and of this one."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple, TypeAlias

import numpy as np

from vlmbatch.errors import OutputError
from vlmbatch.write.columns import GOOD, SETTINGS, TEXT_ORIGINAL, Row
from vlmbatch.write.journal import EDITED, JournalLine
from vlmbatch.write.known import redo as redoing
from vlmbatch.write.known.other_files import OtherFileOutcome
from vlmbatch.write.known.row_index import key_digest, short_digest, text_digest
from vlmbatch.write.known.stored_rows import StoredRows
from vlmbatch.write.records import file_name
from vlmbatch.write.sources import is_other_file

logger = logging.getLogger(__name__)

CorrectionOutcome: TypeAlias = Literal["corrected", "replaced", "same", "kept"]
"""``replaced``: it took the place of another correction. ``same``: OUTPUT has this text.
``kept``: it is a text of vlmbatch, which corrects nothing, and OUTPUT has another one.
"""

RowState: TypeAlias = Literal["new", "done", "touched", "changed", "other"]
"""State of a row at the beginning of a run. ``touched``: its file has another size or time, and
only its content tells whether it has changed. ``other``: the same, and its text was edited, which
stays; but another file may have its id now.
"""


class Gone(NamedTuple):
    """Rows whose sources are gone.

    Attributes:
        rows: Their number, without edited ones.
        edited: Number of those whose text was edited.
        files: Number of their sources.
        pruned: Whether ``rows`` were taken out.
    """

    rows: int = 0
    edited: int = 0
    files: int = 0
    pruned: bool = False


class KnownRows(StoredRows):
    """The rows as a run takes them: tells which are done, takes those of this run, and leaves out
    what changed files no longer hold. Arguments are those of ``StoredRows``.
    """

    def state(
        self,
        id: str,
        task: str,
        prompt: str,
        source: str,
        fingerprint: str,
        *,
        retry_errors: bool,
    ) -> RowState:
        """Return the state of a row, by the size and time of its file."""
        digest = short_digest(fingerprint)
        number = self._index.number(key_digest(id, task, prompt))
        if number is None:
            return "new"
        known, is_error = self._index.fingerprint(number), self._index.is_error(number)
        if retry_errors and is_error:
            return "changed"
        if not digest or digest == known:
            return "done"
        if self._index.is_edited(number):
            if self._other_file(number, (id, task, prompt), source) is not None:
                return "other"
            self._set_file(number, source, digest, 0)
            return "done"
        if not known:
            if is_error:
                return "changed"  # there was no file then, and there is one now
            self._set_file(number, source, digest, 0)
            return "done"
        return "touched" if self._index.content(number) else "changed"

    def has_content(
        self, id: str, task: str, prompt: str, source: str, fingerprint: str, content: str
    ) -> bool:
        """Return whether a row was made from this content, and remember the file's new state."""
        number = self._index.number(key_digest(id, task, prompt))
        if number is None or self._index.content(number) != short_digest(content):
            return False
        self._set_file(number, source, short_digest(fingerprint), self._index.content(number))
        return True

    def note_other_file(
        self, id: str, task: str, prompt: str, source: str, outcome: OtherFileOutcome
    ) -> None:
        """Note when a row is another file's, which is still there.

        Args:
            id, task, prompt: The row's.
            source: The file that has its id now.
            outcome: What becomes of the row.
        """
        name, number = file_name(id), self._index.number(key_digest(id, task, prompt))
        if number is None or self.other_files.has(outcome, name):
            return
        was = self._other_file(number, (id, task, prompt), source)
        if was is not None:
            self.other_files.note(outcome, name, was, source)

    def _other_file(self, number: int, key: tuple[str, str, str], source: str) -> str | None:
        """Return the source of a row when it is another file; else None."""
        if self._index.source(number) == short_digest(source):
            return None
        try:
            record = self.find(*key)
        except OutputError:  # no room to look a row up: this is worth a line, and not the run
            return None
        return record.source if record and is_other_file(record.source, source) else None

    def _set_file(self, number: int, source: str, fingerprint: int, content: int) -> None:
        self._index.set_file(number, short_digest(source), fingerprint, content)
        self.is_described = False

    def keep(self, id: str, task: str, prompt: str, index: int, question: int) -> bool | None:
        """Give a row of an earlier run its place in this run's input order.

        Returns:
            Whether it is an error row; None when there is no such row.
        """
        number = self._index.number(key_digest(id, task, prompt))
        if number is None:
            return None
        if self._index.move(number, index, question):
            self.is_changed = True
        return self._index.is_error(number)

    def is_seen(self, id: str, task: str, prompt: str) -> bool:
        """Return whether the row belongs to this run's items."""
        number = self._index.number(key_digest(id, task, prompt))
        return number is not None and self._index.is_seen(number)

    def edited(self) -> int:
        """Return the number of rows of earlier runs whose text was edited."""
        return self._index.edited()

    def add(self, row: Row, fingerprint: str, question: int, content: str) -> None:
        """Take a row of this run; it is in memory until the journal commits."""
        line = JournalLine(
            key_digest(row["id"], row["task"], row["prompt"]),
            short_digest(row["source"]),
            short_digest(fingerprint),
            row_index=row["index"],
            question=question,
            status=row["status"],
            content=short_digest(content),
            text=text_digest(row["text"]),
            settings=self._own_settings(row["task"]),
        )
        if line.settings:
            row[SETTINGS] = redoing.describe(self._here, row["task"])
            self.extras[SETTINGS] = None
        self._index.put(line, self.journal.append(line, row), seen=True)
        self.is_changed = True

    def correct(
        self, id: str, task: str, prompt: str, text: str, *, is_ours: bool
    ) -> CorrectionOutcome:
        """Put a person's text in the place of a row's.

        Args:
            id, task, prompt: The row's.
            text: The text.
            is_ours: Whether vlmbatch wrote it, so that it is no correction. The model's own text
                of an edited row never is one.
        """
        key = key_digest(id, task, prompt)
        number = self._index.number(key)
        if number is None:
            return "kept"
        [row] = self._read_rows(np.array([number]))
        if text_digest(row["text"]) == text_digest(text):
            return "same"
        is_edited = self._index.is_edited(number)
        if is_ours or (is_edited and self._index.text(number) == text_digest(text)):
            return "kept"
        if not is_edited:  # else the model's text is kept already, or lost
            row[TEXT_ORIGINAL] = row["text"]
        row |= {"text": text, **(GOOD if row["status"] == "error" else {})}
        facts = self._index.facts(number)
        line = JournalLine(key, row_index=row["index"], status=EDITED, **facts)
        self._index.put(line, self.journal.append(line, row))
        self.extras[TEXT_ORIGINAL] = None
        self.is_changed = True
        return "replaced" if is_edited else "corrected"

    def _own_settings(self, task: str) -> int:
        """Return the digest of this run's settings; 0 when they are those of the identity."""
        return redoing.own_settings(self._here, self.identity, task) if self._redo else 0

    def chosen(self, redo: Sequence[str], task: str) -> frozenset[bytes]:
        """Return the keys of the rows of a task that are to be asked about again."""
        is_chosen, own = redoing.make_choice(redo), self._own_settings(task)
        order, found = self.in_order(), []
        columns = ("id", "task", "prompt", "finish_reason", "error_type", "mean_logprob")
        for number, row in zip(order.tolist(), self.rows(order, columns), strict=True):
            facts = redoing.KnownFacts(
                self._index.is_error(number),
                self._index.is_edited(number),
                self._index.settings(number) != own,
            )
            if row["task"] == task and is_chosen(row, facts):
                found.append(key_digest(row["id"], row["task"], row["prompt"]))
        return frozenset(found)

    def settle(self, task: str, *, is_whole: bool) -> None:
        """Make this run's settings those of OUTPUT, once nothing else is left.

        Args:
            task: The task.
            is_whole: Whether every row of other settings was asked about again.
        """
        own = self._own_settings(task)
        if own and (is_whole or self._index.has_only(own)):
            old = redoing.settings_digest(self.identity, task)
            self._index.settle_settings(old, own=own)
            self.identity = redoing.with_tasks(self._here, self.identity, self._here)
            self.is_described = False

    def drop_outdated(self) -> None:
        """Take out rows about what a changed file no longer holds: frames of the video that it
        was, or the error that it had as a whole.
        """
        outdated, current = self._index.outdated()
        if not len(outdated):
            return
        ids = {row["id"] for row in self._read_rows(current)}
        gone = [
            int(number)
            for number, row in zip(outdated, self._read_rows(outdated), strict=True)
            if row["id"] not in ids
        ]
        if gone:
            message = "%s: %d rows about what changed files no longer hold are left out"
            logger.info(message, self._name, len(gone))
            self._index.drop(gone)
            self.is_changed = True

    def gone(self, is_gone: Callable[[str], bool], *, prune: bool) -> Gone:
        """Find the rows that this run has not seen and whose sources are gone.

        Args:
            is_gone: Tells that of a source.
            prune: Whether they are taken out; edited ones stay.
        """
        unseen = self._index.unseen()
        if not len(unseen):
            return Gone()
        sources: dict[str, bool] = {}
        rows, files, edited = [], set[str](), 0
        for number, row in zip(unseen.tolist(), self._read_rows(unseen), strict=True):
            source = row["source"]
            if source not in sources:
                sources[source] = is_gone(source)
            if not sources[source]:
                continue
            files.add(source)
            if self._index.is_edited(number):
                edited += 1
            else:
                rows.append(number)
        if prune and rows:
            self._index.drop(rows)
            self.is_changed = True
        return Gone(len(rows), edited, len(files), prune and bool(rows))
