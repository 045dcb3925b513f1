"""Pages of PDF files to pictures, through PDFium."""

from __future__ import annotations

import contextlib
import math
import threading
from collections.abc import Iterator
from typing import IO, Any

import numpy as np

from vlmbatch.core import Pixels
from vlmbatch.errors import DecodeError, ItemError, ReadError, one_line
from vlmbatch.read.base import check_size

_POINTS_PER_INCH = 72
_guard = threading.Lock()
"""PDFium is not safe to be called from several threads, not even for several documents."""


def count_pages(file: IO[bytes]) -> int:
    """Return the number of pages of a document.

    Args:
        file: The open file.

    Raises:
        ReadError: The file cannot be read.
        DecodeError: It is no PDF, or needs a password.
    """
    with _open(file) as document:
        return len(document)


def load_page(file: IO[bytes], number: int, *, dpi: int, max_pixels: int) -> Pixels:
    """Draw a page on white, with the content of its forms and notes.

    Args:
        file: The open file.
        number: The page, from 1.
        dpi: Pixels an inch.
        max_pixels: Pages that would have more pixels are refused before they are drawn.

    Returns:
        One frame, uint8, (H, W, 3).

    Raises:
        ReadError: The file cannot be read.
        DecodeError: It is no PDF, needs a password, has no such page, or the page is damaged or too
            large.
    """
    with _open(file) as document:
        if not 1 <= number <= len(document):
            raise DecodeError(f"no page {number}: the document has {len(document)}")
        document.init_forms()
        page = document[number - 1]
        # Slightly less, as sizes are rounded up: 480 points at 150 dpi are not 1000.0000001 pixels.
        scale = dpi / _POINTS_PER_INCH * (1 - 1e-9)
        width, height = (math.ceil(points * scale) for points in page.get_size())
        check_size(width, height, max_pixels)
        bitmap = page.render(scale=scale, rev_byteorder=True)
        # A copy: the bitmap's memory is PDFium's.
        pixels = np.array(bitmap.to_numpy()[..., :3], np.uint8, order="C")
        bitmap.close()
        return Pixels((pixels,))


@contextlib.contextmanager
def _open(file: IO[bytes]) -> Iterator[Any]:
    """Open a document, for the only thread that is in PDFium now."""
    import pypdfium2
    import pypdfium2.raw

    with _guard:
        try:
            with pypdfium2.PdfDocument(file) as document:
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
