"""A decoded frame with its presentation time, and its pixels in the shape that a player shows."""

from __future__ import annotations

import dataclasses
import struct
import threading
from fractions import Fraction
from typing import TYPE_CHECKING, Any, Self

import numpy as np

from vlmbatch.core import UInt8Array
from vlmbatch.errors import DecodeError, one_line
from vlmbatch.read.base import check_size

if TYPE_CHECKING:
    import av


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class DecodedFrame:
    """A frame as the decoder gives it, 12 bits a pixel mostly; ``rgb`` makes a picture of it.

    Attributes:
        time_seconds: Presentation time, the container's start subtracted.
        duration_seconds: Duration when nothing follows.
        is_key: Whether decoding can start here.
        stretch_seconds: Start and end of the stretch that it stands for; None for a frame that
            stands until the next one.
    """

    time_seconds: float
    duration_seconds: float
    is_key: bool
    _frame: av.VideoFrame
    _aspect: Fraction
    _max_pixels: int
    _lock: threading.Lock = dataclasses.field(default_factory=threading.Lock, repr=False)
    stretch_seconds: tuple[float, float] | None = None

    @property
    def stored_size(self) -> tuple[int, int]:
        """Width and height in stored pixels, before stretching and rotation."""
        return self._frame.width, self._frame.height

    def standing_for(self, start_seconds: float, end_seconds: float) -> Self:
        """Return the same frame, standing for a stretch."""
        return dataclasses.replace(self, stretch_seconds=(start_seconds, end_seconds))

    def rgb(self) -> UInt8Array:
        """Return the upright picture in the shape that a player shows, uint8, (H, W, 3).

        Pixels that are not square are stretched in width, with libswscale's bicubic filter
        (FFmpeg's default).

        Raises:
            DecodeError: It cannot be converted, or has too many pixels.
        """
        width, height = display_size(self._frame.width, self._frame.height, self._aspect)
        check_size(width, height, self._max_pixels)
        stretched: dict[str, Any] = {}
        if width != self._frame.width:
            stretched = {"width": width, "height": height, "interpolation": "BICUBIC"}
        pixels = self._converted("rgb24", **stretched)
        return np.ascontiguousarray(_upright(pixels, self._frame), np.uint8)

    def thumbnail(self, width: int, height: int, form: str = "rgb24") -> UInt8Array:
        """Return a small picture, each pixel the mean of those it stands for, whatever the aspect
        ratio; as stored, so not always upright.

        Args:
            width: Its width in pixels.
            height: Its height in pixels.
            form: FFmpeg's name of the pixel format. ``rgb24`` gives (height, width, 3), ``yuv444p``
                (3, height, width) without a conversion of colours.

        Raises:
            DecodeError: It cannot be converted, or has too many pixels.
        """
        return self._converted(form, width=width, height=height, interpolation="AREA")

    def _converted(self, form: str, **options: Any) -> UInt8Array:
        check_size(self._frame.width, self._frame.height, self._max_pixels)
        from av.video.reformatter import VideoReformatter

        try:
            # PyAV changes the frame while it converts it, so threads take turns. One thread a
            # conversion: it runs on one of many workers already.
            with self._lock:
                converted = VideoReformatter().reformat(
                    self._frame, format=form, threads=1, **options
                )
            return np.asarray(converted.to_ndarray(), np.uint8)
        except (OSError, ValueError, RuntimeError, MemoryError) as exc:
            raise DecodeError(f"a frame cannot be converted: {one_line(exc)}") from exc


def display_size(width: int, height: int, aspect: Fraction) -> tuple[int, int]:
    """Return the size that a player shows, before rotation: the width times the aspect of a pixel,
    and the height.
    """
    return max(1, round(width * aspect)), height


def _upright(pixels: UInt8Array, frame: av.VideoFrame) -> UInt8Array:
    """Turn and mirror a picture as its display matrix says.

    The matrix ((a, b, u), (c, d, v), (x, y, w)) takes a stored point (p, q) to (a p + c q + x, b p
    + d q + y) (ffmpeg's libavutil/display.h); angles between the quarter turns are left alone.
    """
    matrix: Any = frame.side_data.get("DISPLAYMATRIX")
    if matrix is None:
        return pixels
    a, b, _, c, d = struct.unpack_from("=5i", bytes(matrix))
    if abs(b) > abs(a):
        pixels = pixels.transpose(1, 0, 2)
        a, d = c, b
    if a < 0:
        pixels = pixels[:, ::-1]
    return pixels[::-1] if d < 0 else pixels
