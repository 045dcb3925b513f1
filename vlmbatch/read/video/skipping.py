"""Packets that need no decoding for the frames that are asked for, so that these are exactly what
decoding everything gives.

Packets come in decoding order. ``mark`` decides for each whether its frame is wanted, which takes
the time of the next frame: a few packets ahead. ``leave_out`` holds packets back until one that may
need them is wanted, and drops those before a key frame that decoding can start from. ``Sieve``
checks that the expected frames come out of the decoder. Anything unexpected raises ``Unsure``: then
everything is decoded.
"""

from __future__ import annotations

import bisect
import collections
import dataclasses
from collections.abc import Callable, Iterable, Iterator
from typing import Any

LOOKAHEAD = 33
"""Frames that come before another in decoding and after it in presentation: at most 16 (H.264 and
HEVC, max_num_reorder), or their fields, and one more.
"""

MAX_HELD_BYTES = 64 << 20
"""Packets held back beyond this are decoded after all."""


class Unsure(Exception):
    """The packets, or the frames decoded from them, do not tell which may be left out."""


@dataclasses.dataclass(slots=True, eq=False)
class MarkedPacket:
    """A packet, and the decision about it.

    Attributes:
        packet: The packet.
        pts: Its presentation time, in units of the stream.
        is_key: Whether decoding can start here.
        is_shown: Whether it gives a frame that is shown.
        is_sure: Whether that frame can be decoded: it is not before the first key frame.
        wanted: Whether the frame is asked for.
        is_led_to: For a key frame: whether a frame is wanted that is shown before it and decoded
            after it, and so may refer to frames before it.
        fresh: Whether decoding starts anew here, with the packets before it left out.
        key: The last key frame before it in decoding order.
        settled: Whether ``wanted`` is decided.
    """

    packet: Any
    pts: int
    is_key: bool
    is_shown: bool
    is_sure: bool = True
    wanted: bool = False
    is_led_to: bool = False
    fresh: bool = False
    key: MarkedPacket | None = dataclasses.field(default=None, repr=False)
    settled: bool = False


IsWanted = Callable[[MarkedPacket, int | None, bool], bool]
"""Takes a frame's packet, the time of the next frame (None after the last), and whether the frame
stands for what comes before it too. Returns whether it is asked for.
"""


def mark(
    steps: Iterable[MarkedPacket], wanted: IsWanted, *, from_start: bool
) -> Iterator[MarkedPacket]:
    """Yield the steps in their order, each once it is decided whether its frame is wanted.

    Args:
        steps: Packets in decoding order.
        wanted: Decides whether a frame is asked for. Called once a frame, in presentation order.
        from_start: Whether this is where the video begins. What comes before its first key frame
            may be decodable or not, and is tried; elsewhere it is not.

    Raises:
        Unsure: Two frames have the same time, or frames are reordered further than codecs do.
    """
    window: collections.deque[MarkedPacket] = collections.deque()
    ahead: list[int] = []
    by_pts: dict[int, MarkedPacket] = {}
    key: MarkedPacket | None = None
    key_pts: int | None = None
    next_pts: int | None = None

    def settle() -> None:
        nonlocal next_pts
        step = by_pts.pop(ahead.pop(0))
        next_pts = ahead[0] if ahead else None
        is_first = from_start and (key_pts is None or step.pts <= key_pts)
        asked = wanted(step, next_pts, is_first)
        step.wanted = asked if step.is_sure else from_start
        step.settled = True
        if step.wanted and step.key is not None and step.pts < step.key.pts:
            step.key.is_led_to = True
        step.key = None

    for step in steps:
        window.append(step)
        step.key = key
        if step.is_shown:
            if key_pts is None and step.is_key:
                key_pts = step.pts
                step.fresh = not from_start
            step.is_sure = key_pts is not None and step.pts >= key_pts
            if step.pts in by_pts or (next_pts is not None and step.pts <= next_pts):
                raise Unsure("the packets' times repeat or run backwards")
            bisect.insort(ahead, step.pts)
            by_pts[step.pts] = step
            key = step if step.is_key else key
        else:
            step.settled = True
        if len(ahead) > LOOKAHEAD:
            settle()
        while window and window[0].settled:
            yield window.popleft()
    while ahead:
        settle()
    yield from window


def leave_out(steps: Iterable[MarkedPacket]) -> Iterator[MarkedPacket]:
    """Yield the steps that must be decoded for those that are wanted, and a few more.

    Args:
        steps: Packets in decoding order, marked.
    """
    held: list[MarkedPacket] = []
    num_bytes = 0
    for step in steps:
        if step.is_key and step.is_shown and held and not step.is_led_to:
            step.fresh = True
            held, num_bytes = [], 0
        held.append(step)
        num_bytes += int(step.packet.size)
        if step.wanted or num_bytes > MAX_HELD_BYTES:
            yield from held
            held, num_bytes = [], 0


class Sieve:
    """Keeps the wanted frames that come out of the decoder, and checks that none is missing."""

    def __init__(self) -> None:
        self._expected: list[int] = []
        self._steps: dict[int, MarkedPacket] = {}
        self._last: int | None = None

    def expect(self, step: MarkedPacket) -> None:
        """Take note of a packet that goes into the decoder."""
        if step.is_shown and (step.wanted or step.fresh):
            self._steps[step.pts] = step
            if step.is_sure:
                bisect.insort(self._expected, step.pts)

    def keeps(self, pts: int | None, *, is_key: bool, is_corrupt: bool) -> bool:
        """Return whether a frame that came out is wanted.

        Raises:
            Unsure: One that should have come before it did not, or it is not what its packet
                promised.
        """
        if pts is None or (self._last is not None and pts <= self._last):
            raise Unsure("a frame has no time, or one that runs backwards")
        self._last = pts
        if self._expected and self._expected[0] < pts:
            raise Unsure("a frame did not come out of the decoder")
        step = self._steps.pop(pts, None)
        if step is None:
            return False
        if self._expected and self._expected[0] == pts:
            del self._expected[0]
        if is_corrupt or (step.fresh and not is_key):
            raise Unsure("decoding cannot start where the container says that it can")
        return step.wanted

    def end(self) -> None:
        """Check that nothing is missing once the decoder is empty.

        Raises:
            Unsure: A frame is missing.
        """
        if self._expected:
            raise Unsure("a frame did not come out of the decoder")
        self._steps.clear()
