"""The sampler that a video reader takes, as far as it uses one; ``sample`` makes it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, Protocol


class Stretch(Protocol):
    """A stretch of a video and the choice of frames in it."""

    @property
    def start_seconds(self) -> float:
        """Start of the stretch."""
        ...

    @property
    def end_seconds(self) -> float:
        """End of the stretch."""
        ...

    @property
    def choose(self) -> Callable[[Any], Iterator[Any]]:
        """Yield the chosen frames of a ``VideoFile`` or an ``UndecodedVideo``."""
        ...


class Judge(Protocol):
    """A comparison of the chosen frames of one video, in their order."""

    def is_similar(self, frame: Any) -> bool:
        """Return whether a frame resembles the last one that was kept; keep it when it does not."""
        ...


class Sampler(Protocol):
    """A choice of stretches in each video."""

    @property
    def needs_pixels(self) -> bool:
        """Whether the choice takes more than the times of the frames."""
        ...

    def judge(self) -> Judge | None:
        """Return a judge of the frames of a video; None when every frame counts."""
        ...

    def __call__(self, video: Any) -> Iterator[Stretch]:
        """Yield the stretches in order of time."""
        ...
