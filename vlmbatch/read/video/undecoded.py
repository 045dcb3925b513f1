"""Frames by their times alone: the choice of frames is known without decoding a video."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence

from vlmbatch.read.video.clock import Extent, FrameTimes
from vlmbatch.read.video.container import SAME_SECONDS
from vlmbatch.read.video.file import NextInstant


@dataclasses.dataclass(frozen=True, slots=True)
class UndecodedFrame:
    """A frame by its time.

    Attributes:
        time_seconds: Presentation time.
        duration_seconds: Duration when nothing follows.
        stretch_seconds: Start and end of the stretch that it stands for; None for a frame that
            stands until the next one.
    """

    time_seconds: float
    duration_seconds: float
    stretch_seconds: tuple[float, float] | None = None


class UndecodedVideo:
    """Give frames as ``VideoFile`` does, without decoding."""

    def __init__(self, packet_times: FrameTimes, extent: Extent, step_seconds: float) -> None:
        """Take the statements of a ``VideoFile``."""
        self.packet_times = packet_times
        self.extent = extent
        self.end_seconds = extent.end_seconds
        self.step_seconds = step_seconds

    def frames(self, next_instant: NextInstant | None = None) -> Iterator[UndecodedFrame]:
        """Yield every frame, in order of time."""
        return self._frames(self.packet_times.times)

    def key_frames(self, start_seconds: float = 0.0) -> Iterator[UndecodedFrame]:
        """Yield the key frames from a time on."""
        times = self.packet_times.key_times
        return self._frames([time for time in times if time >= start_seconds - SAME_SECONDS])

    def frame_times(self) -> Sequence[float]:
        """Return the times of all frames, ascending, in seconds."""
        return self.packet_times.times

    def key_times(self) -> Sequence[float]:
        """Return the times of the key frames, ascending, in seconds."""
        return self.packet_times.key_times

    def _frames(self, times: Sequence[float]) -> Iterator[UndecodedFrame]:
        for time in times:
            yield UndecodedFrame(time, self.packet_times.last_duration_seconds)
