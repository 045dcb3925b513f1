"""Readers: INPUTs to Items. A table says which reader a kind of media gets; base.py has their
contract.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, BinaryIO

from vlmbatch.errors import JobError
from vlmbatch.job import Job
from vlmbatch.read.base import Counts, Reader
from vlmbatch.read.bundles.kinds import is_stream
from vlmbatch.read.files.temporary import remove_leftovers

if TYPE_CHECKING:
    from vlmbatch.read.video.reader import IsDone
    from vlmbatch.read.video.sampling import Sampler

__all__ = ["READERS", "Counts", "Reader", "is_stream", "open_reader"]


def _images(
    job: Job,
    stdin: BinaryIO | None,
    sampler: Sampler | None,
    names_only: bool,
    is_done: IsDone | None,
) -> Reader:
    from vlmbatch.read.listing import Listing
    from vlmbatch.read.pictures.reader import ImageReader

    return ImageReader(Listing(job, job, job.output_path, stdin, names_only), job)


def _videos(
    job: Job,
    stdin: BinaryIO | None,
    sampler: Sampler | None,
    names_only: bool,
    is_done: IsDone | None,
) -> Reader:
    from vlmbatch.read.video.reader import VideoReader

    if sampler is None:
        raise JobError("a video job needs a sampler: sample.make_sampler(job)")
    return VideoReader(job, sampler, stdin, is_done, names_only)


READERS: dict[
    str, Callable[[Job, BinaryIO | None, Sampler | None, bool, IsDone | None], Reader]
] = {"image": _images, "video": _videos}
"""A function for each kind of media that makes its reader. A reader's module is imported when it is
asked for: image jobs do not load PyAV.
"""


def open_reader(
    job: Job,
    *,
    stdin: BinaryIO | None = None,
    sampler: Sampler | None = None,
    names_only: bool = False,
    is_done: IsDone | None = None,
) -> Reader:
    """Make the reader of a job; before that, remove copies of videos that killed runs have left
    among the temporary files.

    Args:
        job: The job.
        stdin: Where the INPUT ``-`` reads paths from, instead of standard input.
        sampler: Which frames of a video become Items; needed for videos.
        names_only: Whether Items are only counted, not loaded: the content of archives and tables
            is then skipped.
        is_done: Says whether every row about some Items is there, so that their video need not be
            decoded.

    Raises:
        JobError: An INPUT does not exist, cannot be listed, matches nothing, is of the other media,
            or is a manifest whose columns cannot be understood.
    """
    if not names_only:
        remove_leftovers()
    return READERS[job.media](job, stdin, sampler, names_only, is_done)
