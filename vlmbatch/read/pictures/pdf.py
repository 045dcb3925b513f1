"""Pages of PDF files to pictures, through PDFium."""

from __future__ import annotations

import contextlib
import math
import threading
from collections.abc import Iterator
from typing import IO, Any

import numpy as np

from vlmbatch.core import Pixels
from vlmbatch.errors import DecodeError, ItemError, ReadError
from vlmbatch.read.base import check_size, one_line

_POINTS_PER_INCH = 72
_guard = threading.Lock()
"""PDFium is not safe to be called from several threads, not even for several documents."""


def count_pages(file: str | IO[bytes]) -> int:
    """How many pages a document has.

    Args:
        file: A path, or an open file.

    Raises:
        ReadError: The file cannot be opened.
        DecodeError: It is no PDF, or needs a password.
    """
    with _open(file) as document:
        return len(document)


def load_page(file: str | IO[bytes], number: int, *, dpi: int, max_pixels: int) -> Pixels:
    """Draws a page on white, with what is written into its forms and notes.

    Args:
        file: A path, or an open file.
        number: Of the page, from 1.
        dpi: Pixels an inch.
        max_pixels: Pages that would have more pixels are refused before they are drawn.

    Returns:
        One frame, uint8, (H, W, 3).

    Raises:
        ReadError: The file cannot be opened.
        DecodeError: It is no PDF, needs a password, has no such page, or the page is damaged or too
            large.
    """
    with _open(file) as document:
        if not 1 <= number <= len(document):
            raise DecodeError(f"no page {number}: the document has {len(document)}")
        document.init_forms()
        page = document[number - 1]
        # A hair less: sizes are rounded up, and a page of 480 points at 150 dpi is not 1000.0000001
        # pixels wide.
        scale = dpi / _POINTS_PER_INCH * (1 - 1e-9)
        width, height = (math.ceil(points * scale) for points in page.get_size())
        check_size(width, height, max_pixels)
        bitmap = page.render(scale=scale, rev_byteorder=True)
        # A copy: the bitmap's memory is PDFium's.
        pixels = np.array(bitmap.to_numpy()[..., :3], np.uint8, order="C")
        bitmap.close()
        return Pixels((pixels,))


@contextlib.contextmanager
def _open(file: str | IO[bytes]) -> Iterator[Any]:
    """A document, for the only thread that is in PDFium now."""
    import pypdfium2
    import pypdfium2.raw

    with _guard:
        try:
            # An open file rather than a path: the operating system's own words when it cannot be
            # opened, and names that are not UTF-8.
            with (
                open(file, "rb")
                if isinstance(file, str)
                else contextlib.nullcontext(file) as opened,
                pypdfium2.PdfDocument(opened) as document,
            ):
                yield document
        except ItemError:
            raise
        except pypdfium2.PdfiumError as exc:
            if exc.err_code == pypdfium2.raw.FPDF_ERR_PASSWORD:
                raise DecodeError("the PDF is protected by a password") from exc
            raise DecodeError(f"broken PDF: {one_line(exc)}") from exc
        except OSError as exc:
            raise ReadError(one_line(exc)) from exc
        except Exception as exc:
            raise DecodeError(f"broken PDF: {type(exc).__name__}: {one_line(exc)}") from exc
