"""``--per frame|clip|window``: the stretches of a video that the chosen frames are taken from."""

from __future__ import annotations

import dataclasses
import functools
import itertools
import math
from collections.abc import Iterator
from typing import Any

from vlmbatch.job import Per
from vlmbatch.job.video import DEFAULT_WINDOW_SECONDS
from vlmbatch.sample.base import TOLERANCE_SECONDS, Stretch, Video, Way
from vlmbatch.sample.on_screen import listed, on_screen, rounding_seconds
from vlmbatch.sample.similar import SimilarFrames

SHORTEST_SECONDS = 1.0
"""A last window that would be shorter than this, and than half a window, is part of the one before.
"""


@dataclasses.dataclass(frozen=True, slots=True)
class StretchSampler:
    """A way of choosing frames, applied to a whole video or to each of its windows.

    Attributes:
        way: How frames are chosen.
        per: What becomes a record.
        start_seconds: Where to begin.
        end_seconds: Where to stop; infinity for the video's end.
        window_seconds: Length of a window.
        skip_similar: The largest difference of two frames that count as similar; None when every
            frame counts.
        needs_pixels: Whether the choice takes more than the times of the frames.
    """

    way: Way
    per: Per = "frame"
    start_seconds: float = 0.0
    end_seconds: float = math.inf
    window_seconds: float = DEFAULT_WINDOW_SECONDS
    skip_similar: float | None = None
    needs_pixels: bool = False

    def judge(self) -> SimilarFrames | None:
        """Return a judge of the chosen frames of one video; None when every frame counts."""
        return None if self.skip_similar is None else SimilarFrames(self.skip_similar)

    def __call__(self, video: Video[Any]) -> Iterator[Stretch]:
        """Yield the stretches in order of time."""
        start, stop = self.start_seconds, min(self.end_seconds, video.end_seconds)
        if self.per == "frame":
            # Not cut at the video's end: frames behind a wrong one are shown.
            yield Stretch(
                start, stop, lambda video: self.way.frames(video, start, self.end_seconds)
            )
        elif self.per == "clip":
            if start < stop - TOLERANCE_SECONDS:
                yield Stretch(
                    start,
                    stop,
                    lambda video: on_screen(
                        video, listed(self.way.clip_instants(video, start, stop))
                    ),
                )
        else:
            yield from self._windows(video, start, stop)

    def _windows(self, video: Video[Any], start: float, stop: float) -> Iterator[Stretch]:
        end = min(stop, video.end_seconds - rounding_seconds(video.step_seconds))
        for number in itertools.count():
            first = start + number * self.window_seconds
            if first >= end - TOLERANCE_SECONDS:
                return
            last = min(first + self.window_seconds, stop)
            is_last = stop - last < min(SHORTEST_SECONDS, self.window_seconds / 2)
            last = stop if is_last else last
            # Instants are settled here, not in the stretch: for some ways they take a pass over the
            # packets, which is made once a video.
            next_instant = listed(self.way.window_instants(video, first, last))
            if next_instant(-math.inf) is not None:
                yield Stretch(first, last, functools.partial(on_screen, next_instant=next_instant))
            if is_last:
                return
