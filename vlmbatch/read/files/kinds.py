"""Names of files: what kind of file one says it is, how it is written down, which globs it matches,
and lists of them.
"""

from __future__ import annotations

import codecs
import functools
import os
import stat
from collections.abc import Iterator
from fnmatch import fnmatchcase
from typing import BinaryIO

from vlmbatch.job import Kind
from vlmbatch.urls import is_url, url_name

_IMAGE = ".jpg .jpeg .jpe .jfif .png .apng .webp .bmp .dib .gif .tif .tiff .ppm .pgm .pbm .pnm .ico .tga .jp2 .j2k .avif .heic .heif .hif .pdf"
IMAGE_EXTENSIONS = frozenset(_IMAGE.split())
"""Extensions of pictures and documents: the formats that Pillow's own wheel opens, which are listed
in images.py, and those of extras.py.
"""

_VIDEO = """
.mp4 .m4v .mp4v .mov .qt .mkv .mk3d .webm .avi .divx .mpg .mpeg .mpe .m1v .m2v .mpv .vob .ts .mts .m2ts .m2t .tp .trp .tod .wmv .asf .dvr-ms .wtv .flv .f4v
.ogv .ogm .rm .rmvb .3gp .3gpp .3g2 .mxf .gxf .dv .nut .nsv .amv .mj2 .mjpg .mjpeg .y4m .ivf .obu .av1 .h261 .h263 .h264 .264 .avc .h265 .265 .hevc .h266 .266
.vvc .vc1 .lrv .insv
"""
VIDEO_EXTENSIONS = frozenset(_VIDEO.split())
"""Extensions of formats that FFmpeg reads, but for what mostly is no video (.ogg, .mod, .dat). A
file given by name is opened whatever its extension.
"""

_STDIN_BLOCK_BYTES = 1 << 16


def media_of(path: str) -> Kind | None:
    """What a file or URL is by its extension; None when that does not say."""
    suffix = suffix_of(path)
    if suffix in IMAGE_EXTENSIONS:
        return "image"
    return "video" if suffix in VIDEO_EXTENSIONS else None


@functools.lru_cache(maxsize=256)  # asked several times in a row about each of a million files
def suffix_of(path: str) -> str:
    """The extension of a file or URL, in small letters, with its dot."""
    return os.path.splitext(url_name(path) if is_url(path) else path)[1].lower()


def printable(path: str) -> str:
    r"""A path as valid UTF-8 text with ``/`` as separator; bytes of the name that are not UTF-8 are
    written ``\xNN``.
    """
    path = path.replace(os.sep, "/")
    if path.isascii():
        return path
    try:
        return path.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
    except UnicodeEncodeError:  # half a character, as JSON can hold and no file name can
        return path.encode("utf-8", "backslashreplace").decode()


def read_paths(stream: BinaryIO) -> Iterator[str]:
    """Yields the paths that a stream names, as they arrive: one a line, or NUL-separated when its
    first block holds a NUL. A byte order mark is no part of one.

    Args:
        stream: Bytes; names that are not UTF-8 keep theirs (``os.fsdecode``).
    """
    read = getattr(stream, "read1", stream.read)
    block = read(_STDIN_BLOCK_BYTES)
    if block.startswith(codecs.BOM_UTF8):
        block = block.removeprefix(codecs.BOM_UTF8) or read(_STDIN_BLOCK_BYTES)
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


def place_of(path: str) -> str:
    """What is the same for two ways of naming a file, also through links to folders. A link to a
    file has a name and a place of its own.
    """
    try:
        return (
            path
            if is_url(path)
            else os.path.join(os.path.realpath(os.path.dirname(path)), os.path.basename(path))
        )
    except ValueError:  # a NUL in it, or half a character: no file has such a name
        return path


def file_status(path: str) -> tuple[str, str | None]:
    """The fingerprint of a file, and what is wrong with it when it is none that can be opened and
    read to its end.
    """
    try:
        status = os.stat(path)
    except (OSError, ValueError):
        return "", None
    if not stat.S_ISREG(status.st_mode):
        return "", "a folder, not a file" if stat.S_ISDIR(status.st_mode) else "not a regular file"
    return f"{status.st_size}:{status.st_mtime_ns}", None


def matches_any(name: str, patterns: tuple[str, ...]) -> bool:
    """Whether an id matches a glob: as a whole, by its base name, or by a folder that it is in.
    ``*`` spans folders here, as in ``.gitignore``'s ``**``.
    """
    base = name.rsplit("/", 1)[-1]
    for pattern in patterns:
        bare = pattern.removeprefix("./").rstrip("/")
        if (
            fnmatchcase(name, bare)
            or fnmatchcase(base, bare)
            or fnmatchcase(name, f"{bare}/*")
            or fnmatchcase(name, bare.removeprefix("**/"))
        ):
            return True
    return False
