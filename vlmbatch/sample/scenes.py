"""``--scenes``: the middle frame of each scene, cut where PySceneDetect's ContentDetector cuts.

The detector is given small pictures of every frame by our own decoder, so its times are the
stream's own, also with a variable frame rate.
"""

from __future__ import annotations

import bisect
import dataclasses
import itertools
from collections.abc import Iterator, Sequence
from typing import Any

from vlmbatch.core import UInt8Array
from vlmbatch.sample.base import TOLERANCE_SECONDS, F, Frame, Video
from vlmbatch.sample.on_screen import listed, on_screen
from vlmbatch.sample.thinning import for_one_prompt

MIN_SCENE_SECONDS = 0.6
"""Cuts closer than this are one: the default of PySceneDetect's command."""

LONGEST_EDGE = 256
"""Size that frames are compared at, in pixels; PySceneDetect's own aim for the width."""

_RATE = 1000.0
"""ContentDetector asks for a frame rate beside each time; with times in seconds it only rounds for
display with it.
"""


@dataclasses.dataclass(frozen=True, slots=True)
class Scenes:
    """Scenes between cuts.

    Attributes:
        threshold: Mean difference of hue, saturation and brightness from one frame to the next, 0
            to 255, from which on there is a cut.
    """

    threshold: float

    def frames(self, video: Video[F], start_seconds: float, end_seconds: float) -> Iterator[F]:
        """Yield the frame on screen in the middle of each scene, standing for the scene."""
        scenes = find_scenes(video, start_seconds, end_seconds, self.threshold)
        starts = [start for start, _ in scenes]
        for frame in on_screen(video, listed(_middles(scenes))):
            number = max(0, bisect.bisect_right(starts, frame.time_seconds + TOLERANCE_SECONDS) - 1)
            yield frame.standing_for(*scenes[number])

    def clip_instants(
        self, video: Video[Any], start_seconds: float, end_seconds: float
    ) -> Sequence[float]:
        """Return the middles of the scenes, evenly thinned to ``MAX_CLIP_FRAMES``."""
        middles = _middles(find_scenes(video, start_seconds, end_seconds, self.threshold))
        return for_one_prompt(middles, "scenes", start_seconds, end_seconds)

    window_instants = clip_instants


def find_scenes(
    video: Video[Any], start_seconds: float, end_seconds: float, threshold: float
) -> list[tuple[float, float]]:
    """Cut a stretch of a video into scenes; every frame of it is decoded.

    Args:
        video: The video.
        start_seconds: Where to begin.
        end_seconds: Where to stop; infinity for the video's end.
        threshold: See ``Scenes``.

    Returns:
        Start and end of each scene in seconds, without gaps: the first starts with the first frame,
        the last ends with the video or the stretch. No scenes for a stretch without frames.
    """
    # These load OpenCV, which other ways of sampling do without.
    from scenedetect.common import FrameTimecode
    from scenedetect.detectors import ContentDetector

    detector = ContentDetector(threshold, min_scene_len=MIN_SCENE_SECONDS)
    cuts: list[float] = []
    first = last = None
    later = video.frames((lambda seconds: max(seconds, start_seconds)) if start_seconds else None)
    within = itertools.takewhile(
        lambda frame: frame.time_seconds < end_seconds - TOLERANCE_SECONDS, later
    )
    for frame in itertools.dropwhile(
        lambda frame: frame.time_seconds < start_seconds - TOLERANCE_SECONDS, within
    ):
        first, last = first or frame, frame
        time = FrameTimecode(frame.time_seconds - first.time_seconds, _RATE)
        cuts += [
            first.time_seconds + cut.seconds for cut in detector.process_frame(time, _small(frame))
        ]
    if first is None or last is None:
        return []
    end = min(end_seconds, max(video.end_seconds, last.time_seconds + last.duration_seconds))
    bounds = [first.time_seconds, *cuts, end]
    return list(itertools.pairwise(bounds))


def _small(frame: Frame) -> UInt8Array:
    """Return the frame at the detector's size, uint8, (H, W, 3), blue first as in OpenCV."""
    width, height = frame.stored_size
    scale = min(1.0, LONGEST_EDGE / max(width, height))
    return frame.thumbnail(max(1, round(width * scale)), max(1, round(height * scale)), "bgr24")


def _middles(scenes: list[tuple[float, float]]) -> list[float]:
    return [(start + end) / 2 for start, end in scenes]
