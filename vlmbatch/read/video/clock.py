"""Time stamps of a video's stream as the seconds that a player shows, and the times of its frames
as the packets state them.
"""

from __future__ import annotations

import dataclasses
import math
from fractions import Fraction
from typing import TYPE_CHECKING, Any

from vlmbatch.read.video.container import (
    MICROSECONDS,
    SAME_SECONDS,
    Demuxer,
    frame_seconds,
)

if TYPE_CHECKING:
    import av
    from av.container import InputContainer
    from av.video.stream import VideoStream


class Clock:
    """The times of a stream.

    Attributes:
        step: Seconds from one frame to the next, at the stated frame rate.
        origin: Seconds from which a player counts.
    """

    def __init__(self, container: InputContainer, stream: VideoStream) -> None:
        """Read the statements of container and stream."""
        self.step = frame_seconds(stream)
        self._base = stream.time_base or Fraction(1)
        self.origin = _origin_seconds(container, stream)
        # Seconds of a time stamp as one division of whole numbers, rounded as `float` rounds the
        # fraction: it is done several times a packet.
        self._scale, self._shift = (
            self._base.numerator * self.origin.denominator,
            self.origin.numerator * self._base.denominator,
        )
        self._whole = self._base.denominator * self.origin.denominator

    def time(self, pts: int) -> Fraction:
        """Return the time of a stamp, in seconds."""
        return pts * self._base - self.origin

    def seconds(self, pts: int) -> float:
        """Return ``float(time(pts))``."""
        return (pts * self._scale - self._shift) / self._whole

    def pts(self, seconds: float) -> int:
        """Return the time stamp of a time, rounded towards 0."""
        return int((Fraction(seconds) + self.origin) / self._base)

    def end(self, packet: av.Packet[Any]) -> float:
        """Return the time when a packet's frame ends, in seconds."""
        return float(
            self.time(packet.pts or 0) + ((packet.duration or 0) * self._base or self.step)
        )


def _origin_seconds(container: InputContainer, stream: VideoStream) -> Fraction:
    """Return the time that a player calls 0, in seconds: the container's start, exact where it is
    the stream's own (it is stated in microseconds).
    """
    own = (stream.start_time or 0) * (stream.time_base or Fraction(0))
    if container.start_time is None:
        return own
    start = Fraction(container.start_time, MICROSECONDS)
    return own if stream.start_time is not None and abs(own - start) <= SAME_SECONDS else start


@dataclasses.dataclass(frozen=True, slots=True)
class Extent:
    """Facts from reading a video's packets, for those that open the file again.

    Attributes:
        end_seconds: End of its last frame.
        runs_on: Whether its times never start anew, so that a time names one place.
    """

    end_seconds: float
    runs_on: bool


@dataclasses.dataclass(frozen=True, slots=True)
class FrameTimes:
    """Times of a video's frames.

    Attributes:
        times: Times of the frames, ascending, in seconds.
        key_times: Times of those where decoding can start.
        last_duration_seconds: Duration of the last one.
        runs_on: Whether they are the file's own, without a restart among them.
    """

    times: tuple[float, ...]
    key_times: tuple[float, ...]
    last_duration_seconds: float
    runs_on: bool = True

    @property
    def end_seconds(self) -> float:
        """The time when the last frame ends; 0 without frames."""
        return self.times[-1] + self.last_duration_seconds if self.times else 0.0


def read_frame_times(
    path: str, number: int | None, clock: Clock, *, from_last_key: bool = False
) -> FrameTimes | None:
    """Read the times that the packets state; decode nothing.

    Args:
        path: The file.
        number: Its video stream, from 0; None chooses one.
        clock: The stream's.
        from_last_key: Whether the frames from the last key frame on suffice.

    Returns:
        The times; None where packets have none (AVI, raw streams), or others than decoding gives.

    Raises:
        ReadError: The file cannot be opened.
        DecodeError: It is no video.
    """
    found: dict[int, bool] = {}
    last, duration = -math.inf, 0.0
    first_key: int | None = None
    with Demuxer(path, number) as demuxer:
        if not demuxer.stream.time_base or (from_last_key and not _seek_end(demuxer, clock)):
            return None
        for packet in demuxer.packets():
            if packet.is_keyframe and first_key is None:
                first_key = packet.pts
            if not demuxer.is_frame(packet):
                continue
            if packet.pts is None or packet.pts in found or demuxer.jumps.steps_back:
                return None
            if first_key is None or packet.pts < first_key:
                # Frames before the first key frame may be decodable or not.
                if from_last_key:
                    continue
                return None
            found[packet.pts] = packet.is_keyframe
            if packet.pts > last:
                last, duration = packet.pts, clock.end(packet) - clock.seconds(packet.pts)
    times = [(clock.seconds(pts), found[pts]) for pts in sorted(found)]
    return FrameTimes(
        tuple(time for time, _ in times),
        tuple(time for time, is_key in times if is_key),
        duration,
        runs_on=not demuxer.jumps.num_restarts,
    )


def _seek_end(demuxer: Demuxer, clock: Clock) -> bool:
    """Go to the last key frame; return whether the container can."""
    stated = demuxer.container.duration
    if not stated:
        return False
    try:
        demuxer.container.seek(clock.pts(stated / MICROSECONDS), stream=demuxer.stream)
    except (OSError, ValueError):
        return False
    return True
