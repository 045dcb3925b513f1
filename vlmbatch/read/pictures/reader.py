"""Picture files and documents to Items."""

from __future__ import annotations

from collections.abc import Iterator

from vlmbatch.core import Item
from vlmbatch.job import InputOptions
from vlmbatch.read.base import Counts, with_carried
from vlmbatch.read.listing import Listing
from vlmbatch.read.pictures.pages import PagePicker


class ImageReader:
    """Gives one Item a picture, and one a page of files with several where they are asked for."""

    def __init__(self, listing: Listing, options: InputOptions) -> None:
        """Take what lists the pictures; lists nothing yet."""
        self._listing = listing
        self.counts: Counts = listing.counts
        self._picker = PagePicker(options, self.counts)

    def __iter__(self) -> Iterator[Item]:
        """Yield the Items, in input order."""
        for source, listed in enumerate(self._listing):
            for number, page in enumerate(self._picker.pages(listed)):
                yield Item(
                    page.id,
                    listed.source,
                    (source, number),
                    "image",
                    page.load,
                    fingerprint=listed.fingerprint,
                    questions=listed.questions,
                    extra=listed.extra,
                    held_bytes=page.held_bytes,
                    digest=with_carried(page.file.digest, listed.extra),
                )
