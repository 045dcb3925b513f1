"""``--at T,T,…``: the frames on screen at given times."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Iterator, Sequence
from typing import Any

from vlmbatch.sample.base import F, Video
from vlmbatch.sample.on_screen import listed, on_screen

logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True, slots=True)
class At:
    """Given times, whatever their order; two that show the same frame give it once.

    Attributes:
        times_seconds: The times, at least 0.
    """

    times_seconds: tuple[float, ...]

    def frames(self, video: Video[F], start_seconds: float, end_seconds: float) -> Iterator[F]:
        """Yield the frames; a time past the end gives none."""
        return on_screen(video, listed(self.clip_instants(video, start_seconds, end_seconds)))

    def clip_instants(
        self, video: Video[Any], start_seconds: float, end_seconds: float
    ) -> Sequence[float]:
        """Return the times in [start, end)."""
        late = [time for time in self.times_seconds if time >= video.end_seconds]
        if late:
            logger.warning(
                "no frame at %s s: the video ends at %.3f s",
                ", ".join(f"{time:g}" for time in late),
                video.end_seconds,
            )
        return self.window_instants(video, start_seconds, end_seconds)

    def window_instants(
        self, video: Video[Any], start_seconds: float, end_seconds: float
    ) -> Sequence[float]:
        """Return the times in [start, end)."""
        return sorted(
            time for time in set(self.times_seconds) if start_seconds <= time < end_seconds
        )
