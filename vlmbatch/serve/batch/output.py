"""OUTPUT of ``batch``: a line a request, with the journal, lock and order of every OUTPUT.

During a run the journal beside OUTPUT takes the new lines. Publishing writes OUTPUT anew and puts
it in its place; then the journal is made short: for each line of OUTPUT the digest of the request
that it answers. A run that is killed in between leaves lines in the journal, in OUTPUT, or in both;
each has its key, so none is there twice.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO, Any

from vlmbatch.errors import OutputError
from vlmbatch.write.atomic import beside, reason, remove, replacing
from vlmbatch.write.identity import check_identity
from vlmbatch.write.journal import (
    Header,
    Journal,
    JournalLine,
    JournalScan,
    plain_json,
    write_journal,
)
from vlmbatch.write.jsonl import decode, encode
from vlmbatch.write.known.row_index import key_digest, short_digest
from vlmbatch.write.lock import OutputLock
from vlmbatch.write.place import resolve_output

COMMIT_LINES = 256
COMMIT_SECONDS = 10.0
"""A commit comes after so many lines, or so long after the first of them."""

TASK = "batch"


@dataclasses.dataclass(slots=True)
class _Known:
    """A line that is there: in the journal at ``place``, or in OUTPUT at ``-1 - place``."""

    place: int
    is_error: bool
    digest: int = 0
    index: int | None = None


class BatchOutput:
    """Takes the lines of a run, and knows those of earlier ones. One thread uses it.

    Attributes:
        identity: The settings that answers depend on.
    """

    def __init__(self, output: Path, identity: Mapping[str, Any], *, overwrite: bool) -> None:
        """Open OUTPUT, or go on with it.

        Args:
            output: OUTPUT.
            identity: The settings that answers depend on.
            overwrite: Whether the lines that are there do not count.

        Raises:
            JobError: OUTPUT is a pipe or a device, or its name is too long.
            OutputLockedError: Another run holds it.
            OutputError: It cannot be read or written, or was made with other settings.
        """
        self._output = resolve_output(output, str(output))
        self._journal_path = beside(self._output, ".journal")
        self.identity: dict[str, Any] = plain_json(dict(identity))
        self._lock = OutputLock(self._output, str(output))
        self._known: dict[bytes, _Known] = {}
        self._offsets: list[int] = []
        self._old: IO[bytes] | None = None
        self._waiting, self._waiting_since, self._is_changed = 0, 0.0, False
        try:
            for path in (self._output, self._journal_path):
                remove(beside(path, ".tmp"))  # of a run that was killed
            self._journal = self._start() if overwrite else self._resume()
        except BaseException:
            self._let_go()
            raise

    @property
    def has_answers(self) -> bool:
        """True if lines of earlier runs count."""
        return bool(self._known)

    def is_done(self, custom_id: str, line: str, *, retry_errors: bool) -> bool:
        """Return whether a request has its answer, from an earlier run.

        Args:
            custom_id: Its id.
            line: The request as it stands in the file; another text is asked again.
            retry_errors: Whether an error is no answer.
        """
        known = self._known.get(key_digest(custom_id, TASK, ""))
        if known is None or (retry_errors and known.is_error):
            return False
        return not known.digest or known.digest == short_digest(line)

    def keep(self, custom_id: str, line: str, index: int) -> bool:
        """Give an answer of an earlier run its place. Return whether it is an error."""
        known = self._known[key_digest(custom_id, TASK, "")]
        known.digest, known.index = short_digest(line), index
        return known.is_error

    def write(self, custom_id: str, line: str, index: int, row: Mapping[str, Any]) -> None:
        """Take an answer; commits now and then by itself.

        Args:
            custom_id: Id of the request.
            line: The request.
            index: Its place in the file.
            row: The line of OUTPUT.

        Raises:
            OutputError: It cannot be kept.
        """
        key, digest, is_error = key_digest(custom_id, TASK, ""), short_digest(line), _is_error(row)
        status = "error" if is_error else "ok"
        entry = JournalLine(key, 0, digest, row_index=index, status=status)
        place = self._journal.append(entry, dict(row))
        self._known[key] = _Known(place, is_error, digest, index)
        self._is_changed = True
        if not self._waiting:
            self._waiting_since = time.monotonic()
        self._waiting += 1
        self.tick()

    def tick(self) -> None:
        """Commit when that is due."""
        waited = time.monotonic() - self._waiting_since
        if self._waiting and (self._waiting >= COMMIT_LINES or waited >= COMMIT_SECONDS):
            self.commit()

    def commit(self) -> None:
        """Make the lines taken so far durable.

        Raises:
            OutputError: They cannot be written; those committed before stay good.
        """
        self._journal.commit()
        self._waiting = 0

    def close(self) -> None:
        """Commit, publish what is new, make the journal short and let go of OUTPUT.

        Raises:
            OutputError: OUTPUT cannot be written; the journal keeps the lines.
        """
        try:
            self.commit()
            order = self._in_order()
            if not order:
                remove(self._journal_path)
                return
            places = [known.place for _, known in order]
            is_as_it_was = places == [-1 - number for number in range(len(self._offsets))]
            if self._is_changed or not is_as_it_was:
                with replacing(self._output) as file:
                    for _, known in order:
                        file.write(self._line(known))
            lines = (
                JournalLine(
                    key,
                    0,
                    known.digest,
                    row_index=number,
                    status="error" if known.is_error else "ok",
                )
                for number, (key, known) in enumerate(order)
            )
            write_journal(self._journal_path, Header(self.identity), lines)
        finally:
            self._let_go()

    def _let_go(self) -> None:
        if self._old is not None:
            self._old.close()
        if hasattr(self, "_journal"):
            self._journal.close()
        self._lock.release()

    def _start(self) -> Journal:
        """Begin a journal that does not count OUTPUT."""
        header = Header(self.identity, base=not self._output.exists())
        return Journal(self._journal_path, write_journal(self._journal_path, header))

    def _resume(self) -> Journal:
        scan = JournalScan(self._journal_path)
        lines = list(scan)
        if scan.header is not None and not scan.header.base and not lines:
            scan.header = None  # --overwrite ended before its first commit
        if self._output.exists() and (scan.header is None or scan.header.base):
            self._read_output()
        if scan.header is None:
            end = write_journal(self._journal_path, Header(self.identity))
            return Journal(self._journal_path, end)
        if lines:
            check_identity(str(self._output), scan.header.identity, self.identity)
        for line in lines:
            is_error = line.status == "error"
            if line.place >= 0:
                self._known[line.key] = _Known(line.place, is_error, line.fingerprint)
                self._is_changed = True
            elif (known := self._known.get(line.key)) is not None:
                known.digest = line.fingerprint
        return Journal(self._journal_path, scan.end)

    def _read_output(self) -> None:
        """Find the lines of OUTPUT."""
        try:
            self._old = open(self._output, "rb")
            offset = 0
            for text in self._old:
                row = decode(text.decode("utf-8"))
                if (custom_id := row["custom_id"]) is not None:
                    key = key_digest(custom_id, TASK, "")
                    self._known[key] = _Known(-1 - len(self._offsets), _is_error(row))
                self._offsets.append(offset)
                offset += len(text)
        except OSError as error:
            raise OutputError(f"cannot read {self._output}: {reason(error)}") from error
        except (ValueError, KeyError, TypeError) as error:
            raise OutputError(
                f"{self._output} is no output of `vlmbatch batch` (line {len(self._offsets) + 1}); "
                "--overwrite starts anew"
            ) from error

    def _in_order(self) -> list[tuple[bytes, _Known]]:
        """Return this run's lines in the order of the file, then those of earlier runs."""
        seen = [entry for entry in self._known.items() if entry[1].index is not None]
        rest = [entry for entry in self._known.items() if entry[1].index is None]
        return [*sorted(seen, key=lambda entry: entry[1].index or 0), *rest]

    def _line(self, known: _Known) -> bytes:
        if known.place >= 0:
            row = self._journal.read(known.place)
            return encode(row).encode("utf-8", "backslashreplace") + b"\n"
        assert self._old is not None  # OUTPUT was read, or nothing would point into it
        self._old.seek(self._offsets[-1 - known.place])
        text = self._old.readline()
        return text if text.endswith(b"\n") else text + b"\n"


def read_requests(path: Path) -> Iterator[tuple[int, str]]:
    """Yield number, from 1, and text of each line of a file of requests that is not blank.

    Raises:
        OSError: It cannot be read.
    """
    with open(path, encoding="utf-8-sig", errors="surrogateescape", newline="\n") as file:
        for number, line in enumerate(file, 1):
            if not line.isspace():
                yield number, line.strip()


def _is_error(row: Mapping[str, Any]) -> bool:
    return bool(row["error"])
