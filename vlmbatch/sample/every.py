"""``--every N``: frames 0, N, 2N …, counted from the first frame asked for."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterator, Sequence
from typing import Any

from vlmbatch.sample.base import TOLERANCE_SECONDS, F, Video
from vlmbatch.sample.on_screen import listed, on_screen
from vlmbatch.sample.thinning import for_one_prompt, inside


@dataclasses.dataclass(frozen=True, slots=True)
class Every:
    """Every N-th frame.

    Attributes:
        step: N, at least 1.
    """

    step: int

    def frames(self, video: Video[F], start_seconds: float, end_seconds: float) -> Iterator[F]:
        """Yield frames 0, N, 2N … of those whose time is in [start, end)."""
        if video.packet_times is not None:
            # Known times are instants, and what is between instants need not be decoded.
            return on_screen(video, listed(self._times(video, start_seconds, end_seconds)))
        later = itertools.dropwhile(
            lambda frame: frame.time_seconds < start_seconds - TOLERANCE_SECONDS, video.frames()
        )
        within = itertools.takewhile(
            lambda frame: frame.time_seconds < end_seconds - TOLERANCE_SECONDS, later
        )
        return itertools.islice(within, 0, None, self.step)

    def clip_instants(
        self, video: Video[Any], start_seconds: float, end_seconds: float
    ) -> Sequence[float]:
        """Return the times of frames 0, N, 2N …, evenly thinned to ``MAX_CLIP_FRAMES``."""
        times = self._times(video, start_seconds, end_seconds)
        return for_one_prompt(times, "frames", start_seconds, end_seconds)

    window_instants = clip_instants

    def _times(
        self, video: Video[Any], start_seconds: float, end_seconds: float
    ) -> Sequence[float]:
        return inside(video.frame_times(), start_seconds, end_seconds)[:: self.step]
