"""Picture files and documents to Items."""

from __future__ import annotations

from collections.abc import Iterator
from typing import BinaryIO

from vlmbatch.core import Item
from vlmbatch.job import Job
from vlmbatch.read.base import Counts
from vlmbatch.read.listing import Listing
from vlmbatch.read.pictures.pages import PagePicker


class ImageReader:
    """Gives one Item a picture file, and one a page of files with several where they are asked for.

    Raises:
        JobError: An INPUT does not exist, cannot be listed, matches nothing or is a video.
        MissingDependencyError: An INPUT needs a package that is not installed.
    """

    def __init__(self, job: Job, stdin: BinaryIO | None = None, names_only: bool = False) -> None:
        """Checks the INPUTs; lists nothing yet. With ``names_only`` Items are only to be counted."""
        self._listing = Listing(job, stdin, names_only)
        self._picker = PagePicker(job)
        self.counts: Counts = self._listing.counts

    def __iter__(self) -> Iterator[Item]:
        """Yields the Items, in input order."""
        for source, found in enumerate(self._listing):
            for number, (item_id, load) in enumerate(self._picker.parts(found)):
                yield Item(
                    item_id,
                    found.source,
                    (source, number),
                    "image",
                    load,
                    fingerprint=found.fingerprint,
                    questions=found.questions,
                    extra=found.extra,
                    held_bytes=found.held_bytes,
                )
