"""An open video: its frames with the times at which a player shows them, decoding no more than is
needed.
"""

from __future__ import annotations

import functools
import logging
import math
from collections.abc import Callable, Iterator, Sequence
from fractions import Fraction

from vlmbatch.read.base import check_size
from vlmbatch.read.video.clock import Clock, Extent, FrameTimes, read_frame_times
from vlmbatch.read.video.container import SAME_SECONDS, Demuxer
from vlmbatch.read.video.decoder import Decoder, DecodingCounts, TimedFrame, Wants
from vlmbatch.read.video.frame import DecodedFrame, display_size
from vlmbatch.read.video.skipping import MarkedPacket, Unsure

logger = logging.getLogger(__name__)

NextInstant = Callable[[float], float | None]
"""Returns the first instant that is asked for, not before a time; None when there is none."""


class VideoFile:
    """A video file, opened. One thread at a time; ``frames`` starts over each time; only its latest
    iterator goes on.

    Attributes:
        step_seconds: Seconds from one frame to the next, at the stated frame rate.
        counts: Counts of decoding it.

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
        self.counts = DecodingCounts()
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
        demuxer, stream = self._demuxer, self._demuxer.stream
        times: FrameTimes | None
        if demuxer.is_joined or "packet_times" in self.__dict__:
            times = self.packet_times
        else:
            times = read_frame_times(self._path, self._number, self._clock, from_last_key=True)
        stated = 0.0
        if demuxer.states_end and stream.duration and stream.time_base:
            stated = self._clock.seconds(stream.duration + (stream.start_time or 0))
        if times is None or not times.times:
            if stated > 0:
                return Extent(stated, runs_on=True)
            times = self._all_times
        is_behind = not times.times or stated > times.times[-1]
        return Extent(stated if stated and is_behind else times.end_seconds, times.runs_on)

    @functools.cached_property
    def lost_from_seconds(self) -> float | None:
        """Time of the first frame that an MP4 or MOV file lists behind its end, as after a download
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
        """Yield frames in presentation order, times strictly rising. Damaged packets are passed
        over and counted.

        Args:
            next_instant: The instants that are asked for. Frames that are on screen at none of them
                may be left out; the frame after the last one is not. None asks for every frame.
        """

        def wants(
            step: MarkedPacket, seconds: float, next_seconds: float | None, is_first: bool
        ) -> tuple[bool | None, float]:
            assert next_instant is not None
            due = next_instant(-math.inf if is_first else seconds - SAME_SECONDS)
            # After the last instant one more is needed, to see where the one before it ends.
            if due is None or next_seconds is None:
                return None, seconds if due is None else due
            return due < next_seconds - SAME_SECONDS / 2, due

        return self._frames(None if next_instant is None else wants, lambda frame: True)

    def key_frames(self, start_seconds: float = 0.0) -> Iterator[DecodedFrame]:
        """Yield the frames from a time on where decoding can start, as container and decoder say,
        and decode no others.
        """

        def wants(
            step: MarkedPacket, seconds: float, next_seconds: float | None, is_first: bool
        ) -> tuple[bool | None, float]:
            return step.is_key and seconds >= start_seconds - SAME_SECONDS, start_seconds

        return self._frames(
            wants, lambda frame: frame.is_key and frame.time_seconds >= start_seconds - SAME_SECONDS
        )

    def _frames(
        self, wants: Wants | None, keeps: Callable[[DecodedFrame], bool]
    ) -> Iterator[DecodedFrame]:
        """Yield those of the wanted frames that ``keeps`` says, or, when the packets do not tell
        how to get them, of all frames.
        """
        counts = self.counts
        counts.last_seconds = -math.inf
        if wants is not None and self._demuxer.stream.time_base:
            before = counts.num_broken, counts.broken_seconds, counts.broken_reason
            try:
                for frame in self._framed(self._decoder().needed_frames(wants)):
                    if keeps(frame):
                        yield frame
                return
            except Unsure as exc:
                logger.debug("%s: everything is decoded: %s", self._path, exc)
            counts.num_broken, counts.broken_seconds, counts.broken_reason = before
        done_seconds, counts.last_seconds = counts.last_seconds, -math.inf
        for frame in self._framed(self._decoder().every_frame()):
            if frame.time_seconds > done_seconds + SAME_SECONDS / 2 and keeps(frame):
                yield frame

    def _decoder(self) -> Decoder:
        """Start a pass over the file."""
        if self._started:
            self._demuxer.close()
            self._demuxer = Demuxer(self._path, self._number)
        self._started = True
        return Decoder(self._demuxer, self._clock, lambda: self.extent, self.counts)

    def _framed(self, frames: Iterator[TimedFrame]) -> Iterator[DecodedFrame]:
        """Yield frames whose times rise."""
        base, step = self._demuxer.stream.time_base or 0, self._clock.step
        for time, frame in frames:
            if time > self.counts.last_seconds + SAME_SECONDS / 2:
                self.counts.last_seconds = float(time)
                yield DecodedFrame(
                    float(time),
                    float(frame.duration * base or step),
                    bool(frame.key_frame),
                    frame,
                    self._aspect,
                    self._max_pixels,
                )
