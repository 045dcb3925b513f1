"""An open video: frames with the times that a player shows them at, upright pixels, and skipping
that gives the same frames as decoding everything.
"""

from __future__ import annotations

import collections
import functools
import logging
import math
from collections.abc import Callable, Iterator, Sequence
from fractions import Fraction
from typing import TYPE_CHECKING

from vlmbatch.read.base import check_size, one_line
from vlmbatch.read.video.clock import Clock, Extent, FrameTimes, read_extent, read_frame_times
from vlmbatch.read.video.container import SAME_SECONDS, Demuxer, drops_exactly
from vlmbatch.read.video.frame import DecodedFrame, display_size
from vlmbatch.read.video.skipping import Sieve, Step, Unsure, Wanted, leave_out, mark

if TYPE_CHECKING:
    import av

__all__ = ["DecodedFrame", "NextInstant", "VideoFile"]

logger = logging.getLogger(__name__)

SEEK_GAP_SECONDS = 15.0
"""Gaps shorter than this are read through: key frames are often 10 s apart, and a seek goes back to
the one before.
"""

_SEEK_MARGIN_SECONDS = 1.0
"""Containers seek by decoding time, which runs ahead of presentation time by the reordered frames.
"""

_TELLS_ONCE = ("flv", "live_flv")
"""Containers whose parameter sets may change at a packet that a seek goes past without a word."""

_SHORT_SECONDS = 1.0
"""A stated duration below this is checked against the packets, which are few when it is right:
files that hold few times state next to nothing.
"""

NextInstant = Callable[[float], float | None]
"""Gives the first instant not before a time that is asked for; None when there is none."""


class VideoFile:
    """A video file, opened. One thread at a time; ``frames`` starts over each time; only its latest
    iterator goes on.

    Attributes:
        step_seconds: Seconds from one frame to the next, at the stated frame rate.
        num_decoded: Frames that came out of the decoder so far.
        num_broken: Packets so far that could not be read or decoded.
        broken_seconds: Time of the last frame before the first of them.
        broken_reason: The decoder's message.

    Raises:
        ReadError: The file cannot be opened.
        DecodeError: It is no video, or its frames have too many pixels.
    """

    def __init__(
        self, path: str, max_pixels: int, stream: int | None = None, extent: Extent | None = None
    ) -> None:
        """Open the file and read its header.

        Args:
            path: The file.
            max_pixels: Frames with more pixels are refused before they are decoded.
            stream: The video stream, from 0; None takes the one flagged as default, else the
                largest.
            extent: The ``extent`` of another opening of the file, so that it is not read again.
        """
        self._path, self._max_pixels, self._number = path, max_pixels, stream
        self._demuxer = Demuxer(path, stream)
        self.num_decoded = 0
        self.num_broken = 0
        self.broken_seconds = 0.0
        self.broken_reason = ""
        self._last_seconds = -math.inf
        self._started = False
        try:
            self._clock = Clock(self._demuxer.container, self._demuxer.stream)
            self.step_seconds = float(self._clock.step)
            codec = self._demuxer.stream.codec_context
            self._aspect = Fraction(self._demuxer.stream.sample_aspect_ratio or 1)
            check_size(*display_size(codec.width, codec.height, self._aspect), max_pixels)
        except BaseException:
            self.close()
            raise
        if extent is not None:
            self.extent = extent

    def __enter__(self) -> VideoFile:
        """Return itself."""
        return self

    def __exit__(self, *error: object) -> None:
        """Close the file."""
        self.close()

    def close(self) -> None:
        """Close the file. Frames that were given out stay valid."""
        self._demuxer.close()

    @property
    def end_seconds(self) -> float:
        """The end of the last frame of the stream, whatever other streams the container has."""
        return self.extent.end_seconds

    @functools.cached_property
    def extent(self) -> Extent:
        """The end of the stream, and whether its times run on."""
        stream = self._demuxer.stream
        if self._demuxer.states_end and stream.duration and stream.time_base:
            end = self._clock.seconds(stream.duration + (stream.start_time or 0))
            if end <= _SHORT_SECONDS:
                end = max(end, self._all_times.end_seconds)
            return Extent(end, runs_on=True)
        if not self._demuxer.is_joined:
            extent = read_extent(self._path, self._number, self._clock)
            if extent is not None:
                return extent
        return Extent(self._all_times.end_seconds, self._all_times.runs_on)

    @functools.cached_property
    def lost_from_seconds(self) -> float | None:
        """From when on frames that an MP4 or MOV file lists lie behind its end, as after a download
        that broke off; None when all are there.
        """
        size = self._demuxer.container.size
        entries = self._demuxer.stream.index_entries
        if (
            "mp4" not in self._demuxer.container.format.name.split(",")
            or not len(entries)
            or entries[-1].pos + entries[-1].size <= size
        ):
            return None
        return self._clock.seconds(
            min(entry.timestamp for entry in entries if entry.pos + entry.size > size)
        )

    @functools.cached_property
    def packet_times(self) -> FrameTimes | None:
        """Times as the packets state them; None where they do not (AVI, raw streams), or where that
        is not what decoding gives. Nothing is decoded.
        """
        return read_frame_times(self._path, self._number, self._clock)

    def frame_times(self) -> Sequence[float]:
        """Return the times of all frames, ascending, in seconds: from the packets. Only where these
        have none are frames decoded.
        """
        return self._all_times.times

    def key_times(self) -> Sequence[float]:
        """Return the times of the key frames, as ``frame_times``."""
        return self._all_times.key_times

    @functools.cached_property
    def _all_times(self) -> FrameTimes:
        if self.packet_times is not None:
            return self.packet_times
        with VideoFile(self._path, self._max_pixels, self._number) as again:
            frames = [
                (frame.time_seconds, frame.is_key, frame.duration_seconds)
                for frame in again.frames()
            ]
        return FrameTimes(
            tuple(time for time, _, _ in frames),
            tuple(time for time, is_key, _ in frames if is_key),
            frames[-1][2] if frames else 0.0,
            runs_on=False,
        )

    def frames(self, next_instant: NextInstant | None = None) -> Iterator[DecodedFrame]:
        """Yields frames in presentation order, times strictly rising. Damaged packets are passed
        over and counted.

        Args:
            next_instant: The instants that are asked for. Frames that are on screen at none of them
                may be left out; the frame after the last one is not. None asks for every frame.
        """

        def wanted(step: Step, next_pts: int | None, is_first: bool) -> bool:
            assert next_instant is not None
            time = self._clock.seconds(step.pts)
            due = next_instant(-math.inf if is_first else time - SAME_SECONDS)
            self._due_seconds = time if due is None else due
            # After the last instant one more is needed, to see where the one before it ends.
            if due is None or next_pts is None:
                return self._seek_seconds is None
            return due < self._clock.seconds(next_pts) - SAME_SECONDS / 2

        yield from self._chosen(None if next_instant is None else wanted, lambda frame: True)

    def key_frames(self, start_seconds: float = 0.0) -> Iterator[DecodedFrame]:
        """Yields the frames from a time on where decoding can start, as container and decoder say,
        and decodes no others.
        """

        def wanted(step: Step, next_pts: int | None, is_first: bool) -> bool:
            self._due_seconds = start_seconds
            return step.is_key and self._clock.seconds(step.pts) >= start_seconds - SAME_SECONDS

        yield from self._chosen(
            wanted,
            lambda frame: frame.is_key and frame.time_seconds >= start_seconds - SAME_SECONDS,
        )

    def _chosen(
        self, wanted: Wanted | None, keeps: Callable[[DecodedFrame], bool]
    ) -> Iterator[DecodedFrame]:
        """Yields those of the wanted frames that ``keeps`` says, or, when the packets do not tell
        how to get them, of all frames.
        """
        if self._started:
            self._reopen()
        self._started = True
        self._last_seconds = -math.inf
        if wanted is not None and self._demuxer.stream.time_base:
            before = self.num_broken, self.broken_seconds, self.broken_reason
            try:
                for frame in self._needed(wanted):
                    if frame.time_seconds > self._last_seconds + SAME_SECONDS / 2 and keeps(frame):
                        self._last_seconds = frame.time_seconds
                        yield frame
                return
            except Unsure as exc:
                logger.debug("%s: everything is decoded: %s", self._path, exc)
            self.num_broken, self.broken_seconds, self.broken_reason = before
            self._reopen()
        done_seconds, self._last_seconds = self._last_seconds, -math.inf
        for frame in self._timed(self._decoded()):
            if frame.time_seconds > self._last_seconds + SAME_SECONDS / 2:
                self._last_seconds = frame.time_seconds
                if frame.time_seconds > done_seconds + SAME_SECONDS / 2 and keeps(frame):
                    yield frame

    def _reopen(self) -> None:
        self._demuxer.close()
        self._demuxer = Demuxer(self._path, self._number)

    def _timed(self, decoded: Iterator[av.VideoFrame]) -> Iterator[DecodedFrame]:
        """Gives frames their times; one without a time, or with one that runs backwards, follows
        the one before at the frame rate.
        """
        last: Fraction | None = None
        for frame in decoded:
            time = None if frame.pts is None else self._clock.time(frame.pts)
            if time is None or (last is not None and time <= last):
                time = Fraction(0) if last is None else last + self._clock.step
            last = time
            yield self._frame(frame, time)

    def _frame(self, frame: av.VideoFrame, time: Fraction) -> DecodedFrame:
        duration = frame.duration * (self._demuxer.stream.time_base or 0) or self._clock.step
        return DecodedFrame(
            float(time),
            float(duration),
            bool(frame.key_frame),
            frame,
            self._aspect,
            self._max_pixels,
        )

    def _decoded(self) -> Iterator[av.VideoFrame]:
        """Every frame as the decoder gives it, in presentation order."""
        stamps: collections.deque[int] = collections.deque()
        for packet in self._demuxer.packets(self._note):
            if packet.dts is not None and self._demuxer.is_frame(packet):
                stamps.append(packet.dts)
            for frame in self._decode(packet):
                # In order of presentation, frames have the decoding times in their order.
                stamp = stamps.popleft() if stamps else None
                frame.pts = stamp if frame.pts is None else frame.pts
                yield frame

    def _decode(self, packet: av.Packet[av.VideoStream] | None) -> list[av.VideoFrame]:
        """Frames that come out of the decoder when a packet goes in, or, for None, those that are
        left in it.
        """
        from av.error import FFmpegError

        try:
            frames = (
                self._demuxer.stream.codec_context.decode(None)
                if packet is None
                else packet.decode()
            )
        except (FFmpegError, MemoryError) as exc:
            self._note(exc)
            return []
        self.num_decoded += len(frames)
        return frames

    def _note(self, error: Exception) -> None:
        if not self.num_broken:
            self.broken_seconds, self.broken_reason = max(self._last_seconds, 0.0), one_line(error)
        self.num_broken += 1

    def _needed(self, wanted: Wanted) -> Iterator[DecodedFrame]:
        """Frames that are wanted, decoding what they need: stretches of the video, with a seek
        between them where much can be left out.

        Raises:
            Unsure: Something is not as the packets said.
        """
        self._seekable = self._demuxer.container.format.name not in _TELLS_ONCE
        self._read_seconds = -math.inf
        target: float | None = None
        while True:
            self._due_seconds = -math.inf
            self._seek_seconds: float | None = None
            steps = mark(self._steps(target), wanted, from_start=target is None)
            yield from self._stretch(leave_out(steps))
            target = self._seek_seconds
            if target is None:
                return
            self._seek(target)

    def _stretch(self, steps: Iterator[Step]) -> Iterator[DecodedFrame]:
        """Decodes packets, lets frames that nothing refers to out where the decoder can, and yields
        what is wanted.
        """
        codec = self._demuxer.stream.codec_context
        drops = drops_exactly(self._demuxer.stream)
        sieve = Sieve()
        before = self.num_broken
        fed = False

        def kept(frames: list[av.VideoFrame]) -> Iterator[DecodedFrame]:
            if self.num_broken > before:
                raise Unsure(self.broken_reason)
            for frame in frames:
                if (
                    sieve.keeps(
                        frame.pts, is_key=bool(frame.key_frame), is_corrupt=frame.is_corrupt
                    )
                    and frame.pts is not None
                ):
                    yield self._frame(frame, self._clock.time(frame.pts))

        for step in steps:
            if step.fresh and fed:
                yield from kept(self._decode(None))
                sieve.end()
                codec.flush_buffers()
            fed = True
            sieve.expect(step)
            codec.skip_frame = "NONREF" if drops and not (step.wanted or step.fresh) else "DEFAULT"
            yield from kept(self._decode(step.packet))
        yield from kept(self._decode(None) if fed else [])
        sieve.end()

    def _steps(self, target: float | None) -> Iterator[Step]:
        """Packets from here on; after a seek from the first key frame on. Ends early where the rest
        is better reached by a seek.
        """
        is_frame = self._demuxer.is_frame
        before = self.num_broken
        for packet in self._demuxer.packets(self._note):
            if self.num_broken > before:
                raise Unsure(self.broken_reason)
            if not packet.size:
                continue
            if packet.pts is None:
                raise Unsure("a packet has no time")
            if packet.has_sidedata("new_extradata"):
                raise Unsure("parameter sets that change: frames after this packet need it")
            if target is not None:
                if not packet.is_keyframe:
                    continue
                if self._clock.seconds(packet.pts) > target + SAME_SECONDS:
                    raise Unsure("a seek went too far")
                if not is_frame(packet):
                    raise Unsure("a seek went to where nothing is shown")
                # Where key frames are far apart, each seek would go back to before where reading
                # already was.
                self._seekable = self._clock.seconds(packet.pts) > self._read_seconds
                target = None
            self._read_seconds = max(self._read_seconds, self._clock.seconds(packet.pts))
            yield Step(packet, packet.pts, packet.is_keyframe, is_frame(packet))
            reached = max(self._read_seconds, 0.0) + SEEK_GAP_SECONDS
            if (
                self._seekable
                and self._due_seconds > reached
                and self.extent.runs_on
                and self.end_seconds > reached
            ):
                self._seek_seconds = min(self._due_seconds, self.end_seconds)
                return
        if target is not None:
            raise Unsure("no key frame after a seek")

    def _seek(self, seconds: float) -> None:
        """Goes to a key frame before a time.

        Raises:
            Unsure: The container cannot.
        """
        try:
            self._demuxer.container.seek(
                self._clock.pts(seconds - _SEEK_MARGIN_SECONDS), stream=self._demuxer.stream
            )
        except (OSError, ValueError) as exc:
            raise Unsure(f"no seeking: {one_line(exc)}") from exc
