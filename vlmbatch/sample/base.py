"""The contract of samplers: the frames and videos that they see, and what they give. These types
are structural, so that no sampler knows a reader.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol, Self, TypeVar

from vlmbatch.core import UInt8Array

TOLERANCE_SECONDS = 1e-6
"""Two times closer than this are the same: containers count in microseconds, and 1/fps is rarely a
binary fraction.
"""

MAX_CLIP_FRAMES = 64
"""The most frames that go into one prompt unless more are asked for (``video_sampling.max_frames``
of the SmolVLM2 checkpoints).
"""


class Frame(Protocol):
    """A frame, as far as choosing goes."""

    @property
    def time_seconds(self) -> float:
        """Presentation time, as a player shows it."""
        ...

    @property
    def duration_seconds(self) -> float:
        """Duration when nothing follows."""
        ...

    @property
    def stored_size(self) -> tuple[int, int]:
        """Width and height in pixels, before it is turned upright."""
        ...

    def standing_for(self, start_seconds: float, end_seconds: float) -> Self:
        """Return the same frame, standing for a stretch instead of until the next one."""
        ...

    def thumbnail(self, width: int, height: int, form: str = "rgb24") -> UInt8Array:
        """Return a small picture in one of FFmpeg's pixel formats, each pixel the mean of those it
        stands for.
        """
        ...


NextInstant = Callable[[float], float | None]
"""Returns the first instant that is asked for, not before a time; None when there is none."""

F = TypeVar("F", bound=Frame)
F_co = TypeVar("F_co", bound=Frame, covariant=True)


class Video(Protocol[F_co]):
    """An open video, as far as choosing goes."""

    @property
    def end_seconds(self) -> float:
        """The end of its last frame."""
        ...

    @property
    def step_seconds(self) -> float:
        """Duration of a frame, at the stated frame rate."""
        ...

    def frames(self, next_instant: NextInstant | None = None) -> Iterator[F_co]:
        """Yield frames in presentation order, times strictly rising.

        Frames that are on screen at no instant that is asked for may be left out, but for the one
        after the last instant; None asks for every frame.
        """
        ...

    def key_frames(self, start_seconds: float = 0.0) -> Iterator[F_co]:
        """Yield the frames from a time on where decoding can start, and decode no others."""
        ...

    def frame_times(self) -> Sequence[float]:
        """Return the times of all frames, ascending, in seconds; decode nothing where the packets
        state them.
        """
        ...

    def key_times(self) -> Sequence[float]:
        """Return the times of the key frames, as ``frame_times``."""
        ...

    @property
    def packet_times(self) -> object | None:
        """None where ``frame_times`` takes decoding everything."""
        ...


@dataclasses.dataclass(frozen=True, slots=True)
class Stretch:
    """A stretch of a video and the choice of frames in it.

    Attributes:
        start_seconds: Start of the stretch.
        end_seconds: Its end.
        choose: Yields the chosen frames of a video in presentation order, decoding no more than it
            must. It holds no video: it is given another opening of the same file, on another
            thread.
    """

    start_seconds: float
    end_seconds: float
    choose: Callable[[Video[Any]], Iterator[Any]]


class Way(Protocol):
    """A way of choosing frames, such as ``--fps``. Times chosen are within [start_seconds,
    end_seconds).
    """

    def frames(self, video: Video[F], start_seconds: float, end_seconds: float) -> Iterator[F]:
        """Yield frames one by one, holding at most two: the video may be of any length."""
        ...

    def clip_instants(
        self, video: Video[Any], start_seconds: float, end_seconds: float
    ) -> Sequence[float]:
        """Return the instants whose frames go into one prompt about a whole video, ascending."""
        ...

    def window_instants(
        self, video: Video[Any], start_seconds: float, end_seconds: float
    ) -> Sequence[float]:
        """Return the instants whose frames go into one prompt about a window, ascending."""
        ...
