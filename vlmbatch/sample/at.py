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
    _ends_said: set[str] = dataclasses.field(default_factory=set, repr=False, compare=False)

    def frames(self, video: Video[F], start_seconds: float, end_seconds: float) -> Iterator[F]:
        """Yield the frames; a time past the end gives none."""
        return on_screen(video, listed(self.clip_instants(video, start_seconds, end_seconds)))

    def clip_instants(
        self, video: Video[Any], start_seconds: float, end_seconds: float
    ) -> Sequence[float]:
        """Return the times in [start, end)."""
        late = [time for time in self.times_seconds if time >= video.end_seconds]
        end = f"{video.end_seconds:.3f}"
        if late and end not in self._ends_said:  # a video is planned, and then decoded
            self._ends_said.add(end)
            times = ", ".join(f"{time:g}" for time in late)
            logger.warning("no frame at %s s: the video ends at %s s", times, end)
        return self.window_instants(video, start_seconds, end_seconds)

    def window_instants(
        self, video: Video[Any], start_seconds: float, end_seconds: float
    ) -> Sequence[float]:
        """Return the times in [start, end)."""
        return sorted(
            time for time in set(self.times_seconds) if start_seconds <= time < end_seconds
        )
