"""Archives: their pictures or videos, without unpacking them to the disk.

A zip and an uncompressed tar are read entry by entry on the worker's thread. A compressed tar is
read once, front to back, and a picture's bytes are held only while it waits. A video has to be a
file: it is copied to a temporary one, which goes when its frames are decoded. As in WebDataset,
entries that stand together and share their name up to its first dot are one sample, whose ``.json``
and ``.txt`` give columns (``keep``, ``question_column``) to its pictures or videos.
"""

from __future__ import annotations

import posixpath
import re
from collections.abc import Iterator
from typing import Any, Literal

from vlmbatch.errors import ReadError
from vlmbatch.job import InputOptions, QuestionOptions
from vlmbatch.read.base import Counts
from vlmbatch.read.bundles.columns import carried, questions_of, with_columns
from vlmbatch.read.bundles.limits import Limits, Member, suffix_in
from vlmbatch.read.bundles.tar import tar_members
from vlmbatch.read.bundles.zip import zip_members
from vlmbatch.read.files.kinds import file_status, is_system_folder, media_of, printable
from vlmbatch.read.files.page_choice import PageChoice
from vlmbatch.read.files.source import Candidate, Listed, Unreadable
from vlmbatch.text_files import parse_json

SIDECARS = (".json", ".txt")
MAX_SAMPLE = 64
"""Entries of a sample that are held together."""


class Archive:
    """Gives the pictures or the videos of an archive."""

    def __init__(
        self,
        path: str,
        name: str,
        options: InputOptions,
        asked: QuestionOptions,
        counts: Counts,
        names_only: bool = False,
    ) -> None:
        """Open nothing yet.

        Args:
            path: The file.
            name: Its name in ids.
            options: Media, limits, pages and kept columns.
            asked: Names the key of a sample's questions.
            counts: Counts entries of the other media, and folders of systems.
            names_only: Whether entries are only counted: those of a stream are then skipped.
        """
        self._path, self._name, self._options, self._counts = path, name, options, counts
        self._question_column, self._names_only = asked.question_column, names_only
        self._pages = PageChoice(options.pages)
        self._copied: tuple[str, int] = "", 0
        self._system_folders: set[str] = set()
        has_columns = bool(options.keep or asked.question_column) and not names_only
        self._sidecars = SIDECARS if has_columns else ()

    def __iter__(self) -> Iterator[Candidate]:
        """Yield them in the order of the archive; if it is damaged, an error after the last one
        before the damage.
        """
        num_entries = 0
        try:
            for sample in self._samples():
                num_entries += len(sample)
                yield from self._candidates(sample)
        except ReadError as exc:
            where = f"damaged after {num_entries} entries: " if num_entries else ""
            fingerprint, _ = file_status(self._path)
            content = Unreadable(f"{where}{exc}")
            yield Candidate(
                Listed(self._name, printable(self._path), content, fingerprint), self._name
            )

    def _samples(self) -> Iterator[list[Member]]:
        """Yield pictures or videos and sidecars that belong together; each on its own when no
        sidecar is asked for.
        """
        limits = Limits(self._options.max_file_bytes, self._options.max_compression_ratio)
        members = (
            zip_members(self._path, limits)
            if self._path.lower().endswith(".zip")
            else tar_members(self._path, limits, self._how)
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

    def _how(self, name: str, size: int) -> Literal["bytes", "file"] | None:
        """Say how an entry of a stream is held: not at all if it is hidden or of another kind.

        Raises:
            ReadError: It is a video that is too large together with others of its sample.
        """
        kind = self._kind(name)
        if kind not in (self._options.media, *self._sidecars):
            return None
        if self._names_only:
            is_counted = kind == "image" and self._pages.counts(suffix_in(name))
            return "bytes" if is_counted else None
        if kind != "video":
            return "bytes"
        sample, copied = self._copied
        copied = size + (copied if self._sidecars and sample == _key(name) else 0)
        if copied > self._options.max_file_bytes:
            raise ReadError(
                "the videos of its sample have more bytes than --max-file-size allows "
                f"({self._options.max_file_bytes:,})"
            )
        self._copied = _key(name), copied
        return "file"

    def _kind(self, name: str) -> str | None:
        *folders, _ = parts = name.split("/")
        if any(part.startswith(".") and part not in (".", "..") for part in parts):
            return None
        if any(map(is_system_folder, folders)):
            return None
        suffix = suffix_in(name)
        return suffix if suffix in self._sidecars else media_of(name)

    def _candidates(self, sample: list[Member]) -> Iterator[Candidate]:
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
            self._counts.other_media += kind in ("image", "video") and kind != self._options.media
            self._count_system_folder(member.name)
            if kind == self._options.media:
                yield self._candidate(member, columns, trouble)

    def _count_system_folder(self, name: str) -> None:
        """Count the folder of a system that an entry is in, once."""
        parts = name.split("/")[:-1]
        number = next((at for at, part in enumerate(parts, 1) if is_system_folder(part)), 0)
        if number and (folder := "/".join(parts[:number])) not in self._system_folders:
            self._system_folders.add(folder)
            self._counts.system_folders += 1

    def _candidate(self, member: Member, columns: dict[str, Any], trouble: str | None) -> Candidate:
        name = printable(posixpath.normpath(member.name.lstrip("/")))
        content = member.content
        questions: tuple[str, ...] = ()
        try:
            if self._question_column:
                questions = questions_of(columns.get(self._question_column))
        except ReadError as exc:
            trouble = trouble or str(exc)
        trouble = _escapes(member.name) or trouble
        if trouble is not None and not isinstance(content, Unreadable):
            content = Unreadable(trouble)
        listed = Listed("", f"{printable(self._path)}/{name}", content, member.fingerprint)
        extra = carried(columns, self._options.kept_columns, self._counts)
        return Candidate(with_columns(listed, f"{self._name}/{name}", extra, questions), name)


def _key(name: str) -> str:
    """Return what the entries of a sample share."""
    folder, base = posixpath.split(name)
    return f"{folder}/{base.partition('.')[0]}"


def _columns(member: Member) -> dict[str, Any]:
    """Return the columns of a sidecar: the keys of a JSON object (and ``json``, all of it), or
    ``txt``, its text.
    """
    is_text = suffix_in(member.name) == ".txt"
    data = member.content.read()
    try:
        text = data.decode("utf-8-sig")
        if is_text:
            return {"txt": text.strip()}
        value = parse_json(text)
    except ValueError as exc:
        raise ReadError("not UTF-8 text" if is_text else "not JSON") from exc
    return {"json": value, **(value if isinstance(value, dict) else {})}


def _escapes(name: str) -> str | None:
    """Return why the name of an entry leads out of the archive; None when it does not."""
    if name.startswith("/") or re.match(r"[A-Za-z]:", name) or ".." in name.split("/"):
        return f"the entry's name leads out of the archive: {printable(name)}"
    return None
