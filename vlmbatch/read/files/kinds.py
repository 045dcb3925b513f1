"""Names of files: the kind that an extension says, valid text, and globs that they match."""

from __future__ import annotations

import codecs
import functools
import os
import stat
from collections.abc import Iterator, Sequence
from fnmatch import fnmatchcase
from typing import BinaryIO

from vlmbatch.job import Kind
from vlmbatch.text_files import encoding_of, may_be_mark
from vlmbatch.urls import is_url, url_name, without_credentials

_IMAGE = """
.jpg .jpeg .jpe .jfif .png .apng .webp .bmp .dib .gif .tif .tiff .ppm .pgm .pbm .pnm .ico .tga .jp2
.j2k .avif .heic .heif .hif .pdf
"""
IMAGE_EXTENSIONS = frozenset(_IMAGE.split())
"""Extensions of pictures and documents: the formats that Pillow's own wheel opens, which are listed
in decode.py, and those of extras.py.
"""

_VIDEO = """
.mp4 .m4v .mp4v .mov .qt .mkv .mk3d .webm .avi .divx .mpg .mpeg .mpe .m1v .m2v .mpv .vob .ts .mts
.m2ts .m2t .tp .trp .tod .wmv .asf .dvr-ms .wtv .flv .f4v .ogv .ogm .rm .rmvb .3gp .3gpp .3g2 .mxf
.gxf .dv .nut .nsv .amv .mj2 .mjpg .mjpeg .y4m .ivf .obu .av1 .h261 .h263 .h264 .264 .avc .h265 .265
.hevc .h266 .266 .vvc .vc1 .lrv .insv
"""
VIDEO_EXTENSIONS = frozenset(_VIDEO.split())
"""Extensions of formats that FFmpeg reads, but for those that mostly are no video (.ogg, .mod,
.dat). A file given by name is opened whatever its extension.
"""

_ALSO_TEXT = (".ts", ".mts")
"""Extensions of videos that source files have too."""

_SYSTEM_FOLDERS = frozenset(
    {"@eadir", ".@__thumb", ".thumbnails", "$recycle.bin", "lost+found", "__macosx"}
)
"""Folders of thumbnails and deleted files, in small letters: of Synology, QNAP, Linux desktops,
Windows, ext4 and macOS archives.
"""

_BLOCK_BYTES = 1 << 16


def media_of(path: str) -> Kind | None:
    """Return the kind of a file or URL by its extension; None when that does not say."""
    suffix = suffix_of(path)
    if suffix in IMAGE_EXTENSIONS:
        return "image"
    return "video" if suffix in VIDEO_EXTENSIONS else None


def other_media(path: str, media: Kind) -> str | None:
    """Return why a file is not of a job's media, by its extension; None when it may be."""
    found = media_of(path)
    if found in (media, None):
        return None
    what, command = ("a video", "video") if found == "video" else ("a picture", "caption")
    return f"{printable(without_credentials(path))} is {what}: use `vlmbatch {command}`"


def is_text_named_video(path: str) -> bool:
    """Return whether a file is text with an extension that videos have too, such as TypeScript."""
    if suffix_of(path) not in _ALSO_TEXT or is_url(path) or not os.path.isfile(path):
        return False
    try:
        with open(path, "rb") as file:
            head = file.read(1024)
        codecs.getincrementaldecoder("utf-8")().decode(head)
    except (OSError, ValueError):  # it cannot be opened, or is not UTF-8
        return False
    return bool(head) and not any(byte < 32 and byte not in b"\t\n\f\r" for byte in head)


def is_unnamed_picture(path: str) -> bool:
    """Return whether a file of this disk without an extension is a picture that Pillow knows."""
    if suffix_of(path) or is_url(path) or not os.path.isfile(path):  # a pipe must not be opened
        return False
    from PIL import Image

    try:
        with Image.open(path):
            return True
    except Exception:  # no picture, or one with a broken header
        return False


def is_system_folder(name: str) -> bool:
    """Return whether a folder is one that a system keeps for itself."""
    return name.lower() in _SYSTEM_FOLDERS or name.startswith(".Trash")


@functools.lru_cache(maxsize=256)  # asked several times in a row about each of a million files
def suffix_of(path: str) -> str:
    """Return the extension of a file or URL, in small letters, with its dot."""
    return os.path.splitext(url_name(path) if is_url(path) else path)[1].lower()


def printable(path: str) -> str:
    r"""Return a path as valid UTF-8 text with ``/`` as separator; bytes of the name that are not
    UTF-8 are written ``\xNN``.
    """
    path = path.replace(os.sep, "/")
    if path.isascii():
        return path
    try:
        return path.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
    except UnicodeEncodeError:  # half a character, as JSON can hold and no file name can
        return path.encode("utf-8", "backslashreplace").decode()


def shown(path: str) -> str:
    """Return a path as an id has it: without credentials of a URL and a leading ``./``."""
    return (
        without_credentials(path) if is_url(path) else path.replace(os.sep, "/").removeprefix("./")
    )


def read_paths(stream: BinaryIO) -> Iterator[str]:
    """Yield the paths that a stream names, each as soon as its line is there: one a line, or
    NUL-separated when the first block holds a NUL. A byte order mark says the encoding.

    Args:
        stream: Bytes; names that are not UTF-8 keep theirs (``os.fsdecode``).
    """
    read = getattr(stream, "read1", stream.read)
    block = read(_BLOCK_BYTES)
    while len(block) < 4 and may_be_mark(block) and (more := read(_BLOCK_BYTES)):
        block += more
    encoding, length = encoding_of(block)
    block = block[length:] or read(_BLOCK_BYTES)
    decoder = codecs.getincrementaldecoder(encoding)("replace") if encoding != "utf-8" else None
    separator = b"\n" if decoder or b"\0" not in block else b"\0"
    rest = b""
    while block:
        if decoder:
            block = decoder.decode(block).encode()
        *names, rest = (rest + block).split(separator)
        yield from _decoded(names, separator)
        block = read(_BLOCK_BYTES)
    yield from _decoded([rest], separator)


def _decoded(names: list[bytes], separator: bytes) -> Iterator[str]:
    for raw in names:
        name = raw.removesuffix(b"\r") if separator == b"\n" else raw
        if name:
            yield os.fsdecode(name)


def place_of(path: str) -> str:
    """Return what two ways of naming a file have in common, also through links to folders. A link
    to a file has a name and a place of its own.
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
    """Return the fingerprint of a file, and why it cannot be opened and read to its end, if so."""
    try:
        status = os.stat(path)
    except (OSError, ValueError):
        return "", None
    if not stat.S_ISREG(status.st_mode):
        return "", "a folder, not a file" if stat.S_ISDIR(status.st_mode) else "not a regular file"
    return f"{status.st_size}:{status.st_mtime_ns}", None


def matches_any(name: str, patterns: Sequence[str]) -> bool:
    """Return whether an id matches a glob: as a whole, by its base name, or by a folder that it is
    in. ``*`` spans folders here, as in ``.gitignore``'s ``**``.
    """
    base = name.rsplit("/", 1)[-1]
    return any(
        fnmatchcase(name, bare)
        or fnmatchcase(base, bare)
        or fnmatchcase(name, f"{bare}/*")
        or fnmatchcase(name, bare.removeprefix("**/"))
        for bare in (pattern.removeprefix("./").rstrip("/") for pattern in patterns)
    )
