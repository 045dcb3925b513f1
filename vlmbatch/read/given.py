"""An INPUT as it was given: a file, a folder, a glob, a manifest or archive, a URL, or ``-``."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from typing import BinaryIO

from vlmbatch.errors import JobError, MissingDependencyError, VlmbatchError, one_line
from vlmbatch.job import Kind
from vlmbatch.read.bundles.kinds import bundle_kind
from vlmbatch.read.extras import missing_for
from vlmbatch.read.fetch.remote import Web
from vlmbatch.read.fetch.stores import Stores
from vlmbatch.read.files.kinds import (
    is_text_named_video,
    other_media,
    printable,
    read_paths,
    shown,
    suffix_of,
)
from vlmbatch.read.files.walk import Begun, Disk, Glob, WalkedFile, is_glob, walk
from vlmbatch.urls import is_url, is_web, url_host, url_name, without_credentials


class GivenInput:
    """An INPUT, looked at once.

    Attributes:
        text: As it was given.
        kind: ``stdin``, ``file``, ``bundle``, ``folder`` or ``glob``.
        name: Sets its files apart from those of other INPUTs with the same id.
        glob: The pattern, if it is one.

    Raises:
        JobError: It does not exist, cannot be listed, matches nothing or is of the other media.
        MissingDependencyError: It needs a package that is not installed.
    """

    def __init__(
        self, text: str, media: Kind, *, allow_private: bool = False, allow_empty: bool = False
    ) -> None:
        self.text, self._media, self._root = text, media, text
        self._allow_empty = allow_empty
        self.kind, self.name = "stdin", "stdin"
        self.glob: Glob | None = None
        self._begun: Begun | None = None
        if text == "-":
            return
        make = Web if is_web(text) else Stores
        self._place = make(allow_private=allow_private) if is_url(text) else Disk()
        try:
            self._look()
        except VlmbatchError:
            raise
        except Exception as exc:  # a store's own errors, too
            what = "cannot look at" if is_url(text) else "cannot list the folder"
            place = printable(without_credentials(self._root))
            raise JobError(f"{what} {place}: {one_line(exc)}") from exc

    def _look(self) -> None:
        """Find out what it is."""
        text, name = self.text, printable(without_credentials(self.text))
        kind = self._place.kind_of(text)
        if kind is None and not is_glob(text):
            raise JobError(f"no such file or folder: {name}")
        self.kind = kind or "glob"
        if kind == "file":
            self._check_file()
            self._root = os.path.dirname(text)
            if not is_url(text) and bundle_kind(text) is not None:
                self.kind = "bundle"
        elif kind is None:
            self.glob = Glob.parse(text)
            self._root = self.glob.root
            if is_url(text) and not is_url(self._root):
                raise JobError(f"a bucket cannot be a pattern: {name}")
            self._begun = Begun(self._walked)
            if self._begun.is_empty and not self._allow_empty:
                raise JobError(f"no file matches {name}")
        if is_url(text):
            self.name = url_name(text) if kind == "folder" else url_host(text)
        else:
            self.name = os.path.basename(os.path.abspath(self._root))

    def _check_file(self) -> None:
        """Refuse a file that was named and cannot be of the job."""
        if error := other_media(self.text, self._media):
            raise JobError(error)
        if missing := missing_for(suffix_of(self.text)):
            raise MissingDependencyError(missing)
        if is_text_named_video(self.text):
            raise JobError(f"{printable(self.text)} is text, not a video")

    def _walked(self) -> Iterator[WalkedFile]:
        """Yield the files below the folder, or those that the pattern matches."""
        return walk(self._root, self._place.lister(self._root, self.glob), self.glob)

    def files(self, stdin: BinaryIO | None) -> Iterator[WalkedFile]:
        """Yield its files; a folder that cannot be listed comes with an error.

        Args:
            stdin: Stands for standard input.
        """
        try:
            yield from self._listed(stdin)
        except Exception as exc:  # a store's own errors, too, once the listing has begun
            what = "folder not listed" if self.kind in ("folder", "glob") else "not read"
            yield WalkedFile(self.text, self.name, f"{what}: {one_line(exc)}")

    def _listed(self, stdin: BinaryIO | None) -> Iterator[WalkedFile]:
        if self.kind in ("folder", "glob"):
            yield from self._begun or self._walked()
        elif self.kind == "stdin":
            for path in read_paths(stdin or sys.stdin.buffer):
                yield WalkedFile(path, shown(path))
        else:
            yield self._place.file(self.text)

    def opens(self, file: WalkedFile) -> bool:
        """Return whether a manifest or archive is opened: one that the user named, not one that
        lies in a folder.
        """
        kind = bundle_kind(file.path)
        if file.error is not None or self.kind == "folder" or kind is None:
            return False
        if self.glob is None or self.glob.names_suffix(os.path.splitext(file.path)[1].lower()):
            return True
        # Notes and tables lie about everywhere; an archive is nothing else.
        return kind == "archive" and self.glob.names(file.relative)
