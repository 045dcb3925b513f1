"""Time stamps of a video's stream as the seconds that a player shows, and what the packets alone
say about the frames.
"""

from __future__ import annotations

import dataclasses
import math
from fractions import Fraction
from typing import TYPE_CHECKING

from vlmbatch.read.video.container import is_shown, open_container, origin_seconds, packets

if TYPE_CHECKING:
    from av.container import InputContainer
    from av.video.stream import VideoStream

_FALLBACK_FPS = 25


class Clock:
    """The times of a stream.

    Attributes:
        step: Seconds from one frame to the next, at the stated frame rate.
        origin: Seconds from which a player counts.
    """

    def __init__(self, container: InputContainer, stream: VideoStream) -> None:
        """Reads what container and stream state."""
        self.step = 1 / Fraction(stream.average_rate or stream.guessed_rate or _FALLBACK_FPS)
        self._base = stream.time_base or Fraction(1)
        self.origin = origin_seconds(container, stream)
        # Seconds of a time stamp as one division of whole numbers, rounded as `float` rounds the
        # fraction: it is done several times a packet.
        self._scale, self._shift = (
            self._base.numerator * self.origin.denominator,
            self.origin.numerator * self._base.denominator,
        )
        self._whole = self._base.denominator * self.origin.denominator

    def time(self, pts: int) -> Fraction:
        """The time of a stamp, in seconds."""
        return pts * self._base - self.origin

    def seconds(self, pts: int) -> float:
        """``float(time(pts))``."""
        return (pts * self._scale - self._shift) / self._whole

    def pts(self, seconds: float) -> int:
        """The time stamp of a time, rounded towards 0."""
        return int((Fraction(seconds) + self.origin) / self._base)


@dataclasses.dataclass(frozen=True, slots=True)
class PacketTimes:
    """What the packets say about the frames.

    Attributes:
        times: Times of the frames, ascending, in seconds.
        key_times: Times of those where decoding can start.
        last_duration_seconds: How long the last one stands.
    """

    times: tuple[float, ...]
    key_times: tuple[float, ...]
    last_duration_seconds: float


def read_packet_times(path: str, clock: Clock) -> PacketTimes | None:
    """Times as the packets state them; None where they do not (AVI, raw streams), or where that is
    not what decoding gives. Decodes nothing.

    Args:
        path: The file.
        clock: Its stream's.

    Raises:
        ReadError: The file cannot be opened.
        DecodeError: It is no video.
    """
    container, stream = open_container(path)
    found: dict[int, bool] = {}
    last = (-math.inf, 0)
    with container:
        if not stream.time_base:
            return None
        for packet in packets(container, stream):
            if not packet.size or not is_shown(packet, stream.codec_context.name):
                continue
            if packet.pts is None or packet.pts in found:
                return None
            found[packet.pts] = packet.is_keyframe
            last = max(last, (packet.pts, packet.duration or 0))
        duration = last[1] * stream.time_base
    times = [(clock.seconds(pts), found[pts]) for pts in sorted(found)]
    return PacketTimes(
        tuple(time for time, _ in times),
        tuple(time for time, is_key in times if is_key),
        float(duration or clock.step),
    )
