"""Sidecars: one text or subtitle file for each picture or video, beside it or in a folder of their
own.

Names: ``photo.jpg`` has ``photo.txt``, as trainers look for it. Of two that would have the same
name, the first in OUTPUT gets it and the other keeps its suffix (``photo.png.txt``). A name once
given stays with its picture.

Only our own files are replaced. ``OUTPUT.sidecars`` names those that were written, with the
SHA-256 of each, and ``.vlmbatch-sidecars`` in their folder knows those of every OUTPUT. A file that
differs from it, because somebody else wrote it or it was corrected by hand, stays as it is.
"""

from __future__ import annotations

import collections
import logging
import os
import stat
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Literal, TypeAlias

from vlmbatch.errors import OutputError
from vlmbatch.job import Job
from vlmbatch.write.atomic import beside, reason
from vlmbatch.write.columns import Row, clean_text
from vlmbatch.write.records import FileRows
from vlmbatch.write.sidecars.folder_index import FolderIndexes, replace_file
from vlmbatch.write.sidecars.record import SidecarRecord
from vlmbatch.write.sidecars.subtitles import FORMS, make_cues
from vlmbatch.write.sources import find_source

logger = logging.getLogger(__name__)

SHOWN = 3
"""Number of files that warnings of one kind name."""

COUNTS = ("written", "unchanged", "kept", "kept_ours", "renamed", "no_place")
SidecarOutcome: TypeAlias = Literal["written", "unchanged", "kept", "kept_ours"]


def sidecars_path(output: Path) -> Path:
    """Return the path of the record of the sidecars that were written from an OUTPUT."""
    return beside(output, ".sidecars")


def open_sidecars(job: Job, output: Path | None) -> Sidecars | None:
    """Return what writes the sidecars of a run; None when the job asks for none.

    Args:
        job: The job.
        output: The file of this disk that has the rows.

    Raises:
        OutputError: The folder for them cannot be made.
    """
    if job.sidecar is None or output is None:
        return None
    folder = None if job.sidecar_dir is None else Path(job.sidecar_dir)
    return Sidecars(
        job.sidecar,
        sidecars_path(output),
        folder=folder,
        overwrite=job.overwrite,
        overwrite_all=job.overwrite_all,
    )


def make_content(kind: str, rows: Sequence[Row]) -> bytes | None:
    """Return the content of a sidecar; None when there is nothing to say, or nothing with times for
    subtitles.

    Args:
        kind: ``txt``, ``srt`` or ``vtt``. Rows about stretches of a video become cues, in ``txt``
            lines with timestamps. Both name the question where there are several. A ``txt`` of a
            document marks the pages.
        rows: The rows about a picture or video, in the order of their answers.
    """
    answers = [row for row in rows if row["status"] != "error" and row["text"] is not None]
    if kind == "txt" and answers and not any(map(is_stretch, answers)):
        return ("\n".join(_marked_texts(answers)) + "\n").encode()
    says_question = len({(row["task"], row["prompt"]) for row in answers}) > 1
    timed = [
        (
            row["time_seconds"],
            row["end_seconds"],
            f"{row['prompt']}\n{row['text']}" if says_question else row["text"],
        )
        for row in answers
        if row["time_seconds"] is not None and row["end_seconds"] is not None
    ]
    if timed:
        return FORMS[kind](make_cues(sorted(timed, key=lambda cue: cue[0]))).encode()
    return None


def is_stretch(row: Row) -> bool:
    """Return whether a row is about a frame or window of a video, not about a whole file."""
    return row["end_seconds"] is not None and "#t=" in row["id"]


def _marked_texts(answers: Sequence[Row]) -> Iterator[str]:
    """Yield texts, with a mark before each page where there are several."""
    pages = [row["id"].rpartition("#page=")[2] if "#page=" in row["id"] else "" for row in answers]
    marks, before = len(set(pages)) > 1, ""
    for row, page in zip(answers, pages, strict=True):
        if marks and page != before:
            yield f"[page {page}]"
        before = page
        yield row["text"]


class Sidecars:
    """Writes sidecars.

    Args:
        kind: ``txt``, ``srt`` or ``vtt``.
        record: ``OUTPUT.sidecars``.
        folder: Where the files go, in the same tree as the ids; None puts them beside the sources.
        overwrite: Whether files that were written from another OUTPUT are replaced too.
        overwrite_all: Whether files of others, or that were edited, are replaced too.

    Raises:
        OutputError: The folder cannot be made.
    """

    def __init__(
        self,
        kind: str,
        record: Path,
        *,
        folder: Path | None = None,
        overwrite: bool = False,
        overwrite_all: bool = False,
    ) -> None:
        self._kind, self._record_path, self._folder = kind, record, folder
        self._overwrite, self._overwrite_all = overwrite or overwrite_all, overwrite_all
        self._indexes = FolderIndexes()
        if folder is not None:
            try:
                folder.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise OutputError(f"cannot write sidecars to {folder}: {reason(error)}") from error

    def write(self, files: Iterable[FileRows]) -> dict[str, int]:
        """Write the sidecar of every file, whole or not at all, and then the record of them.

        Args:
            files: Files with their rows. One whose rows have no answer keeps its name.

        Returns:
            The number of sidecars that were ``written``; are ``unchanged``; were ``kept`` because
            they are not ours, or ``kept_ours`` because they are another OUTPUT's; are ``renamed``
            because another has the name (they count as written or unchanged too); and have
            ``no_place`` because their source is no file here.

        Raises:
            OutputError: Some could not be written; the others were.
        """
        record = SidecarRecord(self._record_path)
        counts = collections.Counter(dict.fromkeys(COUNTS, 0))
        failures: list[str] = []
        for name, rows in files:
            content = make_content(self._kind, rows)
            paths = self._paths(name, rows[0]["source"])
            if paths is None:
                counts["no_place"] += content is not None
                continue
            path = record.claim(name, rows[0]["source"], paths)
            if content is None:
                continue
            if path != paths[0]:
                counts["renamed"] += 1
                if counts["renamed"] <= SHOWN:
                    logger.warning(
                        "%s: another one has the sidecar %s; its own is %s",
                        *(name, os.fsdecode(paths[0]), os.fsdecode(path)),
                    )
            try:
                outcome = self._put(record, path, content)
            except OSError as error:
                failures.append(f"{clean_text(os.fsdecode(path))}: {reason(error)}")
                continue
            counts[outcome] += 1
            if outcome == "kept" and counts["kept"] <= SHOWN:
                logger.warning(
                    "%s is there and was not written from this output: it stays as it is",
                    os.fsdecode(path),
                )
        self._indexes.save()
        if counts["written"]:
            # Once for all: an fsync takes milliseconds, and there may be a million files.
            os.sync()
        record.save()
        if failures:
            more = f" and {len(failures) - 1} more" if len(failures) > 1 else ""
            raise OutputError(
                f"cannot write sidecars ({failures[0]}{more}); every answer is in the output, and "
                "the same command again writes what is missing"
            )
        return dict(counts)

    def _paths(self, name: str, source: str) -> list[bytes] | None:
        """Return the paths that a sidecar may have, best first; None when it has no place."""
        if self._folder is not None:
            parts = [part for part in name.split("/") if part not in ("", ".", "..")]
            whole = os.fsencode(self._folder.absolute().joinpath(*parts))
        else:
            found = find_source(source)
            if found is None:
                return None
            whole = os.path.abspath(found)
        suffix = f".{self._kind}".encode()
        return [os.path.splitext(whole)[0] + suffix, whole + suffix]

    def _put(self, record: SidecarRecord, path: bytes, content: bytes) -> SidecarOutcome:
        """Put a file in its place, unless another one is there that is not ours."""
        there: bytes | None = None
        try:
            mode = os.stat(path).st_mode
            if stat.S_ISREG(mode) or stat.S_ISDIR(mode):
                with open(path, "rb") as file:
                    there = file.read()
            elif not self._overwrite_all:
                return "kept"  # a pipe or a device, which must not be read
        except FileNotFoundError:
            os.makedirs(os.path.dirname(path), exist_ok=True)
        if there != content:
            # A file without content, which a power cut may leave, holds nothing to lose.
            holds_something = there is not None and there.strip(b"\0\r\n\t ")
            if holds_something and not self._overwrite_all:
                is_of_output = record.is_ours(path, there or b"")
                is_ours = is_of_output or self._indexes.has(path, there or b"")
                if not is_ours:
                    return "kept"
                if not is_of_output and not self._overwrite:
                    return "kept_ours"
            replace_file(path, content)
        record.note(path, content)
        self._indexes.note(path, content)
        return "unchanged" if there == content else "written"
