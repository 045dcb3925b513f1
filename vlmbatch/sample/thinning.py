"""Ascending times, cut to a stretch and thinned to what one prompt takes."""

from __future__ import annotations

import bisect
import logging
from collections.abc import Sequence

import numpy as np

from vlmbatch.sample.base import MAX_CLIP_FRAMES, TOLERANCE_SECONDS

logger = logging.getLogger(__name__)


def inside(times: Sequence[float], start_seconds: float, end_seconds: float) -> Sequence[float]:
    """Return the times in [start, end)."""
    first = bisect.bisect_left(times, start_seconds - TOLERANCE_SECONDS)
    return times[first : bisect.bisect_left(times, end_seconds - TOLERANCE_SECONDS)]


def evenly(times: Sequence[float], count: int) -> list[float]:
    """Return at most ``count`` of the times, evenly spread by number, the first and (from two on)
    the last among them.
    """
    if not times or count < 1:
        return []
    numbers = np.linspace(0, len(times) - 1, min(count, len(times)), dtype=int)
    return [times[number] for number in np.unique(numbers)]


def for_one_prompt(
    times: Sequence[float], what: str, start_seconds: float, end_seconds: float
) -> list[float]:
    """Return the times, evenly thinned to ``MAX_CLIP_FRAMES``, with a warning when there are more.

    Args:
        times: Times of frames in a stretch.
        what: A word for them.
        start_seconds: Start of the stretch.
        end_seconds: Its end.
    """
    say_thinned(len(times), what, start_seconds, end_seconds)
    return evenly(times, MAX_CLIP_FRAMES)


def say_thinned(count: int, what: str, start_seconds: float, end_seconds: float) -> None:
    """Warn when there are more frames than one prompt takes. See ``for_one_prompt``."""
    if count > MAX_CLIP_FRAMES:
        logger.warning(
            "%d of the %d %s from %.3f s to %.3f s go into one prompt: more do not fit; --per "
            "window asks about shorter stretches",
            MAX_CLIP_FRAMES,
            count,
            what,
            start_seconds,
            end_seconds,
        )
