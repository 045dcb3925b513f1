"""INPUTs to files, and to what manifests and archives name: what each is called (its id), which
belong to the job, and which were given before.
"""

from __future__ import annotations

import dataclasses
import hashlib
import os
import sys
from collections.abc import Iterable, Iterator
from typing import BinaryIO

from vlmbatch.core import RECORD_FIELDS
from vlmbatch.errors import JobError, MissingDependencyError
from vlmbatch.job import Job, Kind
from vlmbatch.read.base import Counts, one_line
from vlmbatch.read.bundles.kinds import bundle_kind, open_bundle
from vlmbatch.read.extras import missing_for
from vlmbatch.read.fetch.remote import RemoteInput
from vlmbatch.read.files.kinds import (
    file_status,
    matches_any,
    media_of,
    place_of,
    printable,
    read_paths,
    suffix_of,
)
from vlmbatch.read.files.source import Found, Part
from vlmbatch.read.files.walk import Begun, Entry, Glob, is_glob, walk
from vlmbatch.urls import is_url, url_host, url_name, without_credentials


@dataclasses.dataclass(frozen=True, slots=True)
class _Input:
    """An INPUT, looked at once. ``name`` sets its files apart from those of other INPUTs with the
    same id.
    """

    text: str
    kind: str
    name: str
    glob: Glob | None = None
    begun: Begun | None = None
    remote: RemoteInput | None = None


class Listing:
    """The files of a job, lazily, in input order.

    What it remembers while it is iterated: the folders listed and, when files can be given twice
    (several INPUTs, or stdin), 32 bytes of digests a file.

    Raises:
        JobError: An INPUT does not exist, cannot be listed, matches nothing or is of the other
            media.
    """

    def __init__(self, job: Job, stdin: BinaryIO | None = None, names_only: bool = False) -> None:
        """Looks at every INPUT once; lists nothing.

        Args:
            job: The job.
            stdin: Where the INPUT ``-`` reads paths from, instead of standard input.
            names_only: Whether files are only counted: what manifests and archives hold is then not
                read.
        """
        self.counts = Counts()
        self._job = job
        self._names_only = names_only
        self._rows_ask = job.task == "vqa" and not (job.questions or job.questions_file)
        self._media: Kind = job.media
        self._include, self._exclude = job.include, job.exclude
        self._stdin = stdin
        if job.inputs.count("-") > 1:
            raise JobError("the INPUT - (paths on stdin) can be given once")
        self._inputs = [self._look_at(text) for text in job.inputs]
        self._all_files = all(given.kind == "file" for given in self._inputs)
        self._may_repeat = len(self._inputs) > 1 or "-" in job.inputs
        if taken := set(job.kept_columns.values()) & set(RECORD_FIELDS):
            raise JobError(
                f"keep: every record has a key {min(taken)!r} of its own; carry the column under another name, such as {min(taken)}=my_{min(taken)}"
            )
        if job.keep and all(given.kind in ("file", "folder") for given in self._inputs):
            raise JobError("keep carries columns of manifests and archives, and no INPUT is one")
        self._places_seen: set[bytes] = set()
        self._ids_seen: set[bytes] = set()

    def __len__(self) -> int:
        """How many INPUTs there are."""
        return len(self._inputs)

    def __iter__(self) -> Iterator[Found]:
        """Yields the files. ``counts`` starts over."""
        self.counts.other_media = self.counts.filtered = self.counts.duplicates = 0
        self._places_seen.clear()
        self._ids_seen.clear()
        for given in self._inputs:
            for entry in self._entries(given):
                if self._is_opened(entry, given):
                    yield from self._inside(entry, given)
                elif (found := self._take(entry, given)) is not None:
                    yield found

    def _look_at(self, text: str) -> _Input:
        if text == "-":
            return _Input(text, "stdin", "stdin")
        if is_url(text):
            return self._look_at_url(text)
        parent = os.path.basename(os.path.dirname(os.path.abspath(text)))
        if os.path.isdir(text):
            try:
                os.scandir(text).close()
            except OSError as exc:
                raise JobError(
                    f"cannot list the folder {printable(text)}: {one_line(exc)}"
                ) from exc
            return _Input(text, "folder", os.path.basename(os.path.abspath(text)))
        if os.path.exists(text):
            self._check_file(text)
            if bundle_kind(text) is not None:
                if self._is_output(text):
                    raise JobError(
                        f"{printable(text)} is INPUT and OUTPUT at once; give another OUTPUT with -o"
                    )
                self._open(text, os.path.basename(text))
                return _Input(text, "bundle", parent)
            return _Input(text, "file", parent)
        if not is_glob(text):
            raise JobError(f"no such file or folder: {printable(text)}")
        glob = Glob.parse(text)
        try:
            begun = Begun(glob.entries)
        except OSError as exc:
            raise JobError(
                f"cannot list the folder {printable(glob.root)}: {one_line(exc)}"
            ) from exc
        if begun.is_empty:
            raise JobError(f"no file matches {printable(text)}")
        return _Input(text, "glob", os.path.basename(os.path.abspath(glob.root)), glob, begun)

    def _look_at_url(self, text: str) -> _Input:
        remote = RemoteInput(text, self._job)
        if remote.kind == "file":
            self._check_file(text)
        return _Input(
            text,
            remote.kind,
            url_name(text) if remote.kind == "folder" else url_host(text),
            remote.glob,
            remote=remote,
        )

    def _check_file(self, text: str) -> None:
        """Refuses a file that was named and cannot be of the job."""
        media = media_of(text)
        if media is not None and media != self._media:
            raise JobError(_other_media(text))
        missing = missing_for(suffix_of(text))
        if missing is not None:
            raise MissingDependencyError(missing)

    def _entries(self, given: _Input) -> Iterator[Entry]:
        if given.remote is not None:
            try:
                yield from given.remote.entries()
            except Exception as exc:  # a file system's own errors, once the listing has begun
                yield Entry(given.text, given.name, f"not listed: {one_line(exc)}")
        elif given.kind in ("folder", "glob"):
            try:
                yield from given.begun if given.begun is not None else walk(given.text)
            except OSError as exc:
                yield Entry(given.text, given.name, f"folder not listed: {one_line(exc)}")
        elif given.kind in ("file", "bundle"):
            yield Entry(given.text, os.path.basename(given.text))
        else:
            for path in read_paths(self._stdin or sys.stdin.buffer):
                yield Entry(
                    path,
                    without_credentials(path)
                    if is_url(path)
                    else path.replace(os.sep, "/").removeprefix("./"),
                )

    def _is_opened(self, entry: Entry, given: _Input) -> bool:
        """Whether a file is taken for what it holds: one that the user named, not one that lies in
        a folder.
        """
        kind = bundle_kind(entry.path)
        if entry.error is not None or given.kind == "folder" or kind is None:
            return False
        if given.glob is None or given.glob.names_suffix(os.path.splitext(entry.path)[1].lower()):
            return True
        # Notes and tables lie about everywhere; an archive is nothing else.
        return kind == "archive" and given.glob.names(entry.relative)

    def _is_output(self, path: str) -> bool:
        if is_url(self._job.output_path):
            return path == self._job.output_path
        return os.path.realpath(path) == os.path.realpath(self._job.output_path)

    def _open(self, path: str, name: str) -> Iterable[Part]:
        return open_bundle(path, printable(name), self._job, self.counts, self._names_only)

    def _inside(self, entry: Entry, given: _Input) -> Iterator[Found]:
        """What a manifest or archive holds and belongs to the job."""
        if self._is_output(entry.path) or self._seen_before(place_of(entry.path)):
            return  # a glob may find the OUTPUT of an earlier run
        try:
            parts = self._open(entry.path, entry.relative)
        except JobError as exc:
            name = printable(entry.relative)
            parts = [
                Part(
                    Found("", name, printable(entry.path), file_status(entry.path)[0], str(exc)),
                    name,
                )
            ]
        for part in parts:
            found = part.found
            if not self._passes(part.match):
                self.counts.filtered += 1
                continue
            if part.repeats and self._seen_before(part.repeats):
                continue
            if (found.held_bytes or found.is_copied) and self._job.shuffle:
                raise JobError(
                    f"shuffle would hold all that {found.source} and what follows it have inside; it takes files, zip and plain tar"
                )
            if (
                found.path
                and found.error is None
                and media_of(found.path) not in (self._media, None)
            ):
                found = dataclasses.replace(found, error=_other_media(found.path))
            if self._rows_ask and not found.questions:
                found = dataclasses.replace(
                    found,
                    error=found.error or "it has no question, and the job has none",
                    questions=("",),
                )
            yield dataclasses.replace(
                found, id=self._unique(found.id, printable(given.name), part.label, found.questions)
            )

    def _seen_before(self, place: str) -> bool:
        """Whether this was given before; counts it if so."""
        seen = _digest(place)
        if seen in self._places_seen:
            self.counts.duplicates += 1
            return True
        self._places_seen.add(seen)
        return False

    def _take(self, entry: Entry, given: _Input) -> Found | None:
        """Decides whether a file belongs to the job, and names it."""
        media, error = media_of(entry.path), entry.error
        if error is None and media is not None and media != self._media:
            if given.kind != "stdin":
                self.counts.other_media += 1
                return None
            error = _other_media(entry.path)
        if error is None and media is None and given.kind in ("folder", "glob"):
            suffix = suffix_of(entry.path)
            if given.glob is None or not given.glob.names_suffix(suffix):
                return None
        name = printable(entry.relative)
        if not self._passes(name):
            self.counts.filtered += 1
            return None
        if self._may_repeat:
            if self._seen_before(place_of(entry.path)):
                return None
            name = self._unique(name, printable(given.name))
        fingerprint = entry.fingerprint
        if error is None and not is_url(entry.path) and not self._is_only_counted(entry.path):
            fingerprint, error = file_status(entry.path)
        return Found(
            entry.path,
            name,
            printable(without_credentials(entry.path)),
            fingerprint,
            error or missing_for(suffix_of(entry.path)),
        )

    def _is_only_counted(self, path: str) -> bool:
        """Whether nobody will open the file, so that it need not be looked at."""
        return self._names_only and self._job.pages is None and suffix_of(path) != ".pdf"

    def _unique(
        self, name: str, input_name: str, label: str = "", questions: tuple[str, ...] = ()
    ) -> str:
        """An id that no other thing has; two that are asked different questions may share one, as
        their rows differ.
        """
        candidate, number = name, 1
        while self._ids_seen.intersection(
            keys := {_digest("\0".join((candidate, question))) for question in questions or ("",)}
        ):
            name += label
            candidate = (
                name if label else f"{input_name}/{name}" + (f"#{number}" if number > 1 else "")
            )
            number += not label
            label = ""
        self._ids_seen |= keys
        return candidate

    def _passes(self, name: str) -> bool:
        return (not self._include or matches_any(name, self._include)) and not matches_any(
            name, self._exclude
        )


def _other_media(path: str) -> str:
    what, command = ("a video", "video") if media_of(path) == "video" else ("a picture", "caption")
    return f"{printable(without_credentials(path))} is {what}: use `vlmbatch {command}`"


def _digest(text: str) -> bytes:
    return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16).digest()
