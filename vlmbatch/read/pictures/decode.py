"""Open, check and decode picture files, on the worker's thread."""

from __future__ import annotations

import contextlib
import logging
import struct
from collections.abc import Iterator
from typing import IO

from PIL import GifImagePlugin, Image, UnidentifiedImageError

from vlmbatch.core import Pixels
from vlmbatch.errors import DecodeError, ItemError, ReadError, one_line
from vlmbatch.read.base import check_size
from vlmbatch.read.extras import is_there
from vlmbatch.read.files.source import DiskFile
from vlmbatch.read.pictures.colours import decode_rgb
from vlmbatch.read.pictures.gif import seek_frame

logger = logging.getLogger(__name__)

Image.init()
if is_there("pillow_heif"):
    import pillow_heif

    pillow_heif.register_heif_opener()
_KNOWN = (
    "JPEG",
    "MPO",
    "PNG",
    "WEBP",
    "BMP",
    "DIB",
    "GIF",
    "TIFF",
    "PPM",
    "ICO",
    "TGA",
    "JPEG2000",
    "AVIF",
    "HEIF",
)
FORMATS = tuple(name for name in _KNOWN if name in Image.OPEN)
"""Formats that are opened, if this Pillow has them. Some of its others start programs (EPS runs
Ghostscript).
"""

Image.MAX_IMAGE_PIXELS = None
"""Pillow's limit holds for the whole process; ``load_image`` checks the job's ``max_pixels`` before
it decodes.
"""

_ORIENTATION_TAG = 0x0112
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""Transposition for each EXIF orientation; 1 is upright (Exif 2.32, 4.6.4)."""


def load_image(source: str | IO[bytes], max_pixels: int, number: int = 1) -> Pixels:
    """Read a picture upright, as RGB on white; see ``colours``.

    Args:
        source: A path, or an open file that can be sought in.
        max_pixels: Refuse larger pictures before decoding.
        number: Of the page or frame, from 1.

    Returns:
        One frame, as Pillow's picture.

    Raises:
        ReadError: The file cannot be opened or read.
        DecodeError: It is not a whole picture of a known format, too large, or has no such page.
    """
    if isinstance(source, str):
        with DiskFile(source).open() as file:
            return load_image(file, max_pixels, number)
    with _identify(source, max_pixels) as image, _translating(f"broken {image.format}"):
        _go_to(image, number, max_pixels)
        return Pixels((_decode(image),))


def count_frames(file: IO[bytes], max_pixels: int, limit: int) -> int:
    """Count the pages or frames of a picture file, without decoding them.

    Args:
        file: The open file.
        max_pixels: Refuse larger pictures.
        limit: Where counting the pages of a TIFF file ends. Other formats state the number, or are
            skimmed fast.

    Raises:
        ReadError: The file cannot be read.
        DecodeError: It is not a picture of a known format, or too large.
    """
    with _identify(file, max_pixels) as image:
        if image.format == "TIFF":
            return _count_tiff(image, limit)
        try:
            return int(getattr(image, "n_frames", 1))
        except Exception as exc:
            logger.debug("frames not counted: %s", one_line(exc))
            return 1


def _count_tiff(image: Image.Image, limit: int) -> int:
    """Follow the chain of a TIFF file's pages."""
    for total in range(1, limit):
        try:
            image.seek(total)
        except EOFError:
            return total
        except Exception as exc:
            # A damaged page raises when it is loaded. Pages are only lost where the chain breaks.
            logger.debug("page %d is damaged: %s", total + 1, one_line(exc))
            if image.tell() != total:
                return total + 1
    return limit


def _go_to(image: Image.Image, number: int, max_pixels: int) -> None:
    """Make a page or frame the one that is decoded."""
    check_size(*image.size, max_pixels)
    try:
        if isinstance(image, GifImagePlugin.GifImageFile):
            seek_frame(image, number)
        elif number > 1:
            image.seek(number - 1)
    except EOFError as exc:
        raise DecodeError(f"no page {number}") from exc
    check_size(*image.size, max_pixels)


@contextlib.contextmanager
def _translating(what: str) -> Iterator[None]:
    """Make errors of Pillow those of an item: its plugins raise nearly everything on damaged files
    (SyntaxError, struct.error, KeyError, zlib.error, MemoryError …). An error number tells a failed
    read from a failed decode.
    """
    try:
        yield
    except ItemError:
        raise
    except Exception as exc:
        if isinstance(exc, OSError) and exc.errno is not None:
            raise ReadError(one_line(exc)) from exc
        raise DecodeError(f"{what}: {one_line(exc)}") from exc


def _identify(file: IO[bytes], max_pixels: int) -> Image.Image:
    with _translating("not a picture"):
        for width, height in _icon_sizes(file):
            check_size(width, height, max_pixels)
        try:
            return Image.open(file, formats=FORMATS)
        except UnidentifiedImageError as exc:
            file.seek(0)
            raise DecodeError(
                f"not a picture: no known format starts with {file.read(12)!r}"
            ) from exc


def upright_copy(image: Image.Image, max_pixels: int) -> Image.Image:
    """Return a copy of a caller's picture, as ``load_image`` would have made it.

    Args:
        image: It stays as it is, but that Pillow decodes it if it is not decoded yet.
        max_pixels: Refuse larger pictures before decoding.

    Raises:
        ReadError: Its file cannot be read.
        DecodeError: It is damaged, or too large.
    """
    check_size(*image.size, max_pixels)
    with _translating(f"broken {image.format or 'picture'}"):
        return _decode(image.copy(), _orientation(image))


def _decode(image: Image.Image, orientation: int | None = None) -> Image.Image:
    rgb = decode_rgb(image)
    upright = _UPRIGHT.get(_orientation(image) if orientation is None else orientation)
    if upright is not None:
        rgb = rgb.transpose(upright)
    rgb.info.clear()  # neither profiles nor comments travel on
    return rgb


def _orientation(image: Image.Image) -> int:
    try:
        return int(image.getexif().get(_ORIENTATION_TAG, 1))
    except Exception:
        return 1  # viewers ignore a damaged EXIF block


def _icon_sizes(file: IO[bytes]) -> list[tuple[int, int]]:
    """Return (width, height) in the headers of an icon's pictures; none for other files.

    Pillow decodes them when it opens an icon, and the icon's directory can say 16 x 16 about a PNG
    with a billion pixels.
    """
    sizes = []
    try:
        if file.read(4) != b"\0\0\1\0":
            return []
        entries = file.read(16 * struct.unpack("<H", file.read(2))[0])
        for start in range(0, len(entries) - 15, 16):
            file.seek(struct.unpack_from("<I", entries, start + 12)[0])
            head = file.read(24)
            if head.startswith(b"\x89PNG") and len(head) == 24:
                sizes.append(struct.unpack(">II", head[16:]))
            elif len(head) >= 12:
                width, height = struct.unpack_from("<ii", head, 4)
                sizes.append((abs(width), abs(height)))
    except struct.error as exc:
        raise DecodeError("broken ICO: its directory is cut short") from exc
    finally:
        file.seek(0)
    return sizes
