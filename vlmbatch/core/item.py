"""An image, frame or clip, and its pixels."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, Union

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from PIL import Image

UInt8Array = npt.NDArray[np.uint8]
Picture: TypeAlias = Union[UInt8Array, "Image.Image"]
"""RGB: an array, uint8, (H, W, 3), or a Pillow image as the decoder made it, which saves copies."""
Media = Literal["image", "frame", "clip", "tile"]


@dataclasses.dataclass(frozen=True, slots=True)
class Pixels:
    """The pixels of an item.

    Attributes:
        frames: RGB pictures, upright: one for an image or frame, several for a clip.
        times_seconds: Presentation time of each frame of a clip; empty for an image.
        duration_seconds: Duration of the whole video; None for an image.
    """

    frames: Sequence[Picture]
    times_seconds: tuple[float, ...] = ()
    duration_seconds: float | None = None

    def arrays(self) -> list[UInt8Array]:
        """The frames as arrays, uint8, (H, W, 3)."""
        return [np.ascontiguousarray(frame, np.uint8) for frame in self.frames]


def picture_size(picture: Picture) -> tuple[int, int]:
    """(width, height) in pixels."""
    if isinstance(picture, np.ndarray):
        return picture.shape[1], picture.shape[0]
    return picture.size


@dataclasses.dataclass(frozen=True, slots=True)
class Item:
    """One image, frame or clip to ask about. A reader makes it; ``load`` makes its pixels on a
    worker thread, at the last moment.

    Attributes:
        id: Stable across runs: the path relative to its INPUT with ``/`` as separator,
            ``clip.mp4#t=12.000`` for a frame.
        source: Origin of the bytes, as a user would type it.
        place: Number of its source in input order (a listed file, a table row, an archive entry),
            and its number within that source; both from 0. A shard keeps the places of the whole
            job; row indices are settled from them when rows are published.
        media: ``image``, ``frame`` (one frame of a video), ``clip`` (several in one prompt) or
            ``tile``.
        load: Return the pixels. Raises an ``ItemError`` (ReadError, DecodeError) and nothing else.
        time_seconds: Presentation time of a frame, or start of a clip; None for an image.
        end_seconds: Time of the next sampled frame or the video's end, or the end of a clip; None
            for an image.
        fingerprint: File size and mtime; it changes when the file does. Empty when there is no
            file.
        questions: Questions about this item in place of the job's; empty for the job's.
        extra: Values copied into its rows, by column of OUTPUT.
        held_bytes: File bytes that ``load`` keeps because they cannot be read again cheaply.
        similar_to: Id of the similar frame whose answers this one gets; None for an item that is
            asked about.
        digest: Return a digest of the file's content; raises as ``load`` does.
    """

    id: str
    source: str
    place: tuple[int, int]
    media: Media
    load: Callable[[], Pixels]
    time_seconds: float | None = None
    end_seconds: float | None = None
    fingerprint: str = ""
    questions: tuple[str, ...] = ()
    extra: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    held_bytes: int = 0
    similar_to: str | None = None
    digest: Callable[[], str] | None = None
