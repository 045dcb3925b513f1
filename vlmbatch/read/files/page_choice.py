"""The choice of pages of a document, or of frames of an animation."""

from __future__ import annotations

from vlmbatch.read.files.source import Source
from vlmbatch.values import parse_pages

_SINGLE = ".jpg .jpeg .jpe .jfif .bmp .dib .ppm .pgm .pbm .pnm .ico .tga .jp2 .j2k"
SINGLE = frozenset(_SINGLE.split())
"""Extensions of files that are one picture. The others inside a phone's .jpg (a depth map, a
preview) and the sizes of an .ico are no pages.
"""

PDF_MARK = b"%PDF-"


def is_document(suffix: str, head: bytes) -> bool:
    """Return whether a file is a PDF, by its extension or its first bytes."""
    return suffix == ".pdf" or head.startswith(PDF_MARK)


class PageChoice:
    """The option ``pages``: all pages of a document and the first of a picture file, unless it says
    otherwise.
    """

    def __init__(self, pages: str | None) -> None:
        ranges = parse_pages(pages) if pages is not None else None
        self.only_first = ranges == ((1, 1),)
        self.of_all_files = ranges is not None and not self.only_first
        self._of_documents = ranges or ((1, None),)
        self._of_pictures = ranges or ((1, 1),)

    def counts(self, suffix: str) -> bool:
        """Return whether the number of pages of a file has to be known, by its extension."""
        return not self.only_first and (self.of_all_files or is_document(suffix, b""))

    def counts_of(self, content: Source) -> bool:
        """Return the same of a source; where it has no extension, its first bytes tell."""
        if self.only_first or self.of_all_files:
            return self.of_all_files
        return is_document(content.suffix, b"" if content.suffix else content.head())

    def chosen(self, total: int, *, is_document: bool) -> list[int]:
        """Return the numbers of the pages that are asked for and there, from 1, ascending."""
        ranges = self._of_documents if is_document else self._of_pictures
        bounds = [(first, min(last or total, total)) for first, last in ranges]
        return sorted({number for first, last in bounds for number in range(first, last + 1)})
