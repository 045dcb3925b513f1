"""Sidecars: one text or subtitle file for each picture or video, beside it or in a folder of their
own.

What a file is called: ``photo.jpg`` has ``photo.txt``, as trainers look for it. Of two that would
have the same name, the first by path gets it and the other keeps its suffix (``photo.png.txt``); a
name once given stays with its picture.

What is replaced: only what is ours. ``OUTPUT.sidecars`` says which files were written and the
SHA-256 of each; a file that is there and is not as it was written, be it somebody else's or one
that was corrected by hand, stays as it is.
"""

from __future__ import annotations

import collections
import hashlib
import json
import logging
import os
import re
import sqlite3
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from vlmbatch.errors import OutputError
from vlmbatch.job import Job
from vlmbatch.write.atomic import beside, reason, replacing
from vlmbatch.write.columns import Row, clean_text
from vlmbatch.write.subtitles import FORMS, make_cues

logger = logging.getLogger(__name__)

SHOWN = 3
"""Files of a kind that a warning names."""

_PART = re.compile(r"#(t|page)=[\d.]+(-[\d.]+)?$")
_ESCAPED = re.compile(rb"\\x([0-9a-f]{2})")
_TABLES = """
PRAGMA journal_mode = OFF;
PRAGMA synchronous = OFF;
CREATE TABLE items (id TEXT, question TEXT, PRIMARY KEY (id, question)) WITHOUT ROWID;
CREATE TABLE files (name TEXT PRIMARY KEY, source TEXT) WITHOUT ROWID;
CREATE TABLE texts (number INTEGER PRIMARY KEY, name TEXT, start REAL, end REAL, text TEXT);
CREATE TABLE written (path BLOB PRIMARY KEY, name TEXT, source TEXT, digest TEXT) WITHOUT ROWID;
"""


def sidecars_path(output: Path) -> Path:
    """Where it says which sidecars were written from an OUTPUT."""
    return beside(output, ".sidecars")


def open_sidecars(job: Job, output: Path | None) -> Sidecars | None:
    """What gathers the sidecars of a run; None when the job asks for none.

    Args:
        job: The job.
        output: The file of this disk that has the rows.

    Raises:
        OutputError: The folder for them cannot be made.
    """
    if job.sidecar is None or output is None:
        return None
    folder = None if job.sidecar_dir is None else Path(job.sidecar_dir)
    return Sidecars(job.sidecar, sidecars_path(output), folder=folder, overwrite=job.overwrite)


class Sidecars:
    """Gathers rows in a temporary database, as they may be more than memory holds and in any order,
    and writes the files.

    ``expect`` may be called on another thread than the rest, not at the same time.

    Args:
        kind: ``txt``, ``srt`` or ``vtt``. Rows about stretches of a video become cues, in ``txt``
            lines with time stamps.
        record: ``OUTPUT.sidecars``.
        folder: Where the files go, in the same tree as the ids; None puts them beside the sources.
        overwrite: Whether files that are not ours are replaced too.

    Raises:
        OutputError: The folder cannot be made.
    """

    def __init__(
        self, kind: str, record: Path, *, folder: Path | None = None, overwrite: bool = False
    ) -> None:
        self._kind, self._record, self._folder, self._overwrite = kind, record, folder, overwrite
        self._db = sqlite3.connect(
            "", isolation_level=None, check_same_thread=False
        )  # a file without a name: it goes with the process
        self._db.executescript(_TABLES)
        self._db.execute("BEGIN")
        if folder is not None:
            try:
                folder.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise OutputError(f"cannot write sidecars to {folder}: {reason(error)}") from error

    def expect(self, id: str, source: str, questions: Sequence[str] = ()) -> None:
        """Says that an item is among those that get sidecars; it has its name whatever comes of it.

        Args:
            id: The item's.
            source: The file that it is from.
            questions: What it is asked instead of what all are; none for that.

        Raises:
            OutputError: There is no room for the temporary database; so with every method here.
        """
        id = clean_text(id)
        for question in questions or ("",):
            self._run("INSERT OR IGNORE INTO items VALUES (?, ?)", id, clean_text(question))
        self._run("INSERT OR IGNORE INTO files VALUES (?, ?)", file_name(id), clean_text(source))

    def expects(self, id: str, prompt: str, common: Sequence[str]) -> bool:
        """Whether a row is about an item that is among those, and answers what it is asked.

        Args:
            id: The row's.
            prompt: Likewise.
            common: What an item without questions of its own is asked.
        """
        asked = {
            question for (question,) in self._run("SELECT question FROM items WHERE id = ?", id)
        }
        return prompt in asked or ("" in asked and prompt in common)

    def add(self, row: Row) -> None:
        """Takes a row of an item that is expected. Rows without an answer are left out; the answers
        about one thing come in the order of their rows.
        """
        if row["status"] != "error" and row["text"] is not None:
            values = (file_name(row["id"]), row["time_seconds"], row["end_seconds"], row["text"])
            self._run("INSERT INTO texts (name, start, end, text) VALUES (?, ?, ?, ?)", *values)

    def contents(self) -> Iterator[tuple[str, str, bytes | None]]:
        """Yields (name, source, content) of every file, by source; the content is None when there
        is nothing to say, or nothing with times for subtitles.
        """
        self._run("CREATE INDEX IF NOT EXISTS by_name ON texts (name, start, number)")
        for name, source in self._db.execute(
            "SELECT name, source FROM files ORDER BY source, name"
        ):
            rows = self._run(
                "SELECT start, end, text FROM texts WHERE name = ? ORDER BY start, number", name
            )
            timed = [
                (start, end, text)
                for start, end, text in rows
                if start is not None and end is not None
            ]
            if timed:
                yield name, source, FORMS[self._kind](make_cues(timed)).encode()
            elif rows and self._kind == "txt":
                yield name, source, ("\n".join(text for *_, text in rows) + "\n").encode()
            else:
                yield name, source, None

    def write(self) -> dict[str, int]:
        """Writes every file, whole or not at all, and then the record of them.

        Returns:
            How many were ``written``, are ``unchanged``, were ``kept`` because they are not ours,
            are ``renamed`` because another has the name (they count as written or unchanged too),
            and have ``no_place`` because their source is no file here.

        Raises:
            OutputError: Some could not be written; the others were.
        """
        self._load_record()
        counts = collections.Counter(
            dict.fromkeys(("written", "unchanged", "kept", "renamed", "no_place"), 0)
        )
        failures: list[str] = []
        for name, source, content in self.contents():
            paths = self._paths(name, source)
            if paths is None:
                counts["no_place"] += content is not None
                continue
            path = self._claim(name, source, paths)
            if content is None:
                continue
            if path != paths[0]:
                counts["renamed"] += 1
                if counts["renamed"] <= SHOWN:
                    logger.warning(
                        "%s: another one has the sidecar %s; its own is %s",
                        name,
                        os.fsdecode(paths[0]),
                        os.fsdecode(path),
                    )
            try:
                outcome = self._put(path, content)
            except OSError as error:
                failures.append(f"{clean_text(os.fsdecode(path))}: {reason(error)}")
                continue
            counts[outcome] += 1
            if outcome == "kept" and counts["kept"] <= SHOWN:
                logger.warning(
                    "%s is there and was not written from this output: it stays as it is",
                    os.fsdecode(path),
                )
        if counts["written"]:
            # once for all: an fsync a file takes milliseconds, and there may be a million
            os.sync()
        self._save_record()
        if failures:
            more = f" and {len(failures) - 1} more" if len(failures) > 1 else ""
            raise OutputError(
                f"cannot write sidecars ({failures[0]}{more}); every answer is in the output, and the same command again writes what is missing"
            )
        return dict(counts)

    def _paths(self, name: str, source: str) -> list[bytes] | None:
        """What a file may be called, best first; None when it has no place."""
        if self._folder is not None:
            parts = [part for part in name.split("/") if part not in ("", ".", "..")]
            whole = os.fsencode(self._folder.absolute().joinpath(*parts))
        else:
            found = _on_disk(source)
            if found is None:
                return None
            whole = os.path.abspath(found)
        suffix = f".{self._kind}".encode()
        return [os.path.splitext(whole)[0] + suffix, whole + suffix]

    def _claim(self, name: str, source: str, paths: list[bytes]) -> bytes:
        """Chooses the path of a file: the one it had, or else the first that no other one has."""
        number = 1
        owners = {path: self._owner(path) for path in paths}
        path = next((path for path in paths if owners[path] == name), None) or next(
            (path for path in paths if owners[path] is None), None
        )
        while path is None:
            number += 1
            stem, suffix = os.path.splitext(paths[1])
            candidate = stem + f".{number}".encode() + suffix
            path = candidate if self._owner(candidate) in (None, name) else None
        if owners.get(path) != name:
            self._run(
                "INSERT OR REPLACE INTO written SELECT ?1, ?2, ?3, COALESCE((SELECT digest FROM written WHERE path = ?1), '')",
                path,
                name,
                source,
            )
        return path

    def _owner(self, path: bytes) -> str | None:
        """The file that has a path; None also when it was one that is neither here any more nor on
        the disk.
        """
        found = self._run("SELECT name, source FROM written WHERE path = ?", path)
        if not found:
            return None
        name, source = found[0]
        lives = (
            self._run("SELECT 1 FROM files WHERE name = ?", name) or _on_disk(source) is not None
        )
        return str(name) if lives else None

    def _put(self, path: bytes, content: bytes) -> str:
        """Puts a file in its place unless what is there is not ours; says what came of it."""
        digest = _digest(content)
        try:
            with open(path, "rb") as file:
                there: bytes | None = file.read()
        except FileNotFoundError:
            there = None
            os.makedirs(os.path.dirname(path), exist_ok=True)
        if there != content:
            ours = self._run("SELECT digest FROM written WHERE path = ?", path)[0][0]
            # A file of nothing, which a power cut may leave, holds nothing to lose.
            if (
                there is not None
                and there.strip(b"\0\r\n\t ")
                and not self._overwrite
                and _digest(there) != ours
            ):
                return "kept"
            # The same name at every try, so that a killed run leaves no heap of them; a longer one
            # than the file's might be too long.
            temporary = os.path.join(os.path.dirname(path), f".{_digest(path)[:16]}.tmp".encode())
            try:
                with open(temporary, "wb") as file:
                    file.write(content)
                os.replace(temporary, path)
            except OSError:
                if os.path.isfile(temporary):
                    os.unlink(temporary)
                raise
        self._run("UPDATE written SET digest = ? WHERE path = ?", digest, path)
        return "unchanged" if there == content else "written"

    def _load_record(self) -> None:
        try:
            with open(self._record, encoding="utf-8") as file:
                for line in file:
                    entry = json.loads(line)
                    values = (
                        os.fsencode(entry["path"]),
                        entry["id"],
                        entry["source"],
                        entry["sha256"],
                    )
                    self._run("INSERT OR REPLACE INTO written VALUES (?, ?, ?, ?)", *values)
        except FileNotFoundError:
            return
        except (ValueError, KeyError, TypeError) as error:
            raise OutputError(
                f"{self._record} is damaged; without it, sidecars that were written before stay as they are"
            ) from error
        except OSError as error:
            raise OutputError(f"cannot read {self._record}: {reason(error)}") from error

    def _save_record(self) -> None:
        with replacing(self._record) as file:
            for path, name, source, digest in self._db.execute(
                "SELECT path, name, source, digest FROM written WHERE digest != '' ORDER BY path"
            ):
                # In ASCII, so that a path that is not UTF-8 comes back as it was.
                file.write(
                    json.dumps(
                        {"path": os.fsdecode(path), "id": name, "source": source, "sha256": digest}
                    ).encode()
                    + b"\n"
                )

    def _run(self, statement: str, *values: object) -> list[tuple[Any, ...]]:
        try:
            return self._db.execute(statement, values).fetchall()
        except sqlite3.Error as error:
            raise OutputError(f"cannot gather the sidecars: {error}") from error


def file_name(id: str) -> str:
    """The picture or video that an item is from: its id without ``#t=…``."""
    return _PART.sub("", id)


def _on_disk(source: str) -> bytes | None:
    r"""The file that a record names; None when there is none. Names that are not UTF-8 stand in
    records with ``\xNN`` in them.
    """
    raw = source.encode()
    for path in (raw, _ESCAPED.sub(lambda found: bytes.fromhex(found[1].decode()), raw)):
        if b"\0" not in path and os.path.isfile(path):
            return path
    return None


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
