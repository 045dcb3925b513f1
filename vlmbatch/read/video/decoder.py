"""One pass of a decoder over a stream: every frame, or those that are asked for, with seeks between
them where much can be left out.
"""

from __future__ import annotations

import collections
import dataclasses
import math
from collections.abc import Callable, Iterator
from fractions import Fraction
from typing import TYPE_CHECKING

from vlmbatch.errors import one_line
from vlmbatch.read.video.clock import Clock, Extent
from vlmbatch.read.video.container import SAME_SECONDS, Demuxer, drops_exactly
from vlmbatch.read.video.skipping import MarkedPacket, Sieve, Unsure, leave_out, mark

if TYPE_CHECKING:
    import av

SEEK_GAP_SECONDS = 15.0
"""Gaps shorter than this are read through: key frames are often 10 s apart, and a seek goes back to
the one before.
"""

SEEK_MARGIN_SECONDS = 1.0
"""Containers seek by decoding time, which runs ahead of presentation time by the reordered frames.
"""

_TELLS_ONCE = ("flv", "live_flv")
"""Containers whose parameter sets may change at a packet that a seek goes past without a word."""

TimedFrame = tuple[Fraction, "av.VideoFrame"]
"""Presentation time of a frame, in seconds, and the frame."""

Wants = Callable[[MarkedPacket, float, float | None, bool], tuple[bool | None, float]]
"""Takes a packet, the time of its frame, the time of the next one (None after the last), and
whether the frame stands for what comes before it too. Returns whether the frame is asked for (None:
unless a seek follows it), and a time before which no other one is.
"""


@dataclasses.dataclass(slots=True)
class DecodingCounts:
    """Counts of decoding a video: frames, and packets that are broken.

    Attributes:
        num_decoded: Frames that came out of the decoder so far.
        num_broken: Packets so far that could not be read or decoded.
        broken_seconds: Time of the last frame before the first of them.
        broken_reason: The decoder's message.
        last_seconds: Time of the last frame that was given out.
    """

    num_decoded: int = 0
    num_broken: int = 0
    broken_seconds: float = 0.0
    broken_reason: str = ""
    last_seconds: float = -math.inf

    def note(self, error: Exception) -> None:
        """Count a packet that is broken."""
        if not self.num_broken:
            self.broken_seconds, self.broken_reason = max(self.last_seconds, 0.0), one_line(error)
        self.num_broken += 1


class Decoder:
    """One pass over an open stream, in presentation order."""

    def __init__(
        self, demuxer: Demuxer, clock: Clock, extent: Callable[[], Extent], counts: DecodingCounts
    ) -> None:
        """Take the file, opened anew, its clock and extent, and where to count."""
        self._demuxer, self._clock, self._extent, self._counts = demuxer, clock, extent, counts
        self._codec = demuxer.stream.codec_context
        self._can_seek = demuxer.container.format.name not in _TELLS_ONCE
        self._read_seconds = -math.inf
        self._due_seconds = -math.inf
        self._target: float | None = None

    def every_frame(self) -> Iterator[TimedFrame]:
        """Yield all frames. One without a time, or with one that runs backwards, follows the one
        before at the frame rate. Damaged packets are passed over and counted.
        """
        last: Fraction | None = None
        stamps: collections.deque[int] = collections.deque()
        for packet in self._demuxer.packets(self._counts.note):
            if packet.dts is not None and self._demuxer.is_frame(packet):
                stamps.append(packet.dts)
            for frame in self._decode(packet):
                # In order of presentation, frames have the decoding times in their order.
                stamp = stamps.popleft() if stamps else None
                pts = stamp if frame.pts is None else frame.pts
                time = None if pts is None else self._clock.time(pts)
                if time is None or (last is not None and time <= last):
                    time = Fraction(0) if last is None else last + self._clock.step
                last = time
                yield time, frame

    def needed_frames(self, wants: Wants) -> Iterator[TimedFrame]:
        """Yield the frames that are asked for, and decode what they need.

        Raises:
            Unsure: Something is not as the packets said.
        """

        def wanted(step: MarkedPacket, next_pts: int | None, is_first: bool) -> bool:
            seconds = self._clock.seconds(step.pts)
            next_seconds = None if next_pts is None else self._clock.seconds(next_pts)
            asked, self._due_seconds = wants(step, seconds, next_seconds, is_first)
            return self._target is None if asked is None else asked

        from_start = True
        while from_start or self._target is not None:
            after, self._target, self._due_seconds = self._target, None, -math.inf
            if after is not None:
                self._seek(after)
            yield from self._stretch(
                leave_out(mark(self._steps(after), wanted, from_start=from_start))
            )
            from_start = False

    def _decode(self, packet: av.Packet[av.VideoStream] | None) -> list[av.VideoFrame]:
        """Return the frames that come out of the decoder when a packet goes in, or, for None, those
        that are left in it.
        """
        from av.error import FFmpegError

        try:
            frames = self._codec.decode(None) if packet is None else packet.decode()
        except (FFmpegError, MemoryError) as exc:
            self._counts.note(exc)
            return []
        self._counts.num_decoded += len(frames)
        return frames

    def _stretch(self, steps: Iterator[MarkedPacket]) -> Iterator[TimedFrame]:
        """Decode packets, leave out frames that nothing refers to where the decoder can, and yield
        what is wanted.
        """
        drops = drops_exactly(self._demuxer.stream)
        sieve = Sieve()
        before = self._counts.num_broken
        fed = False

        def kept(frames: list[av.VideoFrame]) -> Iterator[TimedFrame]:
            if self._counts.num_broken > before:
                raise Unsure(self._counts.broken_reason)
            for frame in frames:
                is_key, is_corrupt = bool(frame.key_frame), frame.is_corrupt
                is_kept = sieve.keeps(frame.pts, is_key=is_key, is_corrupt=is_corrupt)
                if is_kept and frame.pts is not None:
                    yield self._clock.time(frame.pts), frame

        for step in steps:
            if step.fresh and fed:
                yield from kept(self._decode(None))
                sieve.end()
                self._codec.flush_buffers()
            fed = True
            sieve.expect(step)
            is_needed = step.wanted or step.fresh or not drops
            self._codec.skip_frame = "DEFAULT" if is_needed else "NONREF"
            yield from kept(self._decode(step.packet))
        yield from kept(self._decode(None) if fed else [])
        sieve.end()

    def _steps(self, after: float | None) -> Iterator[MarkedPacket]:
        """Yield packets from here on; after a seek from the first key frame on. End early where the
        rest is better reached by a seek.
        """
        before = self._counts.num_broken
        for packet in self._demuxer.packets(self._counts.note):
            if self._counts.num_broken > before:
                raise Unsure(self._counts.broken_reason)
            if not packet.size:
                continue
            if packet.pts is None or self._demuxer.jumps.steps_back:
                raise Unsure("a packet has no time, or one that runs back")
            if packet.has_sidedata("new_extradata"):
                raise Unsure("parameter sets that change: frames after this packet need it")
            seconds, is_frame = self._clock.seconds(packet.pts), self._demuxer.is_frame(packet)
            if after is not None:
                if not packet.is_keyframe:
                    continue
                if seconds > after + SAME_SECONDS:
                    raise Unsure("a seek went too far")
                if not is_frame:
                    raise Unsure("a seek went to where nothing is shown")
                # Where key frames are far apart, each seek would go back to before where reading
                # already was.
                self._can_seek = seconds > self._read_seconds
                after = None
            self._read_seconds = max(self._read_seconds, seconds)
            yield MarkedPacket(packet, packet.pts, packet.is_keyframe, is_frame)
            self._target = self._seek_target()
            if self._target is not None:
                return
        if after is not None:
            raise Unsure("no key frame after a seek")

    def _seek_target(self) -> float | None:
        """Return the time that is better reached by a seek than by reading on; None for none."""
        reached = max(self._read_seconds, 0.0) + SEEK_GAP_SECONDS
        if not self._can_seek or self._due_seconds <= reached:
            return None
        extent = self._extent()
        if not extent.runs_on or extent.end_seconds <= reached:
            return None
        return min(self._due_seconds, extent.end_seconds)

    def _seek(self, seconds: float) -> None:
        """Go to a key frame before a time.

        Raises:
            Unsure: The container cannot.
        """
        pts = self._clock.pts(seconds - SEEK_MARGIN_SECONDS)
        try:
            self._demuxer.container.seek(pts, stream=self._demuxer.stream)
        except (OSError, ValueError) as exc:
            raise Unsure(f"no seeking: {one_line(exc)}") from exc
