"""The frame on screen at an instant: the last one whose time is not later. The first frame also
stands for what comes before it.
"""

from __future__ import annotations

import bisect
import math
from collections.abc import Iterator, Sequence

from vlmbatch.sample.base import TOLERANCE_SECONDS, F, NextInstant, Video

MAX_ROUNDING_SECONDS = 0.05
"""Containers and encoders round the end of a video up or down: an instant that lies within half a
frame of the end, at most this, is no instant.
"""


def on_screen(video: Video[F], next_instant: NextInstant, *, rounds: bool = False) -> Iterator[F]:
    """Yield the frames on screen at instants, each once. An instant at or after the video's end
    shows nothing.

    Args:
        video: The video.
        next_instant: The instants.
        rounds: Whether an instant within a rounding of the end is none.
    """
    due = next_instant(-math.inf)
    if due is None:
        return
    previous: F | None = None
    for frame in video.frames(next_instant):
        if previous is not None and due < frame.time_seconds - TOLERANCE_SECONDS:
            yield previous
            due = next_instant(frame.time_seconds - TOLERANCE_SECONDS)
            if due is None:
                return
        previous = frame
    if previous is not None:
        end = video.end_seconds
        if end <= previous.time_seconds:
            end = previous.time_seconds + previous.duration_seconds
        before = rounding_seconds(previous.duration_seconds) if rounds else TOLERANCE_SECONDS
        if due <= previous.time_seconds + TOLERANCE_SECONDS or due < end - before:
            yield previous


def rounding_seconds(frame_seconds: float) -> float:
    """Return the time before a video's end in which no instant lies.

    Args:
        frame_seconds: Duration of the last frame.
    """
    return max(TOLERANCE_SECONDS, min(frame_seconds / 2, MAX_ROUNDING_SECONDS))


def listed(instants: Sequence[float]) -> NextInstant:
    """Return the instants of a list in ascending order."""

    def next_instant(seconds: float) -> float | None:
        place = bisect.bisect_left(instants, seconds)
        return instants[place] if place < len(instants) else None

    return next_instant
