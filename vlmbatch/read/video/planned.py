"""A video seen through its packets' times alone: what would be chosen is known without decoding,
and a frame is decoded when its pixels are asked for.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator
from typing import Any

from vlmbatch.core import Pixels
from vlmbatch.errors import DecodeError
from vlmbatch.read.video.clock import PacketTimes
from vlmbatch.read.video.container import SAME_SECONDS
from vlmbatch.read.video.file import NextInstant, VideoFile


@dataclasses.dataclass(frozen=True, slots=True)
class PlannedFrame:
    """A frame by its time.

    Attributes:
        time_seconds: Presentation time.
        duration_seconds: How long it stands when nothing follows.
        stretch_seconds: Start and end of the stretch that it stands for; None for a frame that
            stands until the next one.
    """

    time_seconds: float
    duration_seconds: float
    stretch_seconds: tuple[float, float] | None = None


class PlannedVideo:
    """Frames as ``VideoFile`` gives them, without decoding."""

    def __init__(self, packet_times: PacketTimes, end_seconds: float) -> None:
        """Takes what a ``VideoFile`` says about itself."""
        self.packet_times = packet_times
        self.end_seconds = end_seconds

    def frames(self, next_instant: NextInstant | None = None) -> Iterator[PlannedFrame]:
        """Yields every frame, in order of time."""
        return self._planned(self.packet_times.times)

    def key_frames(self, start_seconds: float = 0.0) -> Iterator[PlannedFrame]:
        """Yields the key frames from a time on."""
        return self._planned(
            tuple(
                time for time in self.packet_times.key_times if time >= start_seconds - SAME_SECONDS
            )
        )

    def frame_times(self) -> tuple[float, ...]:
        """Times of all frames, ascending, in seconds."""
        return self.packet_times.times

    def key_times(self) -> tuple[float, ...]:
        """Times of the key frames, ascending, in seconds."""
        return self.packet_times.key_times

    def _planned(self, times: tuple[float, ...]) -> Iterator[PlannedFrame]:
        for time in times:
            yield PlannedFrame(time, self.packet_times.last_duration_seconds)


def planned_frame(frame: Any) -> PlannedFrame:
    """A frame that is decoded once more when its pixels are asked for, instead of one that holds
    them.
    """
    return PlannedFrame(frame.time_seconds, frame.duration_seconds, frame.stretch_seconds)


def load_frame(path: str, max_pixels: int, seconds: float) -> Pixels:
    """Decodes the frame that is shown from a time on.

    Args:
        path: The file.
        max_pixels: Frames with more pixels are refused before they are decoded.
        seconds: The time.

    Returns:
        The upright picture, uint8, (H, W, 3).

    Raises:
        ReadError: The file cannot be opened.
        DecodeError: The frame cannot be decoded.
    """
    with VideoFile(path, max_pixels) as video:
        # Damage makes frames that are there only when everything before them is decoded.
        for instants in (lambda after: seconds if after <= seconds + SAME_SECONDS else None), None:
            for frame in video.frames(instants):
                if math.isclose(frame.time_seconds, seconds, rel_tol=0, abs_tol=SAME_SECONDS):
                    return Pixels((frame.rgb(),))
    raise DecodeError(f"the frame at {seconds:.3f} s cannot be decoded")
