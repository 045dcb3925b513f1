"""What a sampler is. It sees frames by their times; what it is told about a video is structural, so that it knows no reader."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol, TypeVar

TOLERANCE_SECONDS = 1e-6
"""Two times closer than this are the same: containers count in microseconds, and 1/fps is rarely a binary fraction."""

MAX_CLIP_FRAMES = 64
"""The most frames that go into one prompt unless more are asked for (``video_sampling.max_frames`` of the SmolVLM2 checkpoints)."""


class Frame(Protocol):
    """A decoded frame, as far as choosing goes."""

    @property
    def time_seconds(self) -> float:
        """Presentation time, as a player shows it."""
        ...

    @property
    def duration_seconds(self) -> float:
        """How long it stands when nothing follows."""
        ...


F = TypeVar("F", bound=Frame)
F_co = TypeVar("F_co", bound=Frame, covariant=True)


class Video(Protocol[F_co]):
    """An open video, as far as choosing goes."""

    @property
    def end_seconds(self) -> float:
        """Where it ends."""
        ...

    def frames(self, start_seconds: float = 0.0) -> Iterator[F_co]:
        """Yields frames in presentation order, times strictly rising; the frame on screen at ``start_seconds`` and all later ones are among them."""
        ...

    def skip_to(self, seconds: float) -> None:
        """Says that ``frames`` may leave out what is over before this time."""
        ...

    def frame_times(self) -> Sequence[float]:
        """Times of all frames, ascending, in seconds: read from the packets, nothing is decoded."""
        ...


@dataclasses.dataclass(frozen=True, slots=True)
class Span:
    """A stretch of a video and the choice of frames in it.

    Attributes:
        start_seconds: Where it starts.
        end_seconds: Where it ends.
        choose: Yields the chosen frames of a video in presentation order, decoding no more than it must. A span does not hold on to the video that
            it was made for: this may be another opening of the same file, on another thread.
    """

    start_seconds: float
    end_seconds: float
    choose: Callable[[Video[Any]], Iterator[Any]]


class Sampler(Protocol):
    """Gives the spans of a video: one for ``--per frame`` and ``--per clip``, one a window for ``--per window``; none when nothing of it is asked for."""

    def __call__(self, video: Video[Any]) -> Iterator[Span]:
        """Yields the spans in order of time."""
        ...


class Way(Protocol):
    """A way of choosing frames, such as ``--fps``. Times chosen are within [start_seconds, end_seconds)."""

    def frames(self, video: Video[F], start_seconds: float, end_seconds: float) -> Iterator[F]:
        """Yields frames one by one, holding at most two: the video may be of any length."""
        ...

    def clip_instants(self, video: Video[Any], start_seconds: float, end_seconds: float) -> Sequence[float]:
        """Instants whose frames go into one prompt about a whole video, ascending."""
        ...

    def window_instants(self, video: Video[Any], start_seconds: float, end_seconds: float) -> Sequence[float]:
        """Instants whose frames go into one prompt about a window, ascending."""
        ...
