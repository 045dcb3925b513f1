"""Files that hold several pictures: pages of documents and TIFF files, frames of animations. Finds
the pages that are asked for, and loads them.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable, Iterator
from typing import NamedTuple

from vlmbatch.core import Pixels
from vlmbatch.errors import DecodeError, ItemError, one_line
from vlmbatch.job import InputOptions
from vlmbatch.read.base import Counts, failing_load
from vlmbatch.read.files.page_choice import PDF_MARK, SINGLE, PageChoice, is_document
from vlmbatch.read.files.source import DiskFile, Listed, Source
from vlmbatch.read.pictures import pdf
from vlmbatch.read.pictures.decode import count_frames, load_image
from vlmbatch.wording import number_of

logger = logging.getLogger(__name__)


class Page(NamedTuple):
    """A page: its id, its ``load``, the file that it is in, and file bytes that it holds (None:
    those of the file).
    """

    id: str
    load: Callable[[], Pixels]
    file: Source
    bytes_held: int | None = None

    @property
    def held_bytes(self) -> int:
        """File bytes that ``load`` holds."""
        return self.file.held_bytes if self.bytes_held is None else self.bytes_held


class PagePicker:
    """Gives the pages of a thing that a job asks for, wherever it lies: the thing itself, or one
    page after the other.

    It is only opened for it where its number of pages matters: a document of which more than the
    first page is asked for, and a picture file with ``pages``.
    """

    def __init__(self, options: InputOptions, counts: Counts) -> None:
        self._options, self._counts = options, counts
        self._choice = PageChoice(options.pages)

    def pages(self, listed: Listed) -> Iterator[Page]:
        """Yield each page, in order. The id ends in ``#page=N``, but for that of a file with one
        page, and of the first when no other is asked for.
        """
        content = listed.content
        if not self._choice.counts_of(content):
            must_be_only = not self._choice.only_first
            yield Page(listed.id, self._load(content, must_be_only), content)
            return
        if content.suffix in SINGLE:
            if self._choice.chosen(1, is_document=False):
                yield Page(listed.id, self._load(content, False), content)
            else:
                self._leave_out(listed, 1)
            return
        try:
            file = content.as_file()
            total, is_pdf = count_pages(file, self._options)
        except ItemError as exc:
            yield Page(listed.id, failing_load(type(exc), str(exc)), content, 0)
            return
        except Exception as exc:  # nobody foresaw it, but it is this file's, not the run's
            logger.debug("unexpected error", exc_info=True)
            message = f"{type(exc).__name__}: {one_line(exc)}"
            yield Page(listed.id, failing_load(DecodeError, message), content, 0)
            return
        numbers = self._choice.chosen(total, is_document=is_pdf)
        if not numbers:
            self._leave_out(listed, total)
        for number in numbers:
            page_id = listed.id if total == 1 else f"{listed.id}#page={number}"
            source = self._source(content, file)
            yield Page(
                page_id, functools.partial(load_page, source, self._options, number), source, 0
            )

    def _leave_out(self, listed: Listed, total: int) -> None:
        pages = number_of(total, "page")
        why = f"{listed.source} has {pages}, --pages {self._options.pages} is none of them"
        logger.info("%s", why)
        self._counts.leave_out(why)

    def _load(self, content: Source, must_be_only: bool) -> Callable[[], Pixels]:
        return functools.partial(load_page, content, self._options, 1, must_be_only)

    def _source(self, content: Source, file: DiskFile) -> Source:
        """Return the file that pages are loaded from. All pages of a job are held at once to be
        shuffled: then no copy of a document is kept for them that can be made anew.
        """
        return content if self._options.shuffle and content.is_near else file


def count_pages(content: Source, options: InputOptions) -> tuple[int, bool]:
    """Return the number of pages or frames, from the structure alone, and whether it is a PDF.

    Raises:
        ReadError: It cannot be opened, or is too large.
        DecodeError: It is no document or picture, or has more pages than ``max_pages``.
    """
    with content.open(options.max_file_bytes) as file:
        is_pdf = is_document(content.suffix, file.read(len(PDF_MARK)))
        file.seek(0)
        total = (
            pdf.count_pages(file)
            if is_pdf
            else count_frames(file, options.max_pixels, options.max_pages + 1)
        )
    if total > options.max_pages:
        raise DecodeError(f"it has more pages than --max-pages {options.max_pages:,}")
    return total, is_pdf


def load_page(
    content: Source, options: InputOptions, number: int, must_be_only: bool = False
) -> Pixels:
    """Load a page of a document or picture file.

    Args:
        content: The file.
        options: Limits, and the resolution that pages are drawn in.
        number: The page, from 1.
        must_be_only: Whether a document of several pages is refused: its name did not say that it
            is one, so nobody has asked for its pages.

    Returns:
        One frame, uint8, (H, W, 3).

    Raises:
        ReadError: The bytes cannot be had, or are too many.
        DecodeError: They are not what they claim to be, or there are too many pixels.
    """
    if isinstance(content, DiskFile):
        content.digest()  # before it is decoded: one that changes meanwhile is done again
    with content.open(options.max_file_bytes) as file:
        is_pdf = is_document(content.suffix, file.read(len(PDF_MARK)))
        file.seek(0)
        if not is_pdf:
            return load_image(file, options.max_pixels, number)
        if must_be_only and (total := pdf.count_pages(file)) > 1:
            raise DecodeError(
                f"a PDF of {total} pages whose name does not say so; name it .pdf, "
                "or ask for its first page with --pages 1"
            )
        file.seek(0)
        return pdf.load_page(file, number, dpi=options.dpi, max_pixels=options.max_pixels)
