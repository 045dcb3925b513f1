"""``--skip-similar``: sampled frames that resemble the last one that was kept.

Two frames are compared as thumbnails of 128 x 128 pixels, brightness and colours apart, each pixel
the mean of those it stands for. They are cut into 16 x 16 fields of 8 x 8 pixels, and a field's
difference is the mean absolute difference of its pixels, from 0 (the same) to 1 (black against
white). The frames differ by their most different field: a change of everything shows in every
field, a small one where it happens, noise averages out in all of them.
"""

from __future__ import annotations

from vlmbatch.core import UInt8Array
from vlmbatch.errors import ItemError
from vlmbatch.sample.base import Frame

EDGE = 128
FIELD = 8


class SimilarFrames:
    """Compare the sampled frames of one video, in their order.

    A frame is compared with the last one that was kept, not with the one before it: what changes
    slowly is seen once it has changed enough.
    """

    def __init__(self, threshold: float) -> None:
        """Take the largest difference of two similar frames, from 0 to 1."""
        self._threshold = threshold
        self._size = (0, 0)
        self._thumbnail: UInt8Array | None = None

    def is_similar(self, frame: Frame) -> bool:
        """Return whether a frame resembles the last one that was kept; keep it when it does not, or
        cannot be compared.
        """
        try:
            size, thumbnail = frame.stored_size, frame.thumbnail(EDGE, EDGE, "yuv444p")
        except ItemError:
            self._thumbnail = None  # loading its pixels tells why
            return False
        if (
            self._thumbnail is not None
            and self._size == size
            and difference(self._thumbnail, thumbnail) <= self._threshold
        ):
            return True
        self._size, self._thumbnail = size, thumbnail
        return False


def difference(one: UInt8Array, other: UInt8Array) -> float:
    """Measure the difference of two thumbnails, from 0 to 1.

    Args:
        one: uint8, (3, EDGE, EDGE): brightness and two colour differences.
        other: The same of the other frame.

    Returns:
        The largest difference of a field, in brightness or in one of the colours.
    """
    import cv2  # loading it takes a while, and other jobs do without

    apart = cv2.absdiff(one, other)
    fields = apart.reshape(-1, EDGE // FIELD, FIELD, EDGE // FIELD, FIELD).mean((2, 4))
    return float(fields.max()) / 255
