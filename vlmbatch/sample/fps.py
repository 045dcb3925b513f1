"""``--fps F``: the frames on screen at 0, 1/F, 2/F … seconds."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from vlmbatch.sample.base import MAX_CLIP_FRAMES, TOLERANCE_SECONDS, F, Video
from vlmbatch.sample.on_screen import on_screen, rounding_seconds
from vlmbatch.sample.thinning import inside, say_thinned

SKIP_SECONDS = 1
"""Seconds that a clip leaves out at each end of a long video (``skip_secs`` of transformers'
``SmolVLMVideoProcessor.sample_frames``).
"""


@dataclasses.dataclass(frozen=True, slots=True)
class Fps:
    """A number of instants a second, from the start on. A clip follows the checkpoint's own rule
    with this rate.

    Attributes:
        fps: Instants a second, above 0.
    """

    fps: float

    def frames(self, video: Video[F], start_seconds: float, end_seconds: float) -> Iterator[F]:
        """Yield the frames on screen at start, start + 1/F …"""

        def next_instant(seconds: float) -> float | None:
            number = (
                max(0, math.ceil((seconds - start_seconds) * self.fps))
                if seconds > start_seconds
                else 0
            )
            instant = start_seconds + number / self.fps
            return instant if instant < end_seconds - TOLERANCE_SECONDS else None

        return on_screen(video, next_instant, rounds=True)

    def clip_instants(
        self, video: Video[Any], start_seconds: float, end_seconds: float
    ) -> Sequence[float]:
        """Follow the checkpoint's rule; see ``clip_indices``."""
        times = inside(video.frame_times(), start_seconds, end_seconds)
        wanted = min(len(times), round(self.fps * (end_seconds - start_seconds)))
        say_thinned(wanted, "frames", start_seconds, end_seconds)
        return [
            times[number]
            for number in clip_indices(len(times), end_seconds - start_seconds, self.fps)
        ]

    def window_instants(
        self, video: Video[Any], start_seconds: float, end_seconds: float
    ) -> Sequence[float]:
        """Return start, start + 1/F …, evenly thinned to ``MAX_CLIP_FRAMES``."""
        last = video.end_seconds - rounding_seconds(video.step_seconds)
        end = min(end_seconds - TOLERANCE_SECONDS, last)
        count = max(1, math.ceil((end - start_seconds) * self.fps))
        numbers = np.unique(np.linspace(0, count - 1, min(count, MAX_CLIP_FRAMES), dtype=int))
        return [start_seconds + int(number) / self.fps for number in numbers]


def clip_indices(total: int, duration_seconds: float, fps: float) -> list[int]:
    """Return the numbers of the frames that the checkpoint takes of a video, as
    ``SmolVLMVideoProcessor.sample_frames`` of transformers does.

    Args:
        total: Frames in the video.
        duration_seconds: Length of the video.
        fps: Frames a second to take, at most ``MAX_CLIP_FRAMES`` in all.

    Returns:
        Ascending numbers without repetition; none for a video without frames.
    """
    if total == 0 or duration_seconds <= 0:
        return list(range(min(total, 1)))
    wanted = max(1, min(round(fps * duration_seconds), MAX_CLIP_FRAMES))
    first, last = 0, total - 1
    if duration_seconds - 2 * SKIP_SECONDS > MAX_CLIP_FRAMES * fps:
        native_fps = total / duration_seconds
        first, last = (
            int(SKIP_SECONDS * native_fps),
            min(int(total - SKIP_SECONDS * native_fps), total - 1),
        )
        if first >= last:
            first, last = 0, total - 1
    return [int(number) for number in np.unique(np.linspace(first, last, wanted, dtype=int))]
