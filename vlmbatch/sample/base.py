"""What a sampler is. It sees frames by their times; what it is told about a video is structural, so
that it knows no reader.
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
    """A decoded frame, as far as choosing goes."""

    @property
    def time_seconds(self) -> float:
        """Presentation time, as a player shows it."""
        ...

    @property
    def duration_seconds(self) -> float:
        """How long it stands when nothing follows."""
        ...

    @property
    def stored_size(self) -> tuple[int, int]:
        """Width and height in pixels, before it is turned upright."""
        ...

    def standing_for(self, start_seconds: float, end_seconds: float) -> Self:
        """The same frame, standing for a stretch instead of until the next one."""
        ...

    def thumbnail(self, width: int, height: int, form: str = "rgb24") -> UInt8Array:
        """A small picture in one of FFmpeg's pixel formats, each pixel the mean of those it stands
        for.
        """
        ...


NextInstant = Callable[[float], float | None]
"""Gives the first instant not before a time that is asked for; None when there is none."""

F = TypeVar("F", bound=Frame)
F_co = TypeVar("F_co", bound=Frame, covariant=True)


class Video(Protocol[F_co]):
    """An open video, as far as choosing goes."""

    @property
    def end_seconds(self) -> float:
        """Where it ends."""
        ...

    def frames(self, next_instant: NextInstant | None = None) -> Iterator[F_co]:
        """Yields frames in presentation order, times strictly rising.

        Frames that are on screen at no instant that is asked for may be left out, but for the one
        after the last instant; None asks for every frame.
        """
        ...

    def key_frames(self, start_seconds: float = 0.0) -> Iterator[F_co]:
        """Yields the frames from a time on where decoding can start, and decodes no others."""
        ...

    def frame_times(self) -> Sequence[float]:
        """Times of all frames, ascending, in seconds; nothing is decoded where the packets state
        them.
        """
        ...

    def key_times(self) -> Sequence[float]:
        """Times of the key frames, as ``frame_times``."""
        ...

    @property
    def packet_times(self) -> object | None:
        """None where ``frame_times`` takes decoding everything."""
        ...


@dataclasses.dataclass(frozen=True, slots=True)
class Span:
    """A stretch of a video and the choice of frames in it.

    Attributes:
        start_seconds: Where it starts.
        end_seconds: Where it ends.
        choose: Yields the chosen frames of a video in presentation order, decoding no more than it
            must. A span does not hold on to the video that
            it was made for: this may be another opening of the same file, on another thread.
    """

    start_seconds: float
    end_seconds: float
    choose: Callable[[Video[Any]], Iterator[Any]]


class Judge(Protocol):
    """Judges the chosen frames of one video, in their order."""

    def is_similar(self, frame: Any) -> bool:
        """Whether a frame resembles the last one that was kept; it is kept itself when it does not."""
        ...


class Sampler(Protocol):
    """Gives the spans of a video: one for ``--per frame`` and ``--per clip``, one a window for
    ``--per window``; none when nothing of it is asked for.
    """

    @property
    def needs_pixels(self) -> bool:
        """Whether the choice takes more than the times of the frames."""
        ...

    def judge(self) -> Judge | None:
        """What judges the chosen frames of a video; None when every frame counts."""
        ...

    def __call__(self, video: Video[Any]) -> Iterator[Span]:
        """Yields the spans in order of time."""
        ...


class Way(Protocol):
    """A way of choosing frames, such as ``--fps``. Times chosen are within [start_seconds,
    end_seconds).
    """

    def frames(self, video: Video[F], start_seconds: float, end_seconds: float) -> Iterator[F]:
        """Yields frames one by one, holding at most two: the video may be of any length."""
        ...

    def clip_instants(
        self, video: Video[Any], start_seconds: float, end_seconds: float
    ) -> Sequence[float]:
        """Instants whose frames go into one prompt about a whole video, ascending."""
        ...

    def window_instants(
        self, video: Video[Any], start_seconds: float, end_seconds: float
    ) -> Sequence[float]:
        """Instants whose frames go into one prompt about a window, ascending."""
        ...
