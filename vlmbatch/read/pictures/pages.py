"""Files that hold several pictures: pages of documents and TIFF files, frames of animations. Which
of them are asked for, and how each is loaded.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable, Iterator

from vlmbatch.core import Pixels
from vlmbatch.errors import DecodeError, ItemError, ReadError
from vlmbatch.job import Job
from vlmbatch.read.base import failing_load, one_line
from vlmbatch.read.fetch.remote import OnDisk, load_bytes
from vlmbatch.read.files.kinds import suffix_of
from vlmbatch.read.files.source import Found
from vlmbatch.read.pictures import pdf
from vlmbatch.read.pictures.decode import count_frames, load_image, open_checked
from vlmbatch.urls import is_url
from vlmbatch.values import parse_pages

logger = logging.getLogger(__name__)

_SINGLE = ".jpg .jpeg .jpe .jfif .bmp .dib .ppm .pgm .pbm .pnm .ico .tga .jp2 .j2k"
SINGLE = frozenset(_SINGLE.split())
"""Extensions of files that are one picture. The others inside a phone's .jpg (a depth map, a
preview) and the sizes of an .ico are no pages.
"""

PDF_MARK = b"%PDF-"

Part = tuple[str, Callable[[], Pixels]]
"""(id, load) of what becomes an Item."""


class PagePicker:
    """Gives the parts of a file that a job asks for: the file itself, or its pages.

    A file is only opened for it where its number of pages matters: a document of which all are
    asked for, and a picture file with ``pages``.
    """

    def __init__(self, job: Job) -> None:
        self._job = job
        ranges = parse_pages(job.pages) if job.pages is not None else None
        self._only_first = ranges == ((1, 1),)
        self._of_documents = ranges or ((1, None),)
        self._of_pictures = ranges or ((1, 1),)

    def opens(self, path: str) -> bool:
        """Whether the number of pages of a file has to be known."""
        if self._only_first:
            return False
        return _is_pdf(path) or self._of_pictures != ((1, 1),)

    def parts(self, found: Found) -> Iterator[Part]:
        """Yields the parts, in order. The id of a page ends in ``#page=N``, but for the first when
        no other is asked for or there.
        """
        if found.error is not None:
            yield found.id, failing_load(ReadError, found.error)
            return
        if found.read is not None:
            yield found.id, functools.partial(load_held, found.read, self._job)
            return
        if not self.opens(found.path):
            yield found.id, functools.partial(load_part, found.path, self._job, 1)
            return
        if suffix_of(found.path) in SINGLE:
            if _asks_for(self._of_pictures, 1):
                yield found.id, functools.partial(load_part, found.path, self._job, 1)
            return
        try:
            on_disk = OnDisk(found.path, self._job)
            total = count_pages(on_disk.path, self._job)
            pages = self._chosen(found, total)
        except ItemError as exc:
            yield found.id, failing_load(type(exc), str(exc))
            return
        except Exception as exc:  # nobody foresaw it, but it is this file's, not the run's
            logger.debug("unexpected error", exc_info=True)
            yield found.id, failing_load(DecodeError, f"{type(exc).__name__}: {one_line(exc)}")
            return
        for number in pages:
            part = found.id if total == 1 else f"{found.id}#page={number}"
            yield part, on_disk.bind(functools.partial(load_part, job=self._job, number=number))

    def _chosen(self, found: Found, total: int) -> list[int]:
        """Numbers of the pages that are asked for and there, ascending."""
        ranges = self._of_documents if _is_pdf(found.path) else self._of_pictures
        bounds = [(first, min(last or total, total)) for first, last in ranges]
        numbers = sorted({number for first, last in bounds for number in range(first, last + 1)})
        if not numbers:
            logger.info("%s: none of its %d pages was asked for", found.source, total)
        return numbers


def count_pages(path: str, job: Job) -> int:
    """How many pages or frames a file on this machine has, from its structure alone.

    Raises:
        ReadError: It cannot be opened, or is too large.
        DecodeError: It is no document or picture, or has more pages than ``max_pages``.
    """
    with open_checked(path, job.max_file_bytes) as file:
        total = (
            pdf.count_pages(file)
            if _is_pdf(path)
            else count_frames(file, job.max_pixels, job.max_pages + 1)
        )
    if total > job.max_pages:
        raise DecodeError(f"it has more pages than --max-pages {job.max_pages:,}")
    return total


def load_part(path: str, job: Job, number: int) -> Pixels:
    """Loads a page of a document or picture file, or a file that is one picture.

    Args:
        path: The file, or its URL.
        job: Gives the limits, and the resolution that pages are drawn in.
        number: Of the page, from 1.

    Returns:
        One frame, uint8, (H, W, 3).

    Raises:
        ReadError: The bytes cannot be had, or are too many.
        DecodeError: They are not what they claim to be, or there are too many pixels.
    """
    with open_checked(load_bytes(path, job) if is_url(path) else path, job.max_file_bytes) as file:
        if _is_pdf(path):
            return pdf.load_page(file, number, dpi=job.dpi, max_pixels=job.max_pixels)
        return load_image(file, job.max_pixels, number)


def load_held(read: Callable[[], bytes], job: Job) -> Pixels:
    """Loads what is no file by itself, such as an entry of an archive: a picture, or the first page
    of a document.

    Args:
        read: Gives the bytes; raises ``ReadError``.
        job: As for ``load_part``.

    Raises:
        ReadError: As for ``load_part``.
        DecodeError: Likewise.
    """
    with open_checked(read(), job.max_file_bytes) as file:
        is_pdf = file.read(len(PDF_MARK)) == PDF_MARK
        file.seek(0)
        return (
            pdf.load_page(file, 1, dpi=job.dpi, max_pixels=job.max_pixels)
            if is_pdf
            else load_image(file, job.max_pixels)
        )


def _is_pdf(path: str) -> bool:
    return suffix_of(path) == ".pdf"


def _asks_for(ranges: tuple[tuple[int, int | None], ...], number: int) -> bool:
    return any(first <= number and (last is None or number <= last) for first, last in ranges)
