"""``--num-frames N``: at most N frames, evenly spread by their number."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any

from vlmbatch.sample.base import F, Video
from vlmbatch.sample.on_screen import listed, on_screen
from vlmbatch.sample.thinning import evenly, inside


@dataclasses.dataclass(frozen=True, slots=True)
class NumFrames:
    """Frames by number, spread with ``linspace`` as the checkpoint spreads its own.

    Attributes:
        num_frames: The most frames, at least 1; in each window for ``--per window``.
    """

    num_frames: int

    def frames(self, video: Video[F], start_seconds: float, end_seconds: float) -> Iterator[F]:
        """Yield the frames. Their times are read from the packets first; between them the video
        may be skipped.
        """
        return on_screen(video, listed(self.clip_instants(video, start_seconds, end_seconds)))

    def clip_instants(
        self, video: Video[Any], start_seconds: float, end_seconds: float
    ) -> Sequence[float]:
        """Return the times of the frames."""
        return evenly(inside(video.frame_times(), start_seconds, end_seconds), self.num_frames)

    window_instants = clip_instants
