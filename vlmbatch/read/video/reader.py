"""Video files to Items: sampled frames one by one, or clips and windows whose frames share a
prompt.
"""

from __future__ import annotations

import dataclasses
import functools
import logging
from collections.abc import Callable, Iterator, Sequence
from typing import Any, BinaryIO, Protocol

from vlmbatch.core import Item, Media, Pixels
from vlmbatch.errors import DecodeError, ItemError
from vlmbatch.job import Job
from vlmbatch.read.base import Counts, failing_load, one_line
from vlmbatch.read.files.source import Listed, LocalFile
from vlmbatch.read.listing import Listing
from vlmbatch.read.video.file import VideoFile
from vlmbatch.read.video.frame import DecodedFrame
from vlmbatch.read.video.intact import looks_whole
from vlmbatch.read.video.planned import PlannedFrame, PlannedVideo, load_frame, planned_frame

logger = logging.getLogger(__name__)


class Span(Protocol):
    """A stretch of a video and the choice of frames in it; made by sample/, whose base.py says
    more.
    """

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


class Judge(Protocol):
    """Judges the chosen frames of one video, in their order."""

    def is_similar(self, frame: DecodedFrame) -> bool:
        """Whether a frame resembles the last one that was kept; it is kept itself when it does not."""
        ...


class Sampler(Protocol):
    """Gives the spans of a video."""

    @property
    def needs_pixels(self) -> bool:
        """Whether the choice takes more than the times of the frames."""
        ...

    def judge(self) -> Judge | None:
        """What judges the frames of a video; None when every frame counts."""
        ...

    def __call__(self, video: VideoFile) -> Iterator[Span]:
        """Yields the spans in order of time."""
        ...


IsDone = Callable[[Sequence[Item]], bool]
"""Says whether every row about some Items is there already."""

_DAMAGED = DecodeError("damaged")
"""Stands for whatever is wrong with a video, where only the identity of its row matters."""


class VideoReader:
    """Gives the sampled frames of videos, or one Item a clip or window.

    Frames are decoded as the reader is iterated, one after the other; an Item holds its frame as
    the decoder gave it (12 bits a pixel, mostly) and ``load`` makes RGB of it. The ``load`` of a
    clip or window opens the file again and decodes its own stretch: such Items hold nothing, and
    load side by side. So it is with frames that are shuffled, as all of them are collected first;
    of videos that are no files a limited number of bytes is on the disk then.

    Raises:
        JobError: An INPUT does not exist, cannot be listed, matches nothing or is a picture.
    """

    def __init__(
        self,
        job: Job,
        sampler: Sampler,
        stdin: BinaryIO | None = None,
        is_done: IsDone | None = None,
        names_only: bool = False,
    ) -> None:
        """Checks the INPUTs; lists nothing yet.

        Args:
            job: The job.
            sampler: What ``sample.make_sampler(job)`` gives.
            stdin: Where the INPUT ``-`` reads paths from, instead of standard input.
            is_done: Says whether every row about some Items is there. A video of which that holds
                is not decoded; its Items are made from the packets' times.
            names_only: Whether Items are only counted: the packets' times are enough.
        """
        self._listing = Listing(job, job, job.output_path, stdin)
        self._sampler = sampler
        self._per_frame = job.per == "frame"
        self._per_window = job.per == "window"
        self._media: Media = "frame" if self._per_frame else "clip"
        self._job = job
        self._max_pixels = job.max_pixels
        self._is_done = is_done
        self._names_only = names_only
        self._source = self._number = 0
        self.counts: Counts = self._listing.counts

    def __iter__(self) -> Iterator[Item]:
        """Yields Items, video by video, each in order of time."""
        for source, found in enumerate(self._listing):
            self._source, self._number = source, 0
            yield from self._video(found)

    def _video(self, found: Listed) -> Iterator[Item]:
        try:
            on_disk = found.content.as_file()
            with VideoFile(on_disk.path, self._max_pixels) as video:
                if items := self._planned(found, on_disk, video):
                    yield from items
                    if error := self._loss(video):
                        yield self._failed(found, error)
                    return
                yield from (
                    self._frames(found, on_disk, video, self._sampler.judge())
                    if self._per_frame
                    else self._clips(found, on_disk, video)
                )
                if error := self._loss(video):
                    pass
                elif self._number or not self._per_frame:
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
        if not self._number:
            logger.warning("%s: no frame of it was asked for", found.source)

    def _loss(self, video: VideoFile) -> DecodeError | None:
        """What is wrong when the file ends before frames that were asked for; a clip or window is
        asked about with those that there are.
        """
        lost = video.lost_from_seconds if self._per_frame else None
        last = self._job.end if not self._job.at else max(self._job.at)
        return None if lost is None or (last is not None and last < lost) else _cut_off(lost)

    def _planned(self, found: Listed, on_disk: LocalFile, video: VideoFile) -> list[Item]:
        """The Items of a video from its packets alone, where no pixels will be asked for, or not
        now, and the packets tell.
        """
        if (
            not self._per_frame
            or self._sampler.needs_pixels
            or video.packet_times is None
            or (self._is_done is None and not self._job.shuffle and not self._names_only)
        ):
            return []
        before = self._number
        # A row about the video itself tells of damage, which only decoding finds again.
        is_damaged = self._is_done is not None and self._is_done([self._failed(found, _DAMAGED)])
        self._number = before
        # A shuffled video whose headers tell of damage is decoded once now, as it always is in
        # order: only that tells which of its frames can be shown.
        if is_damaged or (self._job.shuffle and not looks_whole(on_disk.path)):
            return []
        planned = PlannedVideo(video.packet_times, video.end_seconds)
        items = list(self._frames(found, on_disk, planned, None))
        is_wanted = self._names_only or self._job.shuffle
        if is_wanted or (self._is_done is not None and self._is_done(items)):
            return items
        self._number = before
        return []

    def _frames(
        self, found: Listed, on_disk: LocalFile, video: Any, judge: Judge | None
    ) -> Iterator[Item]:
        """Items of frames, each held back until the next is known: its time is where this one ends."""
        pending: DecodedFrame | PlannedFrame | None = None
        item_id = kept_id = ""
        similar_to: str | None = None
        for span in self._sampler(video):
            for frame in span.choose(video):
                if pending is not None:
                    yield self._frame(
                        found, on_disk, item_id, pending, frame.time_seconds, similar_to
                    )
                item_id = _frame_id(found.id, frame, pending)
                similar_to = kept_id if judge is not None and judge.is_similar(frame) else None
                kept_id = similar_to or item_id
                pending = planned_frame(frame) if self._job.shuffle else frame
        if pending is not None:
            end = video.end_seconds
            end = (
                end
                if end > pending.time_seconds
                else pending.time_seconds + pending.duration_seconds
            )
            yield self._frame(found, on_disk, item_id, pending, end, similar_to)

    def _frame(
        self,
        found: Listed,
        on_disk: LocalFile,
        item_id: str,
        frame: DecodedFrame | PlannedFrame,
        end_seconds: float,
        similar_to: str | None,
    ) -> Item:
        start, end = frame.stretch_seconds or (frame.time_seconds, end_seconds)
        if isinstance(frame, PlannedFrame):
            load = on_disk.bind(
                functools.partial(
                    load_frame, max_pixels=self._max_pixels, seconds=frame.time_seconds
                )
            )
        else:
            load = functools.partial(_picture, frame)
        return dataclasses.replace(
            self._item(found, item_id, load, start, end), similar_to=similar_to
        )

    def _clips(self, found: Listed, on_disk: LocalFile, video: VideoFile) -> Iterator[Item]:
        for span in self._sampler(video):
            item_id = (
                f"{found.id}#t={span.start_seconds:.3f}-{span.end_seconds:.3f}"
                if self._per_window
                else found.id
            )
            load = on_disk.bind(
                functools.partial(load_clip, max_pixels=self._max_pixels, span=span)
            )
            yield self._item(found, item_id, load, span.start_seconds, span.end_seconds)
        if not video.end_seconds:
            raise DecodeError("no frames")

    def _failed(self, found: Listed, error: ItemError) -> Item:
        return self._item(found, found.id, failing_load(type(error), str(error)), None, None)

    def _item(
        self,
        found: Listed,
        item_id: str,
        load: Callable[[], Pixels],
        start: float | None,
        end: float | None,
    ) -> Item:
        item = Item(
            item_id,
            found.source,
            (self._source, self._number),
            self._media,
            load,
            start,
            end,
            found.fingerprint,
            found.questions,
            found.extra,
        )
        self._number += 1
        return item


def _frame_id(
    video_id: str, frame: DecodedFrame | PlannedFrame, before: DecodedFrame | PlannedFrame | None
) -> str:
    if before is not None and f"{before.time_seconds:.3f}" == f"{frame.time_seconds:.3f}":
        # More than a thousand frames a second.
        return f"{video_id}#t={frame.time_seconds:.6f}"
    return f"{video_id}#t={frame.time_seconds:.3f}"


def _picture(frame: DecodedFrame) -> Pixels:
    return Pixels((frame.rgb(),))


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
        lost = video.lost_from_seconds
        if lost is not None and lost <= span.start_seconds:
            raise _cut_off(lost)
        for frame in span.choose(video):
            frames.append(frame.rgb())
            times.append(frame.time_seconds)
        if not frames:
            raise _no_frames(video)
        if video.num_broken:
            logger.warning("%s: %s", path, _damage(video))
        elif lost is not None and lost < span.end_seconds:
            logger.warning("%s: %s", path, _cut_off(lost))
        return Pixels(frames, tuple(times), video.end_seconds)


def _no_frames(video: VideoFile) -> DecodeError:
    return DecodeError(
        f"no frame can be decoded: {video.broken_reason}" if video.num_broken else "no frames"
    )


def _cut_off(lost_from_seconds: float) -> DecodeError:
    return DecodeError(
        f"cut off: the file ends before its frames from {lost_from_seconds:.3f} s on"
    )


def _damage(video: VideoFile) -> DecodeError | None:
    if not video.num_broken:
        return None
    packets = "1 packet" if video.num_broken == 1 else f"{video.num_broken} packets"
    return DecodeError(
        f"damaged after {video.broken_seconds:.3f} s: {packets} could not be decoded ({video.broken_reason})"
    )
