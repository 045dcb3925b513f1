"""``--keyframes``: the frames where decoding can start, which encoders like to put at cuts."""

from __future__ import annotations

import dataclasses
import itertools
import logging
from collections.abc import Iterator, Sequence
from typing import Any

from vlmbatch.sample.base import MAX_CLIP_FRAMES, TOLERANCE_SECONDS, F, Video
from vlmbatch.sample.screen import evenly, stretch

logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True, slots=True)
class Keyframes:
    """Key frames, as the container marks them."""

    def frames(self, video: Video[F], start_seconds: float, end_seconds: float) -> Iterator[F]:
        """Yields the key frames whose time is in [start, end)."""
        return itertools.takewhile(
            lambda frame: frame.time_seconds < end_seconds - TOLERANCE_SECONDS,
            video.key_frames(start_seconds),
        )

    def clip_instants(
        self, video: Video[Any], start_seconds: float, end_seconds: float
    ) -> Sequence[float]:
        """Their times, evenly thinned to ``MAX_CLIP_FRAMES``."""
        times = stretch(video.key_times(), start_seconds, end_seconds)
        if len(times) > MAX_CLIP_FRAMES:
            logger.warning(
                "%d of the %d key frames from %.3f s to %.3f s go into one prompt",
                MAX_CLIP_FRAMES,
                len(times),
                start_seconds,
                end_seconds,
            )
        return evenly(times, MAX_CLIP_FRAMES)

    window_instants = clip_instants
