"""The frame on screen at an instant: the last one whose time is not later. The first frame also
stands for what comes before it.
"""

from __future__ import annotations

import bisect
import math
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from vlmbatch.sample.base import TOLERANCE_SECONDS, F, NextInstant, Video


def on_screen(video: Video[F], next_instant: NextInstant) -> Iterator[F]:
    """Yields the frames on screen at instants, each once. An instant at or after the video's end
    shows nothing.

    Args:
        video: The video.
        next_instant: The instants.
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
        if due < end - TOLERANCE_SECONDS:
            yield previous


def listed(instants: Sequence[float]) -> NextInstant:
    """The instants of a list in ascending order."""

    def next_instant(seconds: float) -> float | None:
        place = bisect.bisect_left(instants, seconds)
        return instants[place] if place < len(instants) else None

    return next_instant


def inside(video: Video[Any], start_seconds: float, end_seconds: float) -> Sequence[float]:
    """Times of the frames in [start, end)."""
    return stretch(video.frame_times(), start_seconds, end_seconds)


def stretch(times: Sequence[float], start_seconds: float, end_seconds: float) -> Sequence[float]:
    """Those of ascending times that are in [start, end)."""
    return times[
        bisect.bisect_left(times, start_seconds - TOLERANCE_SECONDS) : bisect.bisect_left(
            times, end_seconds - TOLERANCE_SECONDS
        )
    ]


def evenly(times: Sequence[float], count: int) -> list[float]:
    """At most ``count`` of the times, evenly spread by number, the first and (from two on) the last
    among them.
    """
    if not times or count < 1:
        return []
    return [
        times[number]
        for number in np.unique(np.linspace(0, len(times) - 1, min(count, len(times)), dtype=int))
    ]
