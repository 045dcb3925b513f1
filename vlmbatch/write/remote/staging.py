"""The staging folder of an OUTPUT that is a URL: the file that a run works on, and what is known
about the file behind the URL.

``ROOT/DIGEST/NAME`` stands for the OUTPUT, with its journal beside it, and ``staging.json`` says
which state of the remote file these rows go on from. Before a run the two are brought together:
what another machine has written is fetched, and rows that were never uploaded are put on top of it.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import logging
import os
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from vlmbatch.errors import OutputError, one_line
from vlmbatch.urls import url_name
from vlmbatch.write.atomic import beside, reason, replacing
from vlmbatch.write.formats import Format, find_format
from vlmbatch.write.identity import check_identity, earlier_identity
from vlmbatch.write.journal import Header, JournalScan, row_line, write_journal
from vlmbatch.write.lock import OutputLock
from vlmbatch.write.previous_output import EarlierRows
from vlmbatch.write.remote.file import RemoteFile
from vlmbatch.write.row_index import RowTable, key_digest

logger = logging.getLogger(__name__)

BESIDE = (".journal", ".summary.json")
"""What is kept beside OUTPUT, here and there."""


def default_staging_root(cache: Path | None = None) -> Path:
    """Where staging folders are made unless the job says.

    Args:
        cache: The user's folder for caches, where that is not the platform's usual one.
    """
    usual = Path.home() / ("Library/Caches" if sys.platform == "darwin" else ".cache")
    return (cache or usual) / "vlmbatch" / "outputs"


@dataclasses.dataclass
class StagingState:
    """What ``staging.json`` says.

    Attributes:
        url: The OUTPUT, without credentials.
        synced: The fingerprint of the remote file that the staged rows go on from; None: of none.
        staged: (size, mtime_ns) of the staged file when the remote one was equal to it; None: it
            never was.
        has_new_rows: Whether rows were taken since.
        identity: The settings of the rows there, as far as they are known.
        is_partial: Whether the staged files are being replaced by fetched ones, so that they count
            for nothing.
    """

    url: str
    synced: str | None = None
    staged: tuple[int, int] | None = None
    has_new_rows: bool = False
    identity: dict[str, Any] | None = None
    is_partial: bool = False


class Staging:
    """A staging folder, held by one run.

    Args:
        remote: The file behind the URL.
        root: Where staging folders are.

    Attributes:
        path: The staged file.
        state: What is known about the remote one.

    Raises:
        OutputLockedError: Another run of this machine holds it.
        OutputError: It cannot be made.
        MissingDependencyError: The format needs a package that is not installed.
    """

    def __init__(self, remote: RemoteFile, root: Path) -> None:
        self.remote = remote
        self.folder = root / hashlib.blake2b(remote.shown.encode(), digest_size=12).hexdigest()
        self.path = self.folder / url_name(remote.url)
        self._format: Format = find_format(self.path)
        try:
            self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError as error:
            raise OutputError(
                f"cannot make the staging folder {self.folder}: {reason(error)}"
            ) from error
        self._state_path = self.folder / "staging.json"
        self._lock = OutputLock(self.folder / "staging", remote.shown)
        self.state = self._load_state()

    def release(self) -> None:
        """Lets go of the folder."""
        self._lock.release()

    @property
    def is_uploaded(self) -> bool:
        """Whether the remote file, as it was last seen, has every row that is here."""
        return not self.state.has_new_rows and file_state(self.path) == self.state.staged

    def save(self, **changes: Any) -> None:
        """Changes the state, on the disk too.

        Raises:
            OutputError: It cannot be written.
        """
        state = dataclasses.replace(self.state, **changes)
        with replacing(self._state_path) as file:
            file.write(json.dumps(dataclasses.asdict(state), indent=2).encode() + b"\n")
        self.state = state

    def bring_together(self, identity: Mapping[str, Any], *, overwrite: bool) -> None:
        """Makes the staged file what the run goes on from.

        Args:
            identity: The settings that the rows depend on; rows of others are not mixed with these.
            overwrite: Whether the rows that are there do not count. They are fetched all the same,
                to be there again should the run end before its first row.

        Raises:
            OutputError: The remote file cannot be fetched, or was made with other settings.
        """
        if self.state.is_partial:
            self._discard()
            self.save(synced=None, staged=None, has_new_rows=False, is_partial=False)
        there = self.remote.fingerprint()
        if there == self.state.synced:
            return
        if there is None:
            logger.warning(
                "%s is gone: it is made anew%s",
                self.remote.shown,
                "" if self.is_uploaded else ", from the rows that are kept here",
            )
            if self.is_uploaded:
                self.path.unlink(missing_ok=True)
            self.save(synced=None, staged=None)
        elif overwrite or self.is_uploaded:
            self._fetch(there)
        else:
            self._merge(there, identity)

    def _load_state(self) -> StagingState:
        fresh = StagingState(self.remote.shown, staged=None)
        try:
            values = json.loads(self._state_path.read_bytes())
            if values["staged"] is not None:
                values["staged"] = tuple(values["staged"])
            return StagingState(**values)
        except FileNotFoundError:
            return fresh
        except (OSError, ValueError, TypeError, KeyError) as error:
            logger.warning(
                "%s cannot be read (%s): what is there is compared with %s",
                self._state_path,
                one_line(error),
                self.remote.shown,
            )
            return dataclasses.replace(fresh, has_new_rows=True)

    def _discard(self) -> None:
        for path in (self.path, *(beside(self.path, suffix) for suffix in BESIDE)):
            path.unlink(missing_ok=True)

    def _fetch(self, there: str) -> None:
        """Puts the remote files in the place of the staged ones."""
        self.save(is_partial=True)
        self._discard()
        if self.remote.get(self.path):
            for suffix in BESIDE:
                self.remote.beside(suffix).get(beside(self.path, suffix))
        try:
            header = JournalScan(beside(self.path, ".journal")).header
        except OutputError:  # the store says so, unless it is to be overwritten
            header = None
        self.save(
            synced=there,
            staged=file_state(self.path),
            has_new_rows=False,
            identity=header and header.identity,
            is_partial=False,
        )

    def _merge(self, there: str, identity: Mapping[str, Any]) -> None:
        """Puts the rows that are only here on top of those of a remote file that another run has
        written.
        """
        logger.warning(
            "%s was written by another run since; the rows that are kept here are put on top of its rows",
            self.remote.shown,
        )
        fetched = self.folder / "remote" / self.path.name
        fetched.parent.mkdir(exist_ok=True)
        if self.remote.get(fetched):
            for suffix in BESIDE:
                path = beside(fetched, suffix)
                path.unlink(missing_ok=True)
                self.remote.beside(suffix).get(path)
            theirs = JournalScan(beside(fetched, ".journal"))
            check_identity(
                self.remote.shown, self._identity_of(fetched, theirs, identity), identity
            )
            ours = JournalScan(beside(self.path, ".journal"))
            known = (
                (e.key, e.source, e.fingerprint, e.row_index, e.question, e.status) for e in theirs
            )
            header = Header(dict(ours.header.identity if ours.header else identity))
            write_journal(beside(self.path, ".journal"), header, known, self._row_lines(ours))
            os.replace(fetched, self.path)
        self.save(synced=there, staged=None, identity=None, has_new_rows=True)

    def _identity_of(
        self, output: Path, scan: JournalScan, identity: Mapping[str, Any]
    ) -> Mapping[str, Any]:
        """The settings that a fetched file was made with."""
        if scan.header is not None:
            return scan.header.identity
        rows = EarlierRows(output, self._format)
        try:
            first = rows.first()
            return identity if first is None else earlier_identity(output, first, identity)
        finally:
            rows.close()

    def _row_lines(self, ours: JournalScan) -> Iterator[bytes]:
        """Every row that is here, as a journal has it: those of the staged file with what is known
        about their files, then those of its journal.
        """
        if self.path.exists() and (ours.header is None or ours.header.base):
            table = RowTable()
            rows = EarlierRows(self.path, self._format)
            try:
                rows.scan(table)
                files = {
                    entry.key: (entry.source, entry.fingerprint)
                    for entry in ours
                    if entry.place < 0
                }
                for row in rows.rows(-1 - table.places()[table.in_order()]):
                    key = key_digest(row["id"], row["task"], row["prompt"])
                    yield row_line(key, *files.get(key, (0, 0)), 0, row)
            finally:
                rows.close()
        for entry, row in ours.rows():
            yield row_line(entry.key, entry.source, entry.fingerprint, entry.question, row)


def file_state(path: Path) -> tuple[int, int] | None:
    """Size and time of the last change (ns); None when there is no file."""
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_size, found.st_mtime_ns
