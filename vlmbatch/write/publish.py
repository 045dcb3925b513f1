"""Publishing: a new OUTPUT with every row takes the place of the old one."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from vlmbatch.core import RECORD_FIELDS
from vlmbatch.job import Job
from vlmbatch.job.questions import QUESTION_NAME
from vlmbatch.write.atomic import file_state, replacing
from vlmbatch.write.columns import Kind, Row, clean_text, common_kind, kind_of
from vlmbatch.write.formats import Format
from vlmbatch.write.known.known_rows import KnownRows
from vlmbatch.write.known.row_index import Int64Array

logger = logging.getLogger(__name__)


class Publisher:
    """Writes OUTPUT, whole or not at all.

    Args:
        output: OUTPUT, without symbolic links.
        format: How it is written.
        job: Stands in the metadata of Parquet files, and names the carried columns.
        known: The rows.
        name: Name of OUTPUT in messages.

    Attributes:
        state: What another OUTPUT, or another content, would change; None when there is none.
        has_published: Whether this run has written OUTPUT.
    """

    def __init__(self, output: Path, format: Format, job: Job, known: KnownRows, name: str) -> None:
        self._output, self._format, self._job = output, format, job
        self._known, self._name = known, name
        self._kinds: dict[str, Kind | None] = dict.fromkeys(
            map(clean_text, job.kept_columns.values())
        )
        self._names: Mapping[str, str] = {}
        self._knows_old_kinds = not len(known)
        self.state = file_state(output)
        self.has_published = False

    def learn(self, row: Row) -> None:
        """Note what a row of this run has in the carried columns."""
        for name, kind in self._kinds.items():
            self._kinds[name] = common_kind(kind, kind_of(row.get(name)))

    def name_questions(self, names: Mapping[str, str]) -> None:
        """Give every row the name that its question has now."""
        self._names = names
        if names:
            self._kinds.setdefault(QUESTION_NAME, "string")

    def has_name(self, prompt: str, extra: Mapping[str, Any]) -> bool:
        """Return whether the further columns of a row have the name of its question."""
        return extra.get(QUESTION_NAME) == self._names.get(prompt)

    def _named(self, rows: Iterator[Row]) -> Iterator[Row]:
        for row in rows:
            if row["prompt"] in self._names:
                row[QUESTION_NAME] = self._names[row["prompt"]]
            yield row

    def publish(self, order: Int64Array) -> None:
        """Write the rows with these numbers.

        Raises:
            OutputError: They cannot be written; OUTPUT is as it was.
        """
        was_changed = file_state(self._output) != self.state
        if not self._known.extras.keys() <= self._kinds.keys():
            self._kinds = {**self._kinds, **self._known.extras}
            self._knows_old_kinds = False
        columns = (*RECORD_FIELDS, *self._kinds)
        if self._kinds and not self._knows_old_kinds:
            for row in self._known.rows(order, columns):
                self.learn(row)
            self._knows_old_kinds = True
        extra: dict[str, Kind] = {name: kind or "string" for name, kind in self._kinds.items()}
        with replacing(self._output) as file:
            rows = self._named(self._known.rows(order, columns))
            self._format.write_rows(file, rows, self._job.to_dict(credentials=False), extra)
        self.state = file_state(self._output)
        self.has_published = True
        if was_changed:
            logger.warning(
                "%s was changed by another program during the run; its changes are replaced",
                self._name,
            )
