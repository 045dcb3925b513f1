"""``--keyframes``: the frames where decoding can start, which encoders like to put at cuts."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterator, Sequence
from typing import Any

from vlmbatch.sample.base import TOLERANCE_SECONDS, F, Video
from vlmbatch.sample.thinning import for_one_prompt, inside


@dataclasses.dataclass(frozen=True, slots=True)
class Keyframes:
    """Key frames, as the container marks them."""

    def frames(self, video: Video[F], start_seconds: float, end_seconds: float) -> Iterator[F]:
        """Yield the key frames whose time is in [start, end)."""
        return itertools.takewhile(
            lambda frame: frame.time_seconds < end_seconds - TOLERANCE_SECONDS,
            video.key_frames(start_seconds),
        )

    def clip_instants(
        self, video: Video[Any], start_seconds: float, end_seconds: float
    ) -> Sequence[float]:
        """Return their times, evenly thinned to ``MAX_CLIP_FRAMES``."""
        times = inside(video.key_times(), start_seconds, end_seconds)
        return for_one_prompt(times, "key frames", start_seconds, end_seconds)

    window_instants = clip_instants
