"""OUTPUT as a file: rows go to a journal first and are published in OUTPUT, whole and in input
order, at the end and now and then in between.

At rest OUTPUT holds the rows, and the journal beside it one short line a row: what file it was made
from. During a run the journal takes the new rows, and a row counts as kept once its line is on the
disk. Publishing writes a new OUTPUT beside the old one and puts it in its place; then the journal
is made short again. A run that is killed anywhere in between leaves rows in the journal, in OUTPUT
or in both, and as each has its key, never twice.
"""

from __future__ import annotations

import dataclasses
import logging
import os
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from vlmbatch.core import RECORD_FIELDS, Record, Status
from vlmbatch.errors import OutputError
from vlmbatch.job import Job
from vlmbatch.write.atomic import beside, reason, replacing
from vlmbatch.write.base import Writer
from vlmbatch.write.columns import Kind, Row, clean_text, common_kind, kind_of, row_of
from vlmbatch.write.formats import find_format
from vlmbatch.write.identity import check_identity, earlier_identity, joined_identity
from vlmbatch.write.journal import (
    Header,
    Journal,
    JournalScan,
    plain_json,
    replace_header,
    write_journal,
)
from vlmbatch.write.lock import OutputLock
from vlmbatch.write.previous_output import EarlierRows
from vlmbatch.write.row_index import Int64Array, RowTable, key_digest, short_digest
from vlmbatch.write.summary import write_summary

logger = logging.getLogger(__name__)

SECONDS_PER_ROW = 30e-6
"""About what publishing a row takes; the first estimate of what publishing costs."""


@dataclasses.dataclass(frozen=True)
class CommitPolicy:
    """When a store commits and publishes by itself.

    Attributes:
        rows: It commits once so many rows are waiting,
        seconds: or the first of them has waited so long.
        publish_seconds: It publishes with a commit when the last time is at least so long ago,
        publish_share: and publishing took at most this share of the time since.
    """

    rows: int = 256
    seconds: float = 10.0
    publish_seconds: float = 10.0
    publish_share: float = 0.05


class OutputStore(Writer):
    """Writes OUTPUT, and goes on with one that is there. Methods may be called from any thread.

    Args:
        output: OUTPUT; its folder is made when it is not there.
        job: Gives ``overwrite`` and ``retry_errors``; Parquet files hold it as metadata.
        identity: The settings that the rows depend on, as plain JSON values.
        policy: When to commit.
        clock: Seconds, monotonic.
        name: What messages call OUTPUT, where that is not its path.

    Attributes:
        has_published: Whether OUTPUT was written by this run.

    Raises:
        OutputLockedError: Another run holds OUTPUT.
        OutputError: OUTPUT cannot be written, was made with other settings or is not ours.
        MissingDependencyError: The format needs a package that is not installed.
    """

    def __init__(
        self,
        output: Path,
        job: Job,
        identity: Mapping[str, Any],
        *,
        policy: CommitPolicy = CommitPolicy(),
        clock: Callable[[], float] = time.monotonic,
        name: str | None = None,
    ) -> None:
        self._path = output
        self._name = name or str(output)
        self._output = Path(os.path.realpath(output))
        self._job = job
        self._identity: dict[str, Any] = plain_json(dict(identity))
        self._policy = policy
        self._clock = clock
        self._format = find_format(output)
        self._guard = threading.RLock()
        self._table = RowTable()
        self._earlier: EarlierRows | None = None
        self._kinds: dict[str, Kind | None] = dict.fromkeys(
            map(clean_text, job.kept_columns.values())
        )
        self._waiting = 0
        self._waiting_since = 0.0
        self._changed = False
        self._fingerprints_changed = False
        self._at_rest = False  # whether the journal tells all about OUTPUT
        self._failed = False
        self._closed = False
        self.has_published = False
        _make_folder(self._output)
        self._lock = OutputLock(self._output)
        try:
            self._journal_path = beside(self._output, ".journal")
            self._journal = self._open()
        except BaseException:
            self._release()
            raise
        self._stat = _stat(self._output)
        self._published_at = clock()
        self._publish_cost = len(self._table) * SECONDS_PER_ROW
        self._kinds_known = not len(self._table)

    @property
    def n_rows(self) -> int:
        """Rows that OUTPUT will have, those of earlier runs included."""
        return len(self._table)

    @property
    def path(self) -> Path:
        """OUTPUT."""
        return self._path

    def write_summary(self, summary: Mapping[str, Any]) -> None:
        """Writes the summary beside OUTPUT."""
        write_summary(self._path, summary)

    def write_known_files(self, path: Path) -> None:
        """Writes the journal that OUTPUT would have at rest, for a copy of OUTPUT elsewhere.

        Raises:
            OutputError: It cannot be written.
        """
        with self._guard:
            write_journal(path, Header(self._identity), self._table.known_files())

    def _open(self) -> Journal:
        """Learns what rows there are, refuses what is not ours to go on with, and opens the
        journal.
        """
        for path in (self._output, self._journal_path):
            beside(path, ".tmp").unlink(missing_ok=True)
        if self._job.overwrite:
            return Journal(
                self._journal_path,
                write_journal(
                    self._journal_path, Header(self._identity, base=not self._output.exists())
                ),
            )
        scan = JournalScan(self._journal_path)
        if scan.header and not scan.header.base and next(iter(scan), None) is None:
            scan.header = (
                None  # --overwrite ended before its first commit: the OUTPUT of before counts again
            )
        if (scan.header is None or scan.header.base) and self._output.exists():
            self._earlier = EarlierRows(self._output, self._format)
            first = self._earlier.first()
            if first is not None:
                there = (
                    scan.header.identity
                    if scan.header
                    else earlier_identity(self._path, first, self._identity)
                )
                check_identity(self._name, there, self._identity)
                self._identity = plain_json(joined_identity(there, self._identity))
        self._load(scan)
        if scan.header is None or not len(self._table):
            return Journal(
                self._journal_path, write_journal(self._journal_path, Header(self._identity))
            )
        check_identity(self._name, scan.header.identity, self._identity)
        self._identity = plain_json(joined_identity(scan.header.identity, self._identity))
        if self._identity == scan.header.identity:
            return Journal(self._journal_path, scan.end)
        # Another task's settings join those of the header, which grows by it.
        grown = replace_header(
            self._journal_path, dataclasses.replace(scan.header, identity=self._identity)
        )
        self._table.shift_places(grown)
        return Journal(self._journal_path, scan.end + grown)

    def _load(self, scan: JournalScan) -> None:
        """Learns what rows there are: from the journal alone when OUTPUT is the file that it means,
        otherwise from both.
        """
        meant = scan.header.output if scan.header and self._earlier else None
        if self._earlier and meant and meant[:-1] == _stat(self._output):
            self._at_rest = True
            self._earlier.count = self._read_journal(scan)
            if self._earlier.count == meant[-1] and not scan.is_damaged:
                return
            self._table, self._earlier.count, self._at_rest = (
                RowTable(),
                0,
                False,
            )  # lines are missing, damaged or there twice
        if self._earlier:
            self._earlier.scan(self._table)
        self._read_journal(scan)

    def _read_journal(self, scan: JournalScan) -> int:
        """Adds what the journal knows; gives the number of rows that it says stand in OUTPUT. If
        OUTPUT is another one, what it does not have is gone.
        """
        standing = 0
        for entry in scan:
            if entry.place >= 0:
                place = entry.place
                self._changed = True
            elif self._at_rest:
                if self._table.number(entry.key) is not None:
                    return -1
                place = -1 - standing
                standing += 1
            else:
                number = self._table.number(entry.key)
                if number is not None:
                    self._table.set_file(number, entry.source, entry.fingerprint)
                continue
            self._table.put(
                entry.key,
                place=place,
                index=entry.row_index,
                status=entry.status,
                question=entry.question,
                source=entry.source,
                fingerprint=entry.fingerprint,
            )
        return standing

    def done(
        self, id: str, task: str, prompt: str, source: str = "", fingerprint: str = ""
    ) -> bool:
        """Whether the row is there, its file is the same as far as is known, and it is no error
        that is to be done again.
        """
        digest = short_digest(fingerprint)
        with self._guard:
            number = self._table.number(key_digest(id, task, prompt))
            if number is None or (self._job.retry_errors and self._table.is_error(number)):
                return False
            known = self._table.fingerprint(number)
            if digest and not known and self._table.is_error(number):
                return False  # there was no file then, and there is one now
            if digest and not known:
                self._table.set_file(number, short_digest(source), digest)
                self._fingerprints_changed = True
            return not (digest and known and digest != known)

    def keep(self, id: str, task: str, prompt: str, index: int, question: int = 0) -> Status | None:
        """Gives a row of an earlier run its place in this run's input order; gives its status."""
        with self._guard:
            number = self._table.number(key_digest(id, task, prompt))
            if number is None:
                return None
            if self._table.move(number, index, question):
                self._changed = True
            return "error" if self._table.is_error(number) else "ok"

    def find(self, id: str, task: str, prompt: str) -> Record | None:
        """Reads a row back, from the journal or from the OUTPUT of before."""
        with self._guard:
            number = self._table.number(key_digest(id, task, prompt))
            if number is None:
                return None
            place = self._table.place(number)
            row = (
                self._journal.read(place)
                if place >= 0
                else self._earlier.row(-1 - place)
                if self._earlier
                else None
            )
            return None if row is None else Record(**row)

    def totals(self) -> dict[str, int]:
        """Rows and error rows that OUTPUT has in all."""
        with self._guard:
            return {"rows": len(self._table), "errors": self._table.errors()}

    def write(
        self, record: Record, fingerprint: str = "", order: int | None = None, question: int = 0
    ) -> None:
        """Takes a record; ``order`` does not matter here, as rows are sorted by index."""
        row = row_of(record)
        key, source, digest = (
            key_digest(*record.key),
            short_digest(row["source"]),
            short_digest(fingerprint),
        )
        with self._guard:
            self._check_open()
            place = self._journal.append(key, source, digest, question, row)
            self._table.put(
                key,
                place=place,
                index=row["index"],
                status=row["status"],
                question=question,
                source=source,
                fingerprint=digest,
                seen=True,
            )
            self._learn_kinds(row)
            self._changed = True
            if not self._waiting:
                self._waiting_since = self._clock()
            self._waiting += 1
            self.tick()

    def tick(self) -> None:
        """Commits when enough rows have waited, or one has waited long enough."""
        with self._guard:
            if self._waiting and (
                self._waiting >= self._policy.rows
                or self._clock() - self._waiting_since >= self._policy.seconds
            ):
                self.commit()

    def commit(self) -> None:
        """Makes the rows taken so far durable, and publishes when that is due."""
        with self._guard:
            self._check_open()
            try:
                self._journal.commit()
            except OutputError:
                self._failed = True
                raise
            self._waiting = 0
            since = self._clock() - self._published_at
            if (
                self._changed
                and since >= self._policy.publish_seconds
                and self._publish_cost <= self._policy.publish_share * since
            ):
                self._publish_now_and_then()

    def close(self, *, finished: bool = True) -> None:
        """Commits, publishes what is new, makes the journal short and lets go of OUTPUT. After a
        failure it only lets go.
        """
        with self._guard:
            if self._closed:
                return
            try:
                if not self._failed:
                    self._finish(finished)
            finally:
                self._closed = True
                self._journal.close()
                self._release()

    def _finish(self, finished: bool) -> None:
        self._journal.commit()
        if not finished and not len(self._table):
            self._journal_path.unlink()
            return
        self._drop_outdated()
        order = self._table.in_order()
        published = self._changed or not self._output.exists() or not self._is_as_it_was(order)
        if published:
            try:
                self._publish(order)
            except OutputError as error:
                raise OutputError(
                    f"{error}; what was finished is kept in {self._journal_path.name}, and the same command goes on from there"
                ) from error
        if published or self._fingerprints_changed or not self._at_rest:
            header = Header(self._identity, output=self._stat and (*self._stat, len(order)))
            write_journal(self._journal_path, header, self._table.known_files())

    def _drop_outdated(self) -> None:
        """Takes out rows about what a changed file no longer holds: frames of the video that it
        was, or the error that it had as a whole.
        """
        outdated, current = self._table.outdated()
        if not len(outdated):
            return
        ids = {row["id"] for row in self._rows(current)}
        gone = [
            int(number)
            for number, row in zip(outdated, self._rows(outdated), strict=True)
            if row["id"] not in ids
        ]
        if gone:
            logger.info(
                "%s: %d rows about what changed files no longer hold are left out",
                self._name,
                len(gone),
            )
            self._table.drop(gone)
            self._changed = True

    def _is_as_it_was(self, order: Int64Array) -> bool:
        """Whether OUTPUT already holds exactly the rows of the table, in their order."""
        if self._earlier is None or self._earlier.count != len(order):
            return False
        places = self._table.places()[order]
        return bool(np.array_equal(-1 - places, np.arange(len(order))))

    def _publish_now_and_then(self) -> None:
        """Publishes for readers that do not want to wait; a failure is no harm, as the journal has
        the rows.
        """
        begun = self._clock()
        try:
            self._publish(self._table.in_order())
            self._changed = False
        except OutputError as error:
            logger.warning(
                "%s; the run goes on, the rows are kept in %s", error, self._journal_path.name
            )
        self._published_at = self._clock()
        self._publish_cost = self._published_at - begun

    def _publish(self, order: Int64Array) -> None:
        """Puts a new OUTPUT with every row in the place of the old one."""
        if _stat(self._output) != self._stat:
            logger.warning(
                "%s was changed by another program during the run; its changes are replaced",
                self._name,
            )
        with replacing(self._output) as file:
            self._format.write_rows(
                file, self._rows(order), self._job.to_dict(credentials=False), self._carried(order)
            )
        self._stat = _stat(self._output)
        self.has_published = True

    def _carried(self, order: Int64Array) -> dict[str, Kind]:
        """The carried columns with kinds that every row fits into; those of rows from before this
        run are looked at once.
        """
        if self._kinds and not self._kinds_known:
            for row in self._rows(order):
                self._learn_kinds(row)
            self._kinds_known = True
        return {name: kind or "string" for name, kind in self._kinds.items()}

    def _learn_kinds(self, row: Row) -> None:
        for name, kind in self._kinds.items():
            self._kinds[name] = common_kind(kind, kind_of(row.get(name)))

    def _rows(self, order: Int64Array) -> Iterator[Row]:
        """The rows, from the journal and from the OUTPUT of before."""
        columns = dict.fromkeys((*RECORD_FIELDS, *self._kinds))
        places = self._table.places()[order]
        earlier = self._earlier.rows(-1 - places[places < 0]) if self._earlier else iter(())
        for number, place in zip(order, places, strict=True):
            row = next(earlier) if place < 0 else self._journal.read(int(place))
            row["index"] = self._table.index(number)
            yield row if row.keys() == columns else {name: row.get(name) for name in columns}

    def _check_open(self) -> None:
        if self._failed or self._closed:
            raise OutputError(
                f"{self._name} takes no more rows: writing to it has failed"
                if self._failed
                else f"{self._name} is closed"
            )

    def _release(self) -> None:
        if self._earlier is not None:
            self._earlier.close()
        self._lock.release()


def _make_folder(output: Path) -> None:
    """Makes the folder of OUTPUT, and checks that OUTPUT is none itself."""
    if output.is_dir():
        raise OutputError(f"cannot write {output}: it is a folder")
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
    except FileExistsError as error:
        raise OutputError(f"cannot write {output}: {output.parent} is no folder") from error
    except OSError as error:
        raise OutputError(f"cannot write {output}: {reason(error)}") from error


def _stat(path: Path) -> tuple[int, int, int] | None:
    """What another file, or another content, would change."""
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_ino, found.st_size, found.st_mtime_ns
