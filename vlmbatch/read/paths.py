"""INPUTs to files: what each is called (its id), which belong to the job, and which were given before."""

from __future__ import annotations

import dataclasses
import hashlib
import os
import stat
import sys
from collections.abc import Iterator
from fnmatch import fnmatchcase
from typing import BinaryIO

from vlmbatch.errors import JobError
from vlmbatch.job import Job, Kind
from vlmbatch.read.base import Counts, one_line
from vlmbatch.read.walk import Entry, Glob, is_glob, walk

_IMAGE = ".jpg .jpeg .jpe .jfif .png .apng .webp .bmp .dib .gif .tif .tiff .ppm .pgm .pbm .pnm .ico .tga .jp2 .j2k .avif"
IMAGE_EXTENSIONS = frozenset(_IMAGE.split())
"""Extensions of the formats that Pillow's own wheel opens; the formats are listed in images.py."""

_VIDEO = """
.mp4 .m4v .mp4v .mov .qt .mkv .mk3d .webm .avi .divx .mpg .mpeg .mpe .m1v .m2v .mpv .vob .ts .mts .m2ts .m2t .tp .trp .tod .wmv .asf .dvr-ms .wtv .flv .f4v
.ogv .ogm .rm .rmvb .3gp .3gpp .3g2 .mxf .gxf .dv .nut .nsv .amv .mj2 .mjpg .mjpeg .y4m .ivf .obu .av1 .h261 .h263 .h264 .264 .avc .h265 .265 .hevc .h266 .266
.vvc .vc1 .lrv .insv
"""
VIDEO_EXTENSIONS = frozenset(_VIDEO.split())
"""Extensions of formats that FFmpeg reads, but for what mostly is no video (.ogg, .mod, .dat). A file given by name is opened whatever its extension."""

_STDIN_BLOCK_BYTES = 1 << 16


@dataclasses.dataclass(frozen=True, slots=True)
class Found:
    """A file of the job.

    Attributes:
        path: What the operating system opens.
        id: Stable name, valid UTF-8; see spec.md.
        source: The path for a person to read, valid UTF-8.
        fingerprint: ``size:mtime_ns``; empty when the file has none.
        error: Why this is no readable file; None when nothing is known against it.
    """

    path: str
    id: str
    source: str
    fingerprint: str = ""
    error: str | None = None


@dataclasses.dataclass(frozen=True, slots=True)
class _Input:
    """An INPUT, looked at once. ``name`` sets its files apart from those of other INPUTs with the same id."""

    text: str
    kind: str
    name: str
    glob: Glob | None = None


def media_of(path: str) -> Kind | None:
    """What a file is by its extension; None when that does not say."""
    suffix = os.path.splitext(path)[1].lower()
    if suffix in IMAGE_EXTENSIONS:
        return "image"
    return "video" if suffix in VIDEO_EXTENSIONS else None


def printable(path: str) -> str:
    r"""A path as valid UTF-8 text with ``/`` as separator; bytes of the name that are not UTF-8 are written ``\xNN``."""
    return path.replace(os.sep, "/").encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


class Listing:
    """The files of a job, lazily, in input order.

    What it remembers while it is iterated: the folders listed and, when files can be given twice (several INPUTs, or stdin), 32 bytes of digests a file.

    Raises:
        JobError: An INPUT does not exist, cannot be listed, matches nothing or is of the other media.
    """

    def __init__(self, job: Job, stdin: BinaryIO | None = None) -> None:
        """Looks at every INPUT once; lists nothing.

        Args:
            job: The job.
            stdin: Where the INPUT ``-`` reads paths from, instead of standard input.
        """
        self.counts = Counts()
        self._media: Kind = job.media
        self._include, self._exclude = job.include, job.exclude
        self._stdin = stdin
        if job.inputs.count("-") > 1:
            raise JobError("the INPUT - (paths on stdin) can be given once")
        self._inputs = [self._look_at(text) for text in job.inputs]
        self._all_files = all(given.kind == "file" for given in self._inputs)
        self._may_repeat = len(self._inputs) > 1 or "-" in job.inputs
        self._paths_seen: set[bytes] = set()
        self._ids_seen: set[bytes] = set()

    def __len__(self) -> int:
        """How many INPUTs there are."""
        return len(self._inputs)

    def estimate(self) -> int | None:
        """How many files there are, if that is known without listing anything."""
        filtered = self._include or self._exclude
        return len({os.path.realpath(given.text) for given in self._inputs}) if self._all_files and not filtered else None

    def __iter__(self) -> Iterator[Found]:
        """Yields the files. ``counts`` starts over."""
        self.counts.other_media = self.counts.filtered = self.counts.duplicates = 0
        self._paths_seen.clear()
        self._ids_seen.clear()
        for given in self._inputs:
            for entry in self._entries(given):
                found = self._take(entry, given)
                if found is not None:
                    yield found

    def _look_at(self, text: str) -> _Input:
        if text == "-":
            return _Input(text, "stdin", "stdin")
        parent = os.path.basename(os.path.dirname(os.path.abspath(text)))
        if os.path.isdir(text):
            try:
                os.scandir(text).close()
            except OSError as exc:
                raise JobError(f"cannot list the folder {printable(text)}: {one_line(exc)}") from exc
            return _Input(text, "folder", os.path.basename(os.path.abspath(text)))
        if os.path.exists(text):
            media = media_of(text)
            if media is not None and media != self._media:
                raise JobError(_other_media(text))
            return _Input(text, "file", parent)
        if not is_glob(text):
            raise JobError(f"no such file or folder: {printable(text)}")
        glob = Glob.parse(text)
        if next(glob.entries(), None) is None:
            raise JobError(f"no file matches {printable(text)}")
        return _Input(text, "glob", os.path.basename(os.path.abspath(glob.root)), glob)

    def _entries(self, given: _Input) -> Iterator[Entry]:
        if given.kind == "folder":
            try:
                yield from walk(given.text)
            except OSError as exc:
                yield Entry(given.text, given.name, f"folder not listed: {one_line(exc)}")
        elif given.glob is not None:
            yield from given.glob.entries()
        elif given.kind == "file":
            yield Entry(given.text, os.path.basename(given.text))
        else:
            for path in read_paths(self._stdin or sys.stdin.buffer):
                yield Entry(path, path.replace(os.sep, "/").removeprefix("./"))

    def _take(self, entry: Entry, given: _Input) -> Found | None:
        """Decides whether a file belongs to the job, and names it."""
        media, error = media_of(entry.path), entry.error
        if error is None and media is not None and media != self._media:
            if given.kind != "stdin":
                self.counts.other_media += 1
                return None
            error = _other_media(entry.path)
        if error is None and media is None and given.kind in ("folder", "glob"):
            suffix = os.path.splitext(entry.path)[1].lower()
            if given.glob is None or not given.glob.names_suffix(suffix):
                return None
        name = printable(entry.relative)
        if not self._passes(name):
            self.counts.filtered += 1
            return None
        if self._may_repeat:
            real = _digest(os.path.realpath(entry.path))
            if real in self._paths_seen:
                self.counts.duplicates += 1
                return None
            self._paths_seen.add(real)
            name = self._unique(name, printable(given.name))
        fingerprint = ""
        if error is None:
            fingerprint, error = _status(entry.path)
        return Found(entry.path, name, printable(entry.path), fingerprint, error)

    def _unique(self, name: str, input_name: str) -> str:
        candidate, number = name, 1
        while _digest(candidate) in self._ids_seen:
            candidate = f"{input_name}/{name}" + (f"#{number}" if number > 1 else "")
            number += 1
        self._ids_seen.add(_digest(candidate))
        return candidate

    def _passes(self, name: str) -> bool:
        return (not self._include or _matches_any(name, self._include)) and not _matches_any(name, self._exclude)


def read_paths(stream: BinaryIO) -> Iterator[str]:
    """Yields the paths that a stream names, as they arrive: one a line, or NUL-separated when its first block holds a NUL.

    Args:
        stream: Bytes; names that are not UTF-8 keep theirs (``os.fsdecode``).
    """
    read = getattr(stream, "read1", stream.read)
    block = read(_STDIN_BLOCK_BYTES)
    separator = b"\0" if b"\0" in block else b"\n"
    rest = b""
    while block:
        *names, rest = (rest + block).split(separator)
        yield from _decoded(names, separator)
        block = read(_STDIN_BLOCK_BYTES)
    yield from _decoded([rest], separator)


def _decoded(names: list[bytes], separator: bytes) -> Iterator[str]:
    for raw in names:
        name = raw.removesuffix(b"\r") if separator == b"\n" else raw
        if name:
            yield os.fsdecode(name)


def _status(path: str) -> tuple[str, str | None]:
    """The fingerprint of a file, and what is wrong with it when it is none that can be opened and read to its end."""
    try:
        status = os.stat(path)
    except (OSError, ValueError):
        return "", None
    if not stat.S_ISREG(status.st_mode):
        return "", "a folder, not a file" if stat.S_ISDIR(status.st_mode) else "not a regular file"
    return f"{status.st_size}:{status.st_mtime_ns}", None


def _matches_any(name: str, patterns: tuple[str, ...]) -> bool:
    """Whether an id matches a glob: as a whole, by its base name, or by a folder that it is in. ``*`` spans folders here, as in ``.gitignore``'s ``**``."""
    base = name.rsplit("/", 1)[-1]
    for pattern in patterns:
        bare = pattern.removeprefix("./").rstrip("/")
        if fnmatchcase(name, bare) or fnmatchcase(base, bare) or fnmatchcase(name, f"{bare}/*") or fnmatchcase(name, bare.removeprefix("**/")):
            return True
    return False


def _other_media(path: str) -> str:
    what, command = ("a video", "video") if media_of(path) == "video" else ("a picture", "caption")
    return f"{printable(path)} is {what}: use `vlmbatch {command}`"


def _digest(text: str) -> bytes:
    return hashlib.blake2b(os.fsencode(text), digest_size=16).digest()
