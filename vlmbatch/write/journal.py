"""``OUTPUT.journal``: the append-only file that a run writes its rows to, before they are published
in OUTPUT.

Every line begins with the CRC-32 of what follows it, so that a line that was half written, or
damaged later, is known::

    CRC {"vlmbatch_journal": 2, "identity": {…}, "base": true, "output": […]}      the header, once
    CRC KEY SOURCE FINGERPRINT INDEX QUESTION STATUS                               a row that stands
    in OUTPUT; STATUS is ``error`` or ``ok`` CRC KEY SOURCE FINGERPRINT INDEX QUESTION STATUS {"id":
    …}                     a row, whole

KEY, SOURCE (the file) and FINGERPRINT (what the file was) are digests in hexadecimal; ``-``: not
known. A later line about a row replaces an earlier one. Rows that stand in OUTPUT come in its
order, and as long as OUTPUT is the file that the header means, it need not be read to know what is
done.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import logging
import os
import shutil
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from vlmbatch.errors import OutputError
from vlmbatch.write.atomic import beside, reason, replacing, sync_folder
from vlmbatch.write.columns import Row
from vlmbatch.write.jsonl import decode, encode

logger = logging.getLogger(__name__)

VERSION = 2


@dataclasses.dataclass(frozen=True)
class Header:
    """The first line.

    Attributes:
        identity: The settings that the rows depend on, as plain JSON values.
        base: Whether the rows of OUTPUT belong to these. False after ``--overwrite``, until the old
            OUTPUT is known to be gone.
        output: What is known OUTPUT by: numbers of which another file, or another content, has
            others, and how many rows it has. None: not known.
    """

    identity: dict[str, Any]
    base: bool = True
    output: tuple[int, ...] | None = None

    def encode(self) -> bytes:
        """The line."""
        return _line(
            encode(
                {
                    "vlmbatch_journal": VERSION,
                    "identity": self.identity,
                    "base": self.base,
                    "output": self.output,
                }
            )
        )


class Entry(NamedTuple):
    """A line about a row; ``place`` is the offset of the line, or -1 when the row itself stands in
    OUTPUT.
    """

    key: bytes
    source: int
    fingerprint: int
    place: int = -1
    row_index: int = 0
    question: int = 0
    status: str = ""


class JournalScan:
    """Goes through the lines of a journal. Lines that are damaged are left out, and said so, once.

    Attributes:
        is_damaged: Whether lines before the last one were damaged, once all have been gone through.
        header: The header; None when there is no journal, or an empty file.
        end: Offset after the last good line; known once every line was seen. What comes after it is
            a torn tail.

    Raises:
        OutputError: The file cannot be read, or it is not a journal.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self.end = self._start = 0
        self.is_damaged = False
        self.header: Header | None = None
        try:
            with open(path, "rb") as file:
                first = file.readline()
        except FileNotFoundError:
            return
        except OSError as error:
            raise OutputError(f"cannot read {path}: {reason(error)}") from error
        if first:
            self.end = self._start = len(first)
            self.header = self._parse_header(first)

    def _parse_header(self, line: bytes) -> Header:
        try:
            values = decode((_payload(line) or b"").decode())
            version, identity, base = (
                values["vlmbatch_journal"],
                dict(values["identity"]),
                bool(values["base"]),
            )
            output = tuple(values.get("output") or ()) or None
        except (ValueError, KeyError, TypeError) as error:
            raise OutputError(
                f"{self._path} is damaged or was not written by vlmbatch; --overwrite starts anew"
            ) from error
        if version != VERSION:
            raise OutputError(
                f"{self._path} was written by another version of vlmbatch; --overwrite starts anew"
            )
        return Header(identity, base, output)

    def __iter__(self) -> Iterator[Entry]:
        if self.header is None:
            return
        place = start = self._start
        damaged, damaged_before_end = 0, 0
        try:
            with open(self._path, "rb") as file:
                file.seek(start)
                for line in file:
                    entry = _parse(line, place)
                    place += len(line)
                    if entry is None:
                        damaged += 1
                    else:
                        self.end, damaged_before_end = place, damaged
                        yield entry
        except OSError as error:
            raise OutputError(f"cannot read {self._path}: {reason(error)}") from error
        if damaged_before_end and not self.is_damaged:
            self.is_damaged = True
            logger.warning(
                "%s: %d damaged lines; their rows are done again", self._path, damaged_before_end
            )

    def rows(self) -> Iterator[tuple[Entry, Row]]:
        """Goes through the rows that stand in the journal whole.

        Raises:
            OutputError: As for the class.
        """
        if self.header is None:
            return
        with open(self._path, "rb") as file:
            for entry in self:
                if entry.place >= 0:
                    yield entry, _read_row(self._path, file, entry.place)


class Journal:
    """A journal that takes rows. Cuts off a torn tail first.

    Args:
        path: The file; it has a header.
        end: Offset after its last good line.

    Raises:
        OutputError: It cannot be opened for writing.
    """

    def __init__(self, path: Path, end: int) -> None:
        self._path = path
        self._end = end
        self._pending = bytearray()
        self._folder_is_synced = False
        try:
            self._handle = os.open(path, os.O_RDWR)
            os.ftruncate(self._handle, end)
        except OSError as error:
            raise OutputError(f"cannot write {path}: {reason(error)}") from error
        self._reader = open(path, "rb")

    def append(self, key: bytes, source: int, fingerprint: int, question: int, row: Row) -> int:
        """Takes a row; it is in memory until ``commit``.

        Returns:
            Its place, for ``read``.
        """
        place = self._end + len(self._pending)
        self._pending += row_line(key, source, fingerprint, question, row)
        return place

    def commit(self) -> None:
        """Makes the rows taken so far durable. Writing again after an interruption writes the same
        bytes to the same place.

        Raises:
            OutputError: They cannot be written; the file ends after the last commit.
        """
        if not self._pending:
            return
        try:
            written = 0
            while written < len(self._pending):
                written += os.pwrite(
                    self._handle, memoryview(self._pending)[written:], self._end + written
                )
            os.fsync(self._handle)
            if not self._folder_is_synced:
                sync_folder(self._path.parent)
                self._folder_is_synced = True
        except OSError as error:
            with contextlib.suppress(OSError):
                os.ftruncate(self._handle, self._end)
            raise OutputError(
                f"cannot write {self._path}: {reason(error)}; what was committed before is kept"
            ) from error
        self._end += len(self._pending)
        self._pending = bytearray()

    def read(self, place: int) -> Row:
        """The row at a place; it was committed.

        Raises:
            OutputError: It cannot be read back.
        """
        return _read_row(self._path, self._reader, place)

    def close(self) -> None:
        """Closes the file; what was not committed is forgotten."""
        if self._handle >= 0:
            os.close(self._handle)
            self._reader.close()
            self._handle = -1


def why_not_there(output: Path) -> str | None:
    """Why there is no OUTPUT although a run began to make it: its rows are still in the journal.
    None when there is no such journal.

    Raises:
        OutputError: The journal cannot be read.
    """
    path = beside(Path(os.path.realpath(output)), ".journal")
    scan = JournalScan(path)
    rows = len({entry.key for entry in scan if entry.place >= 0})
    if scan.header is None or (scan.header.output and not rows):
        return None  # the journal of an OUTPUT that was finished, and taken away since
    held = f"{rows:,} row{'' if rows == 1 else 's'}" if rows else "no rows yet"
    return f"not written yet, as its run was interrupted or is still going; {path.name} holds {held}, and the same command goes on from there"


def write_journal(
    path: Path,
    header: Header,
    known: Iterable[tuple[bytes, int, int, int, int, str]] = (),
    rows: Iterable[bytes] = (),
) -> int:
    """Puts a journal in the place of the one at ``path``.

    Args:
        path: The file.
        header: Its first line.
        known: Key, source, fingerprint, index, question and status of each row that stands in
            OUTPUT, in its order.
        rows: Lines of rows that do not, from ``row_line``.

    Returns:
        Its length in bytes.

    Raises:
        OutputError: It cannot be written.
    """
    with replacing(path) as file:
        file.write(header.encode())
        for key, source, fingerprint, index, question, status in known:
            file.write(
                _line(f"{key.hex()} {_hex(source)} {_hex(fingerprint)} {index} {question} {status}")
            )
        file.writelines(rows)
        return file.tell()


def replace_header(path: Path, header: Header) -> int:
    """Put another header in the place of a journal's, its lines as they are.

    Returns:
        How many bytes the header has grown: offsets of lines grow by as many.

    Raises:
        OutputError: It cannot be written.
    """
    with open(path, "rb") as old, replacing(path) as file:
        earlier = len(old.readline())
        file.write(header.encode())
        grown = file.tell() - earlier
        shutil.copyfileobj(old, file)
    return grown


def row_line(key: bytes, source: int, fingerprint: int, question: int, row: Row) -> bytes:
    """The line of a row, whole."""
    return _line(
        f"{key.hex()} {_hex(source)} {_hex(fingerprint)} {row['index']} {question} {row['status']} {encode(row)}"
    )


def plain_json(values: Any) -> Any:
    """The values as they come back from JSON: tuples as lists, keys as strings."""
    return json.loads(json.dumps(values, default=str))


def _read_row(path: Path, file: BinaryIO, place: int) -> Row:
    try:
        file.seek(place)
        payload = _payload(file.readline())
    except OSError as error:
        raise OutputError(f"cannot read {path}: {reason(error)}") from error
    if payload is None:
        raise OutputError(f"{path} was damaged during the run")
    row: Row = decode(payload.split(b" ", 6)[6].decode())
    return row


def _line(payload: str) -> bytes:
    data = payload.encode("utf-8", "backslashreplace")
    return b"%08x %s\n" % (zlib.crc32(data), data)


def _payload(line: bytes) -> bytes | None:
    """What a line holds; None when it is damaged or has no end."""
    payload = line[9:-1]
    try:
        good = line[-1:] == b"\n" and int(line[:8], 16) == zlib.crc32(payload)
    except ValueError:
        return None
    return payload if good else None


def _parse(line: bytes, place: int) -> Entry | None:
    payload = _payload(line)
    if payload is None:
        return None
    parts = payload.split(b" ", 6)
    try:
        key = bytes.fromhex(parts[0].decode())
        source, fingerprint = (0 if part == b"-" else int(part, 16) for part in parts[1:3])
        return Entry(
            key,
            source,
            fingerprint,
            place if len(parts) == 7 else -1,
            int(parts[3]),
            int(parts[4]),
            parts[5].decode(),
        )
    except (ValueError, IndexError):
        return None


def _hex(digest: int) -> str:
    return f"{digest:016x}" if digest else "-"
