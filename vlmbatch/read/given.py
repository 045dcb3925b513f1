"""An INPUT as it was given: a file, a folder, a glob, a manifest or archive, a URL, or ``-``."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from typing import BinaryIO

from vlmbatch.errors import JobError, MissingDependencyError
from vlmbatch.job import Kind
from vlmbatch.read.base import one_line
from vlmbatch.read.bundles.kinds import bundle_kind
from vlmbatch.read.extras import missing_for
from vlmbatch.read.fetch.remote import RemoteInput
from vlmbatch.read.files.kinds import (
    is_text_named_video,
    other_media,
    printable,
    read_paths,
    shown,
    suffix_of,
)
from vlmbatch.read.files.walk import Begun, Glob, WalkedFile, is_glob, walk
from vlmbatch.urls import is_url, url_host, url_name


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

    def __init__(self, text: str, media: Kind, *, allow_private: bool = False) -> None:
        self.text, self._media = text, media
        self.glob: Glob | None = None
        self._files: Begun | None = None
        self._remote: RemoteInput | None = None
        if text == "-":
            self.kind = self.name = "stdin"
        elif is_url(text):
            self._remote = RemoteInput(text, allow_private=allow_private)
            self.kind, self.glob = self._remote.kind, self._remote.glob
            self.name = url_name(text) if self.kind == "folder" else url_host(text)
            if self.kind == "file":
                self._check_file()
        elif os.path.isdir(text):
            self.kind, self.name = "folder", os.path.basename(os.path.abspath(text))
            self._check_folder()
        elif os.path.exists(text):
            self.kind = "file" if bundle_kind(text) is None else "bundle"
            self.name = os.path.basename(os.path.dirname(os.path.abspath(text)))
            self._check_file()
        else:
            self._begin_glob()

    def _check_file(self) -> None:
        """Refuse a file that was named and cannot be of the job."""
        if error := other_media(self.text, self._media):
            raise JobError(error)
        if missing := missing_for(suffix_of(self.text)):
            raise MissingDependencyError(missing)
        if is_text_named_video(self.text):
            raise JobError(f"{printable(self.text)} is text, not a video")

    def _check_folder(self) -> None:
        try:
            os.scandir(self.text).close()
        except OSError as exc:
            raise _not_listed(self.text, exc) from exc

    def _begin_glob(self) -> None:
        if not is_glob(self.text):
            raise JobError(f"no such file or folder: {printable(self.text)}")
        self.kind, self.glob = "glob", Glob.parse(self.text)
        self.name = os.path.basename(os.path.abspath(self.glob.root))
        try:
            self._files = Begun(self.glob.files)
        except OSError as exc:
            raise _not_listed(self.glob.root, exc) from exc
        if self._files.is_empty:
            raise JobError(f"no file matches {printable(self.text)}")

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
        if self._remote is not None:
            yield from self._remote.files()
        elif self.kind in ("folder", "glob"):
            yield from self._files if self._files is not None else walk(self.text)
        elif self.kind == "stdin":
            for path in read_paths(stdin or sys.stdin.buffer):
                yield WalkedFile(path, shown(path))
        else:
            yield WalkedFile(self.text, os.path.basename(self.text))

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


def _not_listed(folder: str, error: OSError) -> JobError:
    return JobError(f"cannot list the folder {printable(folder)}: {one_line(error)}")
