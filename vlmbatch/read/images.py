"""Picture files to Items. A picture is opened, checked and decoded in ``load``, on the worker's thread."""

from __future__ import annotations

import functools
import io
import os
import struct
from collections.abc import Callable, Iterator
from typing import BinaryIO

import numpy as np
from PIL import Image, UnidentifiedImageError

from vlmbatch.errors import DecodeError, ItemError, ReadError
from vlmbatch.job import Job
from vlmbatch.read.base import Counts, failing_load, one_line
from vlmbatch.read.paths import Found, Listing
from vlmbatch.records import Item, Pixels

Image.init()
_KNOWN = ("JPEG", "MPO", "PNG", "WEBP", "BMP", "DIB", "GIF", "TIFF", "PPM", "ICO", "TGA", "JPEG2000", "AVIF")
FORMATS = tuple(name for name in _KNOWN if name in Image.OPEN)
"""Formats that are opened, as far as this Pillow has them. It knows more, some of which start other programs (EPS runs Ghostscript)."""

MAX_FILE_BYTES = 1 << 30

Image.MAX_IMAGE_PIXELS = None
"""Pillow's own limit is one for the whole process and warns below its double; ``load_image`` checks the job's ``max_pixels`` before it decodes."""

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
"""What makes a picture of an EXIF orientation upright; 1 is upright (Exif 2.32, 4.6.4)."""


class ImageReader:
    """Gives one Item a picture file.

    Raises:
        JobError: An INPUT does not exist, cannot be listed, matches nothing or is a video.
    """

    def __init__(self, job: Job, stdin: BinaryIO | None = None, names_only: bool = False) -> None:
        """Checks the INPUTs; lists nothing yet. With ``names_only`` Items are only to be counted."""
        self._listing = Listing(job, stdin, names_only)
        self._max_pixels, self._max_bytes = job.max_pixels, job.max_file_bytes
        self._total = self._listing.estimate()
        self.counts: Counts = self._listing.counts

    def __iter__(self) -> Iterator[Item]:
        """Yields an Item a file, in input order."""
        index = -1
        for index, found in enumerate(self._listing):
            yield Item(
                found.id,
                found.source,
                index,
                "image",
                self._load(found),
                fingerprint=found.fingerprint,
                questions=found.questions,
                extra=found.extra,
                held_bytes=found.held_bytes,
            )
        self._total = index + 1

    def estimate(self) -> int | None:
        """How many pictures there are: known from the start when every INPUT is a file, otherwise after an iteration."""
        return self._total

    def _load(self, found: Found) -> functools.partial[Pixels]:
        if found.error is not None:
            return functools.partial(failing_load(ReadError, found.error))
        if found.read is not None:
            return functools.partial(load_bytes, found.read, self._max_pixels, self._max_bytes)
        return functools.partial(load_image, found.path, self._max_pixels, self._max_bytes)


def load_image(path: str, max_pixels: int, max_bytes: int = MAX_FILE_BYTES) -> Pixels:
    """Reads a picture: upright, first frame of an animation, RGB on white as transformers' ``convert_to_rgb`` makes it.

    Args:
        path: The file.
        max_pixels: Pictures with more pixels are refused before they are decoded.
        max_bytes: Larger files are refused before they are read.

    Returns:
        One frame, uint8, (H, W, 3).

    Raises:
        ReadError: The file cannot be opened or read.
        DecodeError: It is not a whole picture of a known format, or too large.
    """
    try:
        with open(path, "rb") as file:
            return _load(file, os.fstat(file.fileno()).st_size, max_pixels, max_bytes)
    except ItemError:
        raise
    except (OSError, ValueError) as exc:
        raise ReadError(one_line(exc)) from exc


def load_bytes(read: Callable[[], bytes], max_pixels: int, max_bytes: int = MAX_FILE_BYTES) -> Pixels:
    """Makes a picture of the bytes that ``read`` gives; otherwise as ``load_image``."""
    data = read()
    return _load(io.BytesIO(data), len(data), max_pixels, max_bytes)


def _load(file: BinaryIO, size: int, max_pixels: int, max_bytes: int) -> Pixels:
    if size == 0:
        raise DecodeError("empty file")
    if size > max_bytes:
        raise ReadError(f"{size:,} bytes are more than --max-file-size {max_bytes:,}")
    _check_sizes(_icon_sizes(file), max_pixels)
    with _identify(file) as image:
        _check_sizes([image.size], max_pixels)
        return Pixels((_decode(image),))


def to_rgb(image: Image.Image) -> Image.Image:
    """RGB, transparency composited on white: the calls of transformers' ``image_transforms.convert_to_rgb``, in its order."""
    if "A" in image.getbands() or image.info.get("transparency") is not None:
        image = image.convert("RGBA")
        background = Image.new("RGBA", image.size, (255, 255, 255, 255))
        image = Image.alpha_composite(background, image)
    return image.convert("RGB")


# Pillow's plugins raise nearly everything on damaged files (SyntaxError, struct.error, KeyError, zlib.error, MemoryError …), so what wraps a call of
# theirs catches Exception; only an error number says that reading failed rather than decoding.


def _identify(file: BinaryIO) -> Image.Image:
    try:
        return Image.open(file, formats=FORMATS)
    except UnidentifiedImageError as exc:
        file.seek(0)
        raise DecodeError(f"not a picture: no known format starts with {file.read(12)!r}") from exc
    except Exception as exc:
        raise _translated(exc, "not a picture") from exc


def _decode(image: Image.Image) -> np.ndarray[tuple[int, ...], np.dtype[np.uint8]]:
    try:
        image.load()
        upright = _UPRIGHT.get(_orientation(image))
        return np.ascontiguousarray(to_rgb(image if upright is None else image.transpose(upright)), np.uint8)
    except Exception as exc:
        raise _translated(exc, f"broken {image.format}") from exc


def _orientation(image: Image.Image) -> int:
    try:
        return int(image.getexif().get(_ORIENTATION_TAG, 1))
    except Exception:
        # A picture is shown as stored when its EXIF block is damaged; every viewer does that.
        return 1


def _translated(error: Exception, what: str) -> ItemError:
    if isinstance(error, OSError) and error.errno is not None:
        return ReadError(one_line(error))
    return DecodeError(f"{what}: {one_line(error)}")


def _check_sizes(sizes: list[tuple[int, int]], max_pixels: int) -> None:
    for width, height in sizes:
        if width * height > max_pixels:
            raise DecodeError(f"{width} x {height} = {width * height:,} pixels are more than --max-pixels {max_pixels:,}")


def _icon_sizes(file: BinaryIO) -> list[tuple[int, int]]:
    """(width, height) that the pictures inside an .ico state themselves; none for other files.

    Pillow decodes them as soon as it opens an icon, and the icon's directory can say 16 x 16 of a PNG with a billion pixels.
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
