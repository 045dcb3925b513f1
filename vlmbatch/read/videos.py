"""Video files to Items: sampled frames one by one, or clips and windows whose frames share a prompt."""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable, Iterator
from typing import BinaryIO, Protocol

from vlmbatch.errors import DecodeError, ItemError, ReadError
from vlmbatch.job import Job
from vlmbatch.read.base import Counts, failing_load, one_line
from vlmbatch.read.paths import Found, Listing
from vlmbatch.read.remote import OnDisk
from vlmbatch.read.video_file import DecodedFrame, VideoFile
from vlmbatch.records import Item, Media, Pixels

logger = logging.getLogger(__name__)


class Span(Protocol):
    """A stretch of a video and the choice of frames in it; made by sample/, whose base.py says more."""

    @property
    def start_seconds(self) -> float:
        """Where it starts."""
        ...

    @property
    def end_seconds(self) -> float:
        """Where it ends."""
        ...

    @property
    def choose(self) -> Callable[[VideoFile], Iterator[DecodedFrame]]:
        """Yields the chosen frames of an open video."""
        ...


class Sampler(Protocol):
    """Gives the spans of a video."""

    def __call__(self, video: VideoFile) -> Iterator[Span]:
        """Yields the spans in order of time."""
        ...


class VideoReader:
    """Gives the sampled frames of videos, or one Item a clip or window.

    Frames are decoded as the reader is iterated, one after the other; an Item holds its frame as the decoder gave it (12 bits a pixel, mostly) and ``load``
    makes RGB of it. The ``load`` of a clip or window opens the file again and decodes its own stretch: such Items hold nothing, and load side by side.

    Raises:
        JobError: An INPUT does not exist, cannot be listed, matches nothing or is a picture.
    """

    def __init__(self, job: Job, sampler: Sampler, stdin: BinaryIO | None = None) -> None:
        """Checks the INPUTs; lists nothing yet.

        Args:
            job: The job.
            sampler: What ``sample.make_sampler(job)`` gives.
            stdin: Where the INPUT ``-`` reads paths from, instead of standard input.
        """
        self._listing = Listing(job, stdin)
        self._sampler = sampler
        self._per_frame = job.per == "frame"
        self._per_window = job.per == "window"
        self._media: Media = "frame" if self._per_frame else "clip"
        self._job = job
        self._max_pixels = job.max_pixels
        self._total: int | None = None
        self._index = 0
        self.counts: Counts = self._listing.counts

    def __iter__(self) -> Iterator[Item]:
        """Yields Items, video by video, each in order of time."""
        self._index = 0
        for found in self._listing:
            yield from self._video(found)
        self._total = self._index

    def estimate(self) -> int | None:
        """How many Items there are; known only after an iteration."""
        return self._total

    def _video(self, found: Found) -> Iterator[Item]:
        if found.error is not None:
            yield self._failed(found, ReadError(found.error))
            return
        if found.read is not None:
            yield self._failed(found, ReadError("videos are read from files, not from the bytes that a row holds or names"))
            return
        before = self._index
        try:
            on_disk = OnDisk(found.path, self._job)
            with VideoFile(on_disk.path, self._max_pixels) as video:
                yield from self._frames(found, video) if self._per_frame else self._clips(found, on_disk, video)
                if self._index > before or not self._per_frame:
                    error = _damage(video)
                elif not video.num_decoded and next(video.frames(), None) is None:
                    error = _no_frames(video)
                else:
                    error = None
            if error is not None:
                yield self._failed(found, error)
        except ItemError as exc:
            yield self._failed(found, exc)
        except Exception as exc:  # nobody foresaw it, but it is this video's, not the run's
            logger.debug("unexpected error", exc_info=True)
            yield self._failed(found, DecodeError(f"{type(exc).__name__}: {one_line(exc)}"))
        if self._index == before:
            logger.warning("%s: no frame of it was asked for", found.source)

    def _frames(self, found: Found, video: VideoFile) -> Iterator[Item]:
        """Items of frames, each held back until the next is known: its time is where this one ends."""
        pending: DecodedFrame | None = None
        last_seconds = -1.0
        for span in self._sampler(video):
            for frame in span.choose(video):
                if pending is not None:
                    yield self._frame(found, pending, frame.time_seconds, last_seconds)
                    last_seconds = pending.time_seconds
                pending = frame
        if pending is not None:
            end = video.end_seconds
            yield self._frame(found, pending, end if end > pending.time_seconds else pending.time_seconds + pending.duration_seconds, last_seconds)

    def _frame(self, found: Found, frame: DecodedFrame, end_seconds: float, last_seconds: float) -> Item:
        item_id = f"{found.id}#t={frame.time_seconds:.3f}"
        if f"{last_seconds:.3f}" == f"{frame.time_seconds:.3f}":
            # More than a thousand frames a second.
            item_id = f"{found.id}#t={frame.time_seconds:.6f}"
        return self._item(found, item_id, lambda: Pixels((frame.rgb(),)), frame.time_seconds, end_seconds)

    def _clips(self, found: Found, on_disk: OnDisk, video: VideoFile) -> Iterator[Item]:
        for span in self._sampler(video):
            item_id = f"{found.id}#t={span.start_seconds:.3f}-{span.end_seconds:.3f}" if self._per_window else found.id
            load = on_disk.bind(functools.partial(load_clip, on_disk.path, self._max_pixels, span))
            yield self._item(found, item_id, load, span.start_seconds, span.end_seconds)
        if not video.end_seconds:
            raise DecodeError("no frames")

    def _failed(self, found: Found, error: ItemError) -> Item:
        return self._item(found, found.id, failing_load(type(error), str(error)), None, None)

    def _item(self, found: Found, item_id: str, load: Callable[[], Pixels], start: float | None, end: float | None) -> Item:
        item = Item(item_id, found.source, self._index, self._media, load, start, end, found.fingerprint, found.questions, found.extra)
        self._index += 1
        return item


def load_clip(path: str, max_pixels: int, span: Span) -> Pixels:
    """Decodes the chosen frames of a stretch of a video.

    Args:
        path: The file.
        max_pixels: Frames with more pixels are refused before they are decoded.
        span: The stretch and the choice.

    Returns:
        The frames, uint8, (H, W, 3) each, their times and the duration of the whole video.

    Raises:
        ReadError: The file cannot be opened.
        DecodeError: It is no video, its frames have too many pixels, or none could be decoded.
    """
    frames, times = [], []
    with VideoFile(path, max_pixels) as video:
        for frame in span.choose(video):
            frames.append(frame.rgb())
            times.append(frame.time_seconds)
        if not frames:
            raise _no_frames(video)
        if video.num_broken:
            logger.warning("%s: %s", path, _damage(video))
        return Pixels(frames, tuple(times), video.end_seconds)


def _no_frames(video: VideoFile) -> DecodeError:
    return DecodeError(f"no frame can be decoded: {video.broken_reason}" if video.num_broken else "no frames")


def _damage(video: VideoFile) -> DecodeError | None:
    if not video.num_broken:
        return None
    packets = "1 packet" if video.num_broken == 1 else f"{video.num_broken} packets"
    return DecodeError(f"damaged after {video.broken_seconds:.3f} s: {packets} could not be decoded ({video.broken_reason})")
