"""``--every N``: frames 0, N, 2N …, counted from the first frame asked for."""

from __future__ import annotations

import dataclasses
import itertools
import logging
from collections.abc import Iterator, Sequence
from typing import Any

from vlmbatch.sample.base import MAX_CLIP_FRAMES, TOLERANCE_SECONDS, F, Video
from vlmbatch.sample.screen import evenly, inside, listed, on_screen

logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True, slots=True)
class Every:
    """Every N-th frame.

    Attributes:
        step: N, at least 1.
    """

    step: int

    def frames(self, video: Video[F], start_seconds: float, end_seconds: float) -> Iterator[F]:
        """Yields frames 0, N, 2N … of those whose time is in [start, end)."""
        if video.packet_times is not None:
            # Known times are instants, and what is between instants need not be decoded.
            return on_screen(video, listed(inside(video, start_seconds, end_seconds)[:: self.step]))
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
        """Times of frames 0, N, 2N …, evenly thinned to ``MAX_CLIP_FRAMES``."""
        times = inside(video, start_seconds, end_seconds)[:: self.step]
        if len(times) > MAX_CLIP_FRAMES:
            logger.warning(
                "%d of the %d frames from %.3f s to %.3f s go into one prompt",
                MAX_CLIP_FRAMES,
                len(times),
                start_seconds,
                end_seconds,
            )
        return evenly(times, MAX_CLIP_FRAMES)

    window_instants = clip_instants
