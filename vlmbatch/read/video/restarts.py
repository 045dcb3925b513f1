"""Times that start anew in the middle of a stream, continued: recordings joined end to end.

Recorders, cameras and IPTV boxes write MPEG-TS and MPEG-PS files whose times jump back where the
next recording begins; DVDs do so between cells. The first frame behind a jump back begins where the
last one before it ended. Jumps forward are gaps and stay.
"""

from __future__ import annotations

import collections
import dataclasses
import itertools
from collections.abc import Callable, Iterable, Iterator
from fractions import Fraction
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import av

_RESTART_SECONDS = Fraction(1, 10)
"""Smaller steps back are rounding (``ts_discontinuity_process`` of ffmpeg)."""

_LONG_SECONDS = 60
"""FFmpeg takes a jump back by more than this for an overflow of the 33-bit counter."""

_COUNTER = 1 << 33
_COUNTER_BASE = Fraction(1, 90_000)
"""Times of MPEG-TS and MPEG-PS: ISO/IEC 13818-1, 2.4.3.7."""

_REORDERED = 33
"""Packets among which the first frame on screen is searched: at most 16 reordered frames (H.264 and
HEVC), or their fields, and one.
"""


@dataclasses.dataclass(slots=True)
class Jumps:
    """Jumps of decoding times in the packets so far.

    Attributes:
        num_restarts: Jumps back that were continued.
        steps_back: Whether times went back by less, and were left as they are.
    """

    num_restarts: int = 0
    steps_back: bool = False


def continued(
    packets: Iterable[av.Packet[Any]],
    base: Fraction,
    step_seconds: Fraction,
    is_frame: Callable[[av.Packet[Any]], bool],
    jumps: Jumps,
) -> Iterator[av.Packet[Any]]:
    """Yield packets with times that run on.

    Args:
        packets: Packets of a stream in decoding order; their times are changed.
        base: The unit of their times, in seconds.
        step_seconds: Duration of a frame whose packet states none.
        is_frame: Whether a packet gives a frame that is shown.
        jumps: Takes note of jumps.
    """
    step, offset = round(step_seconds / base), 0
    last: int | None = None
    end = 0
    ahead: collections.deque[av.Packet[Any]] = collections.deque()
    source = iter(packets)
    while (packet := ahead.popleft() if ahead else next(source, None)) is not None:
        counts = is_frame(packet)
        if packet.dts is not None:
            if counts and last is not None and _starts_anew(last, packet.dts, base):
                jumps.num_restarts += 1
                ahead.extend(itertools.islice(source, _REORDERED - len(ahead)))
                offset = end - _first_pts(packet, filter(is_frame, ahead), base)
            elif counts and last is not None and packet.dts < last:
                jumps.steps_back = True
            last = packet.dts if counts else last
            packet.dts += offset
        if packet.pts is not None:
            packet.pts += offset
            if counts:
                end = max(end, packet.pts + (packet.duration or step))
        yield packet


def _starts_anew(last: int, dts: int, base: Fraction) -> bool:
    if dts < last - _RESTART_SECONDS / base:
        return True
    overflowed = base == _COUNTER_BASE and dts // _COUNTER > last // _COUNTER
    return overflowed and dts - last > _LONG_SECONDS / base


def _first_pts(packet: av.Packet[Any], ahead: Iterable[av.Packet[Any]], base: Fraction) -> int:
    """Return the earliest presentation time of the recording that begins with a packet."""
    last = packet.dts or 0
    first = last if packet.pts is None else packet.pts
    for other in ahead:
        if other.dts is None or other.pts is None or _starts_anew(last, other.dts, base):
            break
        first, last = min(first, other.pts), other.dts
    return first
