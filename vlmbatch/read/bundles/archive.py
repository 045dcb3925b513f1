"""Archives: their pictures or videos as parts of a job, without unpacking them to the disk.

A zip and an uncompressed tar are read entry by entry on the worker's thread. A compressed tar is
read once, front to back, and a picture's bytes are held only while it waits. A video has to be a
file: it is copied to a temporary one, which goes when its frames are decoded. In the manner of
WebDataset, entries that stand together and share their name up to its first dot are one sample,
whose ``.json`` and ``.txt`` give columns (``Job.keep``, ``Job.question_column``) to its pictures or
videos.
"""

from __future__ import annotations

import json
import posixpath
import re
from collections.abc import Iterator
from typing import Any, Literal

from vlmbatch.errors import ReadError
from vlmbatch.job import Job
from vlmbatch.read.base import Counts
from vlmbatch.read.bundles.manifest import carrying, questions_of
from vlmbatch.read.bundles.members import Limits, Member, tar_members, zip_members
from vlmbatch.read.files.kinds import file_status, media_of, printable
from vlmbatch.read.files.source import Found, Part

SIDECARS = (".json", ".txt")
MAX_SAMPLE = 64
"""Entries of a sample that are held together."""


class Archive:
    """Gives the pictures or the videos of an archive."""

    def __init__(
        self, path: str, name: str, job: Job, counts: Counts, names_only: bool = False
    ) -> None:
        """Opens nothing yet.

        Args:
            path: The file.
            name: What it is called in ids.
            job: The job.
            counts: Where what is of the other media is counted.
            names_only: Whether entries are only counted: what comes in a stream is then skipped.
        """
        self._path, self._name, self._job, self._counts, self._names_only = (
            path,
            name,
            job,
            counts,
            names_only,
        )
        self._copied: tuple[str, int] = "", 0
        self._sidecars = SIDECARS if (job.keep or job.question_column) and not names_only else ()

    def __iter__(self) -> Iterator[Part]:
        """Yields them in the order of the archive; if it is damaged, an error after the last one
        before the damage.
        """
        num_entries = 0
        try:
            for sample in self._samples():
                num_entries += len(sample)
                yield from self._parts(sample)
        except ReadError as exc:
            where = f"damaged after {num_entries} entries: " if num_entries else ""
            yield Part(
                Found(
                    "",
                    self._name,
                    printable(self._path),
                    file_status(self._path)[0],
                    f"{where}{exc}",
                ),
                self._name,
            )

    def _samples(self) -> Iterator[list[Member]]:
        """Pictures or videos and sidecars that belong together; each on its own when no sidecar is
        asked for.
        """
        read = zip_members if self._path.lower().endswith(".zip") else tar_members
        members = read(
            self._path,
            Limits(self._job.max_file_bytes, self._job.max_compression_ratio),
            self._wants,
        )
        if not self._sidecars:
            yield from ([member] for member in members)
            return
        sample: list[Member] = []
        try:
            for member in members:
                if sample and (
                    _key(member.name) != _key(sample[0].name) or len(sample) == MAX_SAMPLE
                ):
                    yield sample
                    sample = []
                sample.append(member)
        except ReadError:
            yield sample
            raise
        yield sample

    def _wants(self, name: str, size: int) -> Literal["bytes", "file"] | None:
        """What is asked for of an entry: nothing of hidden ones and other kinds, nor of videos that
        are too large together with others of their sample.
        """
        kind = self._kind(name)
        if self._names_only or kind not in (self._job.media, *self._sidecars):
            return None
        if kind != "video":
            return "bytes"
        sample, copied = self._copied
        copied = size + (copied if self._sidecars and sample == _key(name) else 0)
        if copied > self._job.max_file_bytes:
            return None
        self._copied = _key(name), copied
        return "file"

    def _kind(self, name: str) -> str | None:
        if any(part.startswith(".") and part not in (".", "..") for part in name.split("/")):
            return None
        suffix = posixpath.splitext(name)[1].lower()
        return suffix if suffix in self._sidecars else media_of(name)

    def _parts(self, sample: list[Member]) -> Iterator[Part]:
        columns: dict[str, Any] = {}
        trouble = None
        for member in sample:
            if self._kind(member.name) in self._sidecars:
                try:
                    columns.update(_columns(member))
                except ReadError as exc:
                    trouble = f"{posixpath.basename(member.name)} beside it: {exc}"
        for member in sample:
            kind = self._kind(member.name)
            self._counts.other_media += kind in ("image", "video") and kind != self._job.media
            if kind == self._job.media:
                yield self._part(member, columns, trouble)

    def _part(self, member: Member, columns: dict[str, Any], trouble: str | None) -> Part:
        name = printable(posixpath.normpath(member.name.lstrip("/")))
        error = member.error or _escapes(member.name) or trouble
        if (
            error is None
            and self._job.media == "video"
            and member.copy is None
            and not self._names_only
        ):
            error = f"the videos of its sample have more bytes than --max-file-size allows ({self._job.max_file_bytes:,})"
        questions: tuple[str, ...] = ()
        try:
            questions = (
                questions_of(columns.get(self._job.question_column))
                if self._job.question_column
                else ()
            )
        except ReadError as exc:
            error = error or str(exc)
        source = f"{printable(self._path)}/{name}"
        found = Found(
            "",
            "",
            source,
            member.fingerprint,
            error,
            read=member.read,
            held_bytes=member.held_bytes,
            copy=member.copy,
            is_copied=member.is_copied,
        )
        extra = {kept: columns.get(column) for column, kept in self._job.kept_columns.items()}
        return Part(carrying(found, f"{self._name}/{name}", extra, questions), name)


def _key(name: str) -> str:
    """What the entries of a sample share."""
    folder, base = posixpath.split(name)
    return f"{folder}/{base.partition('.')[0]}"


def _columns(member: Member) -> dict[str, Any]:
    """What a sidecar says: the keys of a JSON object (and ``json``, all of it), or ``txt``, its
    text.
    """
    if member.error:
        raise ReadError(member.error)
    try:
        text = member.read().decode("utf-8-sig")
        if member.name.lower().endswith(".txt"):
            return {"txt": text.strip()}
        value = json.loads(text)
    except ValueError as exc:
        raise ReadError(
            "not JSON" if member.name.lower().endswith(".json") else "not UTF-8 text"
        ) from exc
    return {"json": value, **(value if isinstance(value, dict) else {})}


def _escapes(name: str) -> str | None:
    """Why an entry's name is none to trust; None when it stays inside the archive."""
    if name.startswith("/") or re.match(r"[A-Za-z]:", name) or ".." in name.split("/"):
        return f"the entry's name leads out of the archive: {printable(name)}"
    return None
