"""INPUTs to files, and to the content of manifests and archives: gives each thing its id, decides
which belong to the job, and takes a thing that was given twice once.
"""

from __future__ import annotations

import dataclasses
import hashlib
import logging
import os
from collections.abc import Iterable, Iterator
from typing import BinaryIO

from vlmbatch.core import RECORD_FIELDS
from vlmbatch.errors import JobError
from vlmbatch.job import InputOptions, QuestionOptions
from vlmbatch.read.base import Counts
from vlmbatch.read.bundles.archive import Archive
from vlmbatch.read.bundles.kinds import bundle_kind
from vlmbatch.read.bundles.manifest import Manifest
from vlmbatch.read.extras import missing_for
from vlmbatch.read.fetch.remote import source_of
from vlmbatch.read.files.kinds import (
    file_status,
    is_text_named_video,
    is_unnamed_picture,
    matches_any,
    media_of,
    other_media,
    place_of,
    printable,
    suffix_of,
)
from vlmbatch.read.files.page_choice import PageChoice
from vlmbatch.read.files.source import Candidate, Listed, Unreadable
from vlmbatch.read.files.walk import WalkedFile
from vlmbatch.read.given import GivenInput
from vlmbatch.urls import is_url, without_credentials

logger = logging.getLogger(__name__)

MAX_LOOKS = 100
"""The most files without an extension that are opened to see whether they are pictures."""


class Listing:
    """The files of a job, lazily, in input order.

    While it is iterated, it remembers the folders listed and, when files can be given twice
    (several INPUTs, or stdin), 32 bytes of digests a file.

    Raises:
        JobError: An INPUT does not exist, cannot be listed, matches nothing or is of the other
            media.
        MissingDependencyError: An INPUT needs a package that is not installed.
    """

    def __init__(
        self,
        options: InputOptions,
        asked: QuestionOptions,
        output_path: str,
        stdin: BinaryIO | None = None,
        names_only: bool = False,
    ) -> None:
        """Look at every INPUT once; list nothing.

        Args:
            options: The INPUTs, and how they are read.
            asked: Says whether rows ask questions, and in which column.
            output_path: OUTPUT, which is no INPUT.
            stdin: Where the INPUT ``-`` reads paths from, instead of standard input.
            names_only: Whether files are only counted: the content of manifests and archives is
                then not read.
        """
        self.counts = Counts()
        self._options, self._asked, self._output_path = options, asked, output_path
        self._stdin, self._names_only = stdin, names_only
        self._pages = PageChoice(options.pages)
        self._rows_ask = asked.task == "vqa" and not (asked.questions or asked.questions_file)
        if options.inputs.count("-") > 1:
            raise JobError("the INPUT - (paths on stdin) can be given once")
        self._inputs = [
            GivenInput(
                text,
                options.media,
                allow_private=options.allow_private_urls,
                allow_empty=options.allow_empty,
            )
            for text in options.inputs
        ]
        for given in self._inputs:
            if given.kind == "bundle":
                self._check_bundle(given.text)
        self._may_repeat = len(self._inputs) > 1 or "-" in options.inputs
        self._check_keep()
        self._check_columns()
        self._places_seen: set[bytes] = set()
        self._ids_seen: set[bytes] = set()
        self._looks_left = 0
        self._repeated: tuple[str, str] | None = None

    def _check_bundle(self, path: str) -> None:
        if self._is_output(path):
            raise JobError(
                f"{printable(path)} is INPUT and OUTPUT at once; give another OUTPUT with -o"
            )
        self._open(path, os.path.basename(path))

    def _check_keep(self) -> None:
        if taken := set(self._options.kept_columns.values()) & set(RECORD_FIELDS):
            name = min(taken)
            raise JobError(
                f"keep: every record has a key {name!r} of its own; "
                f"carry the column under another name, such as {name}=my_{name}"
            )
        if self._options.keep and all(given.kind in ("file", "folder") for given in self._inputs):
            raise JobError("keep carries columns of manifests and archives, and no INPUT is one")

    def _check_columns(self) -> None:
        for name in ("path_column", "id_column"):
            column = getattr(self._options, name)
            if column and all(given.kind in ("file", "folder") for given in self._inputs):
                raise JobError(
                    f"{name} is a column of a manifest, and no INPUT is one: there is no {column!r}"
                )

    def __iter__(self) -> Iterator[Listed]:
        """Yield the files. ``counts`` starts over."""
        self.counts.reset()
        self._places_seen.clear()
        self._ids_seen.clear()
        self._looks_left = 0 if self._names_only else MAX_LOOKS
        self._repeated = None
        for given in self._inputs:
            for file in given.files(self._stdin):
                if file.is_left_alone:
                    self.counts.system_folders += 1
                elif given.opens(file):
                    yield from self._inside(file, given)
                elif (listed := self._take(file, given)) is not None:
                    yield listed
        if self._repeated and not self._names_only:
            count, (name, item_id) = self.counts.repeated_ids, self._repeated
            logger.warning(
                "%d %s there before and got another one, as %s is %s now: --id-column names a "
                "column that tells them apart",
                *(count, "id was" if count == 1 else "ids were", name, item_id),
            )
        if (lost := self.counts.values_not_carried) and not self._names_only:
            logger.warning(
                "%d %s of --keep cannot be carried and %s null in OUTPUT",
                *(lost, "value" if lost == 1 else "values", "is" if lost == 1 else "are"),
            )

    def _is_output(self, path: str) -> bool:
        """Return whether a file is OUTPUT, or the list of its runs beside it."""
        path = path.removesuffix(".runs.jsonl")
        if is_url(self._output_path):
            return path == self._output_path
        return os.path.realpath(path) == os.path.realpath(self._output_path)

    def _open(self, path: str, name: str) -> Iterable[Candidate]:
        """Return the content of a manifest or archive, in its order.

        Raises:
            JobError: The columns of a manifest cannot be understood.
        """
        open_bundle = Manifest if bundle_kind(path) == "manifest" else Archive
        return open_bundle(
            path, printable(name), self._options, self._asked, self.counts, self._names_only
        )

    def _inside(self, file: WalkedFile, given: GivenInput) -> Iterator[Listed]:
        """Yield the content of a manifest or archive that belongs to the job."""
        if self._is_output(file.path) or self._seen_before(place_of(file.path)):
            return  # a glob may find the OUTPUT of an earlier run
        try:
            candidates = self._open(file.path, file.relative)
        except JobError as exc:
            name, source = printable(file.relative), printable(file.path)
            fingerprint, _ = file_status(file.path)
            candidates = [Candidate(Listed(name, source, Unreadable(str(exc)), fingerprint), name)]
        for candidate in candidates:
            listed = candidate.listed
            if not self._passes(candidate.match):
                self.counts.filtered += 1
                continue
            if candidate.repeats and self._seen_before(candidate.repeats):
                continue
            if listed.content.is_held and self._options.shuffle and not self._names_only:
                raise JobError(
                    f"shuffle would hold all that {listed.source} and what follows it have inside; "
                    "it takes files, zip and plain tar"
                )
            if self._rows_ask and not listed.questions:
                listed = _without_question(listed)
            item_id = self._unique(
                listed.id, printable(given.name), candidate.label, listed.questions
            )
            if item_id != listed.id and candidate.label:
                self._repeated = self._repeated or (listed.id, item_id)
                self.counts.repeated_ids += 1
            yield dataclasses.replace(listed, id=item_id)

    def _seen_before(self, place: str) -> bool:
        """Return whether this was given before; counts it if so."""
        seen = _digest(place)
        if seen in self._places_seen:
            self.counts.duplicates += 1
            return True
        self._places_seen.add(seen)
        return False

    def _take(self, file: WalkedFile, given: GivenInput) -> Listed | None:
        """Decide whether a file belongs to the job, and name it."""
        is_found = given.kind in ("folder", "glob")  # rather than named
        error = file.error
        if error is None and is_text_named_video(file.path):
            if is_found:
                self.counts.text_files += 1
                return None
            error = "it is text, not a video"
        other = other_media(file.path, self._options.media)
        if error is None and other is not None and given.kind != "stdin":
            self.counts.other_media += 1
            return None
        error = error or other
        if (
            error is None
            and is_found
            and media_of(file.path) is None
            and (given.glob is None or not given.glob.names_suffix(suffix_of(file.path)))
        ):
            self._count_unnamed(file.path)
            return None
        name = printable(file.relative)
        if not self._passes(name):
            self.counts.filtered += 1
            return None
        if self._may_repeat:
            if self._seen_before(place_of(file.path)):
                return None
            name = self._unique(name, printable(given.name))
        fingerprint = file.fingerprint
        if error is None and not is_url(file.path) and not self._is_only_counted(file.path):
            fingerprint, error = file_status(file.path)
        error = error or missing_for(suffix_of(file.path))
        source = printable(without_credentials(file.path))
        content = source_of(file.path, self._options) if error is None else Unreadable(error)
        return Listed(name, source, content, fingerprint)

    def _count_unnamed(self, path: str) -> None:
        """Count a picture without an extension; only the first such files are looked at."""
        if self._options.media == "image" and not suffix_of(path) and self._looks_left:
            self._looks_left -= 1
            self.counts.without_suffix += is_unnamed_picture(path)

    def _is_only_counted(self, path: str) -> bool:
        """Return whether nobody will open the file, so that it need not be looked at."""
        suffix = suffix_of(path)
        return self._names_only and bool(suffix) and not self._pages.counts(suffix)

    def _unique(
        self, name: str, input_name: str, label: str = "", questions: tuple[str, ...] = ()
    ) -> str:
        """Return an id that no other thing has; two that are asked different questions may share
        one, as their rows differ.
        """
        candidate, number = name, 1
        while self._ids_seen.intersection(
            keys := {_digest(f"{candidate}\0{question}") for question in questions or ("",)}
        ):
            name += label
            candidate = name
            if not label:
                candidate = f"{input_name}/{name}" + (f"#{number}" if number > 1 else "")
                number += 1
            label = ""
        self._ids_seen |= keys
        return candidate

    def _passes(self, name: str) -> bool:
        include, exclude = self._options.include, self._options.exclude
        return (not include or matches_any(name, include)) and not matches_any(name, exclude)


def _without_question(listed: Listed) -> Listed:
    """Return a row that asks nothing as an error row, as the job asks nothing either."""
    content = listed.content
    if not isinstance(content, Unreadable):
        content = Unreadable("it has no question, and the job has none")
    return dataclasses.replace(listed, content=content, questions=("",))


def _digest(text: str) -> bytes:
    return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16).digest()
