"""``OUTPUT.journal``: the append-only file that a run writes its rows to, before they are published
in OUTPUT.

Every line begins with the CRC-32 of the rest, so that a line that was half written, or damaged
later, is recognised::

    CRC {"vlmbatch_journal": 2, "identity": {…}, "base": true, "output": […]}    the header, once
    CRC KEY SOURCE STATE INDEX QUESTION STATUS             a row that stands in OUTPUT
    CRC KEY SOURCE STATE INDEX QUESTION STATUS {"id": …}   a row, whole

KEY and SOURCE (the file) are digests in hexadecimal. STATE is
``FINGERPRINT/CONTENT/TEXT/SETTINGS``: digests of the file's size and time, of its content, of the
text as the model wrote it, and of the settings of the row where these are not the identity's. ``-``
stands for one that is not known; older journals have only the first of the four. STATUS of a row in
OUTPUT is ``error``, ``edited`` (its text is not the model's) or ``ok``. A later line about a row
replaces an earlier one. Rows that stand in OUTPUT come in its order. As long as OUTPUT is the file
that the header describes, it need not be read to know what is done.
"""

from __future__ import annotations

import contextlib
import dataclasses
import io
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
EDITED = "edited"
"""Status of a row whose text is not the model's."""


@dataclasses.dataclass(frozen=True)
class Header:
    """The first line.

    Attributes:
        identity: The settings that the rows depend on, as plain JSON values.
        base: Whether the rows of OUTPUT belong to these. False after ``--overwrite``, until the old
            OUTPUT is known to be gone.
        output: The state of the OUTPUT that the lines describe, from ``file_state``, and its number
            of rows. None: not known.
    """

    identity: dict[str, Any]
    base: bool = True
    output: tuple[int, ...] | None = None

    def encode(self) -> bytes:
        """Return the line."""
        values = {
            "vlmbatch_journal": VERSION,
            "identity": self.identity,
            "base": self.base,
            "output": self.output,
        }
        return _with_checksum(encode(values))


class JournalLine(NamedTuple):
    """A line about a row. Its place is the offset of the line, or -1 when the row itself stands in
    OUTPUT; digests that are not known are 0.

    Attributes:
        key: From ``key_digest``.
        source: Digest of the file's path.
        fingerprint: Digest of the file's fingerprint.
        place: See above.
        row_index: Place of the item in input order.
        question: The question's place among those about the item.
        status: The row's, or ``edited``.
        content: Digest of the file's content.
        text: Digest of the text as the model wrote it.
        settings: Digest of the row's settings; 0 for those of the identity.
    """

    key: bytes
    source: int = 0
    fingerprint: int = 0
    place: int = -1
    row_index: int = 0
    question: int = 0
    status: str = ""
    content: int = 0
    text: int = 0
    settings: int = 0

    def encode(self, row: Row | None = None) -> bytes:
        """Return the line, with the row itself where it is given."""
        states = (self.fingerprint, self.content, self.text, self.settings)
        source, *state = (f"{digest:016x}" if digest else "-" for digest in (self.source, *states))
        text = (
            f"{self.key.hex()} {source} {'/'.join(state)} {self.row_index} {self.question} "
            f"{self.status}"
        )
        return _with_checksum(text if row is None else f"{text} {encode(row)}")


class JournalScan:
    """Reads the lines of a journal. Damaged lines are left out, with one warning.

    Attributes:
        is_damaged: Whether lines before the last one were damaged; known once all were read.
        header: The header; None when there is no journal, or an empty file.
        end: Offset after the last good line; known once all were read. What follows is a torn tail.

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
            version = values["vlmbatch_journal"]
            identity, base = dict(values["identity"]), bool(values["base"])
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

    def __iter__(self) -> Iterator[JournalLine]:
        if self.header is None:
            return
        place = self._start
        damaged = damaged_before_end = 0
        try:
            with open(self._path, "rb") as file:
                file.seek(place)
                for text in file:
                    line = _parse(text, place)
                    place += len(text)
                    if line is None:
                        damaged += 1
                    else:
                        self.end, damaged_before_end = place, damaged
                        yield line
        except OSError as error:
            raise OutputError(f"cannot read {self._path}: {reason(error)}") from error
        if damaged_before_end and not self.is_damaged:
            self.is_damaged = True
            logger.warning(
                "%s: %d damaged lines; their rows are done again", self._path, damaged_before_end
            )


class Journal:
    """A journal that takes rows. A torn tail is cut off when it is opened.

    Args:
        path: The file; it has a header.
        end: Offset after its last good line.
        reads_only: Whether it takes none: the file stays as it is, and need not be there.

    Raises:
        OutputError: It cannot be opened.
    """

    def __init__(self, path: Path, end: int, *, reads_only: bool = False) -> None:
        self._path = path
        self._end = end
        self._pending = bytearray()
        self._folder_is_synced = False
        self._handle = -1
        try:
            if not reads_only:
                self._handle = os.open(path, os.O_RDWR)
                os.ftruncate(self._handle, end)
            is_there = not reads_only or path.exists()
            self._reader: BinaryIO = open(path, "rb") if is_there else io.BytesIO()
        except OSError as error:
            what = "read" if reads_only else "write"
            raise OutputError(f"cannot {what} {path}: {reason(error)}") from error

    def append(self, line: JournalLine, row: Row) -> int:
        """Take a row; it is in memory until ``commit``.

        Returns:
            Its place, for ``read``.
        """
        place = self._end + len(self._pending)
        self._pending += line.encode(row)
        return place

    def commit(self) -> None:
        """Make the rows taken so far durable. Writing again after an interruption writes the same
        bytes to the same place.

        Raises:
            OutputError: They cannot be written; the file ends after the last commit.
        """
        if not self._pending:
            return
        try:
            written = 0
            while written < len(self._pending):
                rest = memoryview(self._pending)[written:]
                written += os.pwrite(self._handle, rest, self._end + written)
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
        """Return the row at a place; it was committed.

        Raises:
            OutputError: It cannot be read back.
        """
        try:
            self._reader.seek(place)
            payload = _payload(self._reader.readline())
        except OSError as error:
            raise OutputError(f"cannot read {self._path}: {reason(error)}") from error
        if payload is None:
            raise OutputError(f"{self._path} was damaged during the run")
        row: Row = decode(payload.split(b" ", 6)[6].decode())
        return row

    def close(self) -> None:
        """Close the file; rows that were not committed are forgotten."""
        self._reader.close()
        if self._handle >= 0:
            os.close(self._handle)
            self._handle = -1


def why_not_there(output: Path) -> str | None:
    """Explain the absence of an OUTPUT whose run has begun: its rows are still in the journal.
    None when there is no such journal.

    Raises:
        OutputError: The journal cannot be read.
    """
    path = beside(Path(os.path.realpath(output)), ".journal")
    scan = JournalScan(path)
    rows = len({line.key for line in scan if line.place >= 0})
    if scan.header is None or (scan.header.output and not rows):
        return None  # the journal of an OUTPUT that was finished, and taken away since
    held = f"{rows:,} row{'' if rows == 1 else 's'}" if rows else "no rows yet"
    return (
        "not written yet, as its run was interrupted or is still going; "
        f"{path.name} holds {held}, and the same command goes on from there"
    )


def write_journal(path: Path, header: Header, lines: Iterable[JournalLine] = ()) -> int:
    """Put a journal in the place of the one at ``path``.

    Args:
        path: The file.
        header: Its first line.
        lines: Lines about the rows that stand in OUTPUT, in its order.

    Returns:
        Its length in bytes.

    Raises:
        OutputError: It cannot be written.
    """
    with replacing(path) as file:
        file.write(header.encode())
        file.writelines(line.encode() for line in lines)
        return file.tell()


def replace_header(path: Path, header: Header) -> int:
    """Put another header in the place of a journal's, its lines as they are.

    Returns:
        Number of bytes by which the header has grown, and the offsets of lines with it.

    Raises:
        OutputError: It cannot be written.
    """
    with replacing(path) as file, open(path, "rb") as old:
        before = len(old.readline())
        file.write(header.encode())
        grown = file.tell() - before
        shutil.copyfileobj(old, file)
    return grown


def plain_json(values: Any) -> Any:
    """Return the values as they come back from JSON: tuples as lists, keys as strings."""
    return json.loads(json.dumps(values, default=str))


def _with_checksum(payload: str) -> bytes:
    data = payload.encode("utf-8", "backslashreplace")
    return b"%08x %s\n" % (zlib.crc32(data), data)


def _payload(line: bytes) -> bytes | None:
    """Return the line without its checksum; None when it is damaged or has no end."""
    payload = line[9:-1]
    try:
        good = line[-1:] == b"\n" and int(line[:8], 16) == zlib.crc32(payload)
    except ValueError:
        return None
    return payload if good else None


def _parse(text: bytes, place: int) -> JournalLine | None:
    payload = _payload(text)
    if payload is None:
        return None
    parts = payload.split(b" ", 6)
    try:
        source, fingerprint, *others = (
            0 if part == b"-" else int(part, 16) for part in (parts[1], *parts[2].split(b"/"))
        )
        return JournalLine(
            bytes.fromhex(parts[0].decode()),
            source,
            fingerprint,
            place if len(parts) == 7 else -1,
            int(parts[3]),
            int(parts[4]),
            parts[5].decode(),
            *others,
        )
    except (ValueError, IndexError, TypeError):
        return None
