"""Pixels of a frame, clip or window, decoded when they are asked for, and the errors of damaged
videos.
"""

from __future__ import annotations

import logging
import math

from vlmbatch.core import Pixels
from vlmbatch.errors import DecodeError
from vlmbatch.read.video.clock import Extent
from vlmbatch.read.video.container import SAME_SECONDS
from vlmbatch.read.video.file import VideoFile
from vlmbatch.read.video.sampling import Stretch

logger = logging.getLogger(__name__)


def load_frame(
    path: str,
    max_pixels: int,
    seconds: float,
    stream: int | None = None,
    extent: Extent | None = None,
) -> Pixels:
    """Decode the frame that is shown from a time on.

    Args:
        path: The file.
        max_pixels: Frames with more pixels are refused before they are decoded.
        seconds: The time.
        stream: The video stream, from 0; None chooses one.
        extent: The video's, when it is known.

    Returns:
        The upright picture, uint8, (H, W, 3).

    Raises:
        ReadError: The file cannot be opened.
        DecodeError: The frame cannot be decoded.
    """
    with VideoFile(path, max_pixels, stream, extent) as video:
        for frame in video.frames(
            lambda after: seconds if after <= seconds + SAME_SECONDS else None
        ):
            if math.isclose(frame.time_seconds, seconds, rel_tol=0, abs_tol=SAME_SECONDS):
                return Pixels((frame.rgb(),))
        raise damage(video) or DecodeError(f"the frame at {seconds:.3f} s cannot be decoded")


def load_clip(
    path: str,
    max_pixels: int,
    stretch: Stretch,
    stream: int | None = None,
    extent: Extent | None = None,
) -> Pixels:
    """Decode the chosen frames of a stretch of a video.

    Args:
        path: The file.
        max_pixels: Frames with more pixels are refused before they are decoded.
        stretch: The stretch and the choice.
        stream: The video stream, from 0; None chooses one.
        extent: The video's, when it is known.

    Returns:
        The frames, uint8, (H, W, 3) each, their times and the duration of the whole video.

    Raises:
        ReadError: The file cannot be opened.
        DecodeError: It is no video, its frames have too many pixels, or none could be decoded.
    """
    frames, times = [], []
    with VideoFile(path, max_pixels, stream, extent) as video:
        lost = video.lost_from_seconds
        if lost is not None and lost <= stretch.start_seconds:
            raise cut_off(lost)
        for frame in stretch.choose(video):
            frames.append(frame.rgb())
            times.append(frame.time_seconds)
        if not frames:
            raise no_frames(video)
        if video.counts.num_broken:
            logger.warning("%s: %s", path, damage(video))
        elif lost is not None and lost < stretch.end_seconds:
            logger.warning("%s: %s", path, cut_off(lost))
        return Pixels(frames, tuple(times), video.extent.end_seconds)


def no_frames(video: VideoFile) -> DecodeError:
    """Say why a video gives no frame."""
    reason = video.counts.broken_reason
    return DecodeError(f"no frame can be decoded: {reason}" if reason else "no frames")


def cut_off(lost_from_seconds: float) -> DecodeError:
    """Say that the frames from a time on lie behind the file's end."""
    return DecodeError(
        f"cut off: the file ends before its frames from {lost_from_seconds:.3f} s on"
    )


def damage(video: VideoFile) -> DecodeError | None:
    """Say which packets could not be decoded so far; None when all could."""
    counts = video.counts
    if not counts.num_broken:
        return None
    packets = "1 packet" if counts.num_broken == 1 else f"{counts.num_broken} packets"
    return DecodeError(
        f"damaged after {counts.broken_seconds:.3f} s: {packets} could not be decoded "
        f"({counts.broken_reason})"
    )
