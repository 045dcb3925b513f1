"""Video files to Items: sampled frames one by one, or clips and windows whose frames share a
prompt.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable, Iterator, Sequence
from typing import Any, BinaryIO

from vlmbatch.core import Item, Pixels
from vlmbatch.errors import DecodeError, ItemError, JobError, one_line
from vlmbatch.job import Job, VideoOptions
from vlmbatch.read.base import Counts
from vlmbatch.read.files.source import DiskFile, Listed
from vlmbatch.read.listing import Listing
from vlmbatch.read.video.file import VideoFile
from vlmbatch.read.video.frame import DecodedFrame
from vlmbatch.read.video.items import VideoItems
from vlmbatch.read.video.load import cut_off, damage, load_clip, load_frame, no_frames
from vlmbatch.read.video.sampling import Judge, Sampler
from vlmbatch.read.video.undecoded import UndecodedFrame, UndecodedVideo

logger = logging.getLogger(__name__)

IsDone = Callable[[Sequence[Item]], bool]
"""Return whether every row about some Items is there already."""

_DAMAGED = DecodeError("damaged")
"""Any fault of a video, where only the identity of its row matters."""


class VideoReader:
    """Give the sampled frames of videos, or one Item a clip or window.

    Frames are decoded as the reader is iterated, one after the other; an Item holds its frame as
    the decoder gave it (12 bits a pixel, mostly) and ``load`` makes RGB of it. The ``load`` of a
    clip or window opens the file again and decodes its own stretch: such Items hold nothing, and
    load side by side. So it is with frames that are shuffled, as all of them are collected first;
    only files are shuffled.

    Raises:
        JobError: An INPUT does not exist, cannot be listed, matches nothing or is a picture; or, as
            the reader is iterated, a video that is no file is to be shuffled.
    """

    def __init__(
        self,
        job: Job,
        sampler: Sampler,
        stdin: BinaryIO | None = None,
        is_done: IsDone | None = None,
        names_only: bool = False,
    ) -> None:
        """Check the INPUTs; list nothing yet.

        Args:
            job: The job.
            sampler: ``sample.make_sampler(job)``.
            stdin: Where the INPUT ``-`` reads paths from, instead of standard input.
            is_done: Returns whether every row about some Items is there. A video whose rows are all
                there is not decoded; its Items are made from the packets' times.
            names_only: Whether Items are only counted: the packets' times are enough.
        """
        self._listing = Listing(job, job, job.output_path, stdin)
        self._sampler = sampler
        self._job = job
        self._options: VideoOptions = job
        self._open = functools.partial(
            VideoFile, max_pixels=job.max_pixels, stream=self._options.stream
        )
        self._per_frame = job.per == "frame"
        self._is_done = is_done
        self._names_only = names_only
        self.counts: Counts = self._listing.counts

    def __iter__(self) -> Iterator[Item]:
        """Yield Items, video by video, each in order of time."""
        for number, found in enumerate(self._listing):
            items = VideoItems(found, number, "frame" if self._per_frame else "clip")
            yield from self._video(found, items)
            if not items.count:
                logger.warning("%s: no frame of it was asked for", found.source)
                self.counts.leave_out(f"{found.source}: no frame of it was asked for")

    def _video(self, found: Listed, items: VideoItems) -> Iterator[Item]:
        if self._job.shuffle and found.content.needs_copy:
            raise JobError(
                f"shuffle opens a video again for each frame, and {found.source} is no file here: "
                "leave out shuffle, or unpack or download it first"
            )
        try:
            file = found.content.as_file()
            if self._names_only:
                items.digest = file.digest
            else:
                digest = file.digest()  # before it is decoded: one that changes is done again
                items.digest = lambda: digest
            with self._open(file.path) as video:
                yield from self._items(items, file, video)
        except ItemError as exc:
            yield items.failed(exc)
        except Exception as exc:  # nobody foresaw it, but it is this video's, not the run's
            logger.debug("unexpected error", exc_info=True)
            yield items.failed(DecodeError(f"{type(exc).__name__}: {one_line(exc)}"))

    def _items(self, items: VideoItems, file: DiskFile, video: VideoFile) -> Iterator[Item]:
        """Yield the Items of an open video, and one more for a fault of it."""
        if planned := self._planned(items, file, video):
            items.count = len(planned)
            yield from planned
            error = self._loss(video)
        else:
            yield from (
                self._frames(items, file, video, self._sampler.judge())
                if self._per_frame
                else self._clips(items, file, video)
            )
            error = self._loss(video)
            if error is None and (items.count or not self._per_frame):
                error = damage(video)
            elif (
                error is None
                and not video.counts.num_decoded
                and next(video.frames(), None) is None
            ):
                error = no_frames(video)
        if error is not None:
            yield items.failed(error)

    def _loss(self, video: VideoFile) -> DecodeError | None:
        """Return the error of a file that ends before frames that were asked for. A clip or window
        is asked about with those that there are.
        """
        lost = video.lost_from_seconds if self._per_frame else None
        last = max(self._options.at) if self._options.at else self._options.end
        return None if lost is None or (last is not None and last < lost) else cut_off(lost)

    def _planned(self, items: VideoItems, file: DiskFile, video: VideoFile) -> list[Item]:
        """Return the Items of a video from its packets alone, where no pixels are needed now and
        the packets state their times; none otherwise. The frames of a file that ends early are
        known once it is decoded.
        """
        is_listed = self._names_only or self._job.shuffle
        if (
            not self._per_frame
            or self._sampler.needs_pixels
            or video.packet_times is None
            or (self._is_done is None and not is_listed)
            or (video.lost_from_seconds is not None and not self._names_only)
        ):
            return []
        # A row about the video itself is about damage, which only decoding finds again.
        if self._is_done is not None and self._is_done([items.again().failed(_DAMAGED)]):
            return []
        undecoded = UndecodedVideo(video.packet_times, video.extent, video.step_seconds)
        planned = list(self._frames(items.again(), file, undecoded, None))
        is_listed = is_listed or (self._is_done is not None and self._is_done(planned))
        return planned if is_listed else []

    def _frames(
        self,
        items: VideoItems,
        file: DiskFile,
        video: VideoFile | UndecodedVideo,
        judge: Judge | None,
    ) -> Iterator[Item]:
        """Yield Items of frames, each when the next is known, whose time is the end of this one."""
        pending: DecodedFrame | UndecodedFrame | None = None
        mark = kept = ""
        similar_to: str | None = None

        def item(end_seconds: float) -> Item:
            assert pending is not None
            start, end = pending.stretch_seconds or (pending.time_seconds, end_seconds)
            if isinstance(pending, UndecodedFrame):
                load = self._bind(file, load_frame, video, seconds=pending.time_seconds)
            else:
                load = functools.partial(_picture, pending)
            return items.item(mark, load, start, end, similar_to)

        for stretch in self._sampler(video):
            for frame in stretch.choose(video):
                if pending is not None:
                    yield item(frame.time_seconds)
                mark = _mark(frame, pending)
                similar_to = kept if judge is not None and judge.is_similar(frame) else None
                kept = similar_to or mark
                pending = _without_pixels(frame) if self._job.shuffle else frame
        if pending is not None:
            end = video.end_seconds
            if end <= pending.time_seconds:
                end = pending.time_seconds + pending.duration_seconds
            yield item(end)

    def _clips(self, items: VideoItems, file: DiskFile, video: VideoFile) -> Iterator[Item]:
        for stretch in self._sampler(video):
            start, end = stretch.start_seconds, stretch.end_seconds
            mark = f"#t={start:.3f}-{end:.3f}" if self._job.per == "window" else ""
            yield items.item(mark, self._bind(file, load_clip, video, stretch=stretch), start, end)
        if not video.end_seconds:
            raise DecodeError("no frames")

    def _bind(
        self,
        file: DiskFile,
        load: Callable[..., Pixels],
        video: VideoFile | UndecodedVideo,
        **asked: Any,
    ) -> Callable[[], Pixels]:
        """Return a ``load`` that opens the file again."""
        options = {"max_pixels": self._job.max_pixels, "stream": self._options.stream}
        return file.bind(functools.partial(load, **options, extent=video.extent, **asked))


def _mark(
    frame: DecodedFrame | UndecodedFrame, before: DecodedFrame | UndecodedFrame | None
) -> str:
    if before is not None and f"{before.time_seconds:.3f}" == f"{frame.time_seconds:.3f}":
        # More than a thousand frames a second.
        return f"#t={frame.time_seconds:.6f}"
    return f"#t={frame.time_seconds:.3f}"


def _picture(frame: DecodedFrame) -> Pixels:
    return Pixels((frame.rgb(),))


def _without_pixels(frame: DecodedFrame | UndecodedFrame) -> UndecodedFrame:
    return UndecodedFrame(frame.time_seconds, frame.duration_seconds, frame.stretch_seconds)
