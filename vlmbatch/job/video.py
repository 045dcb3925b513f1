"""Video options: which frames are sampled, from which stream and time range."""

from __future__ import annotations

import dataclasses
import math

from vlmbatch.errors import JobError
from vlmbatch.job.option import check_at_least, option

DEFAULT_FPS = 1.0
DEFAULT_WINDOW_SECONDS = 30.0
DEFAULT_SKIP_SIMILAR = 0.05
"""A field of 1/256 of the frame that changes by 13 of 255 levels: above the compression noise of a
still picture, below a replaced line of text.
"""
DEFAULT_SCENE_THRESHOLD = 27.0
"""ContentDetector's own."""
WAYS_OF_SAMPLING = ("fps", "every", "num_frames", "at", "keyframes", "scenes")


@dataclasses.dataclass(frozen=True, kw_only=True)
class VideoOptions:
    """Options of sampling videos. See the help text of each field."""

    fps: float | None = option(
        None,
        "Frames on screen at 0, 1/F, 2/F … seconds. [default: 1, unless another way of sampling "
        "is given]",
        metavar="F",
        group="Video",
    )
    every: int | None = option(None, "Every N-th frame.", metavar="N", group="Video")
    num_frames: int | None = option(
        None, "At most N frames, evenly spaced.", metavar="N", group="Video"
    )
    at: tuple[float, ...] = option(
        (),
        "The frames on screen at these times (seconds or H:MM:SS).",
        metavar="T,T,…",
        group="Video",
    )
    keyframes: bool = option(False, "Key frames only; nothing else is decoded.", group="Video")
    scenes: bool = option(
        False, "The middle frame of each scene (PySceneDetect's ContentDetector).", group="Video"
    )
    scene_threshold: float | None = option(
        None,
        "Cut a scene where the mean difference of hue, saturation and brightness from one frame to "
        f"the next is above X, 0 to 255; less finds more scenes. [default: "
        f"{DEFAULT_SCENE_THRESHOLD:g}]",
        metavar="X",
        group="Video",
    )
    start: float | None = option(
        None, "Skip what is before this time.", metavar="SECONDS", group="Video"
    )
    end: float | None = option(
        None, "Skip what is at or after this time.", metavar="SECONDS", group="Video"
    )
    stream: int | None = option(
        None,
        "The N-th video stream of the file, from 0. [default: the one flagged as default, else "
        "the largest picture]",
        metavar="N",
        group="Video",
    )
    skip_similar: float | None = option(
        None,
        "Do not ask about a frame that differs from the last one asked about by at most THRESHOLD "
        f"anywhere (0 to 1, {DEFAULT_SKIP_SIMILAR} unless given); its row gets that frame's "
        "answer.",
        metavar="[THRESHOLD]",
        group="Video",
    )
    window: float | None = option(
        None,
        f"Length of a window with --per window. [default: {DEFAULT_WINDOW_SECONDS:g}]",
        metavar="SECONDS",
        group="Video",
    )

    @property
    def window_seconds(self) -> float:
        """Length of a window."""
        return DEFAULT_WINDOW_SECONDS if self.window is None else self.window

    @property
    def ways_of_sampling(self) -> list[str]:
        """The options given that choose frames: at most one."""
        return [name for name in WAYS_OF_SAMPLING if getattr(self, name) not in (None, (), False)]

    @property
    def sampling_fps(self) -> float | None:
        """Frames to sample per second; None if frames are chosen in another way."""
        if any(way != "fps" for way in self.ways_of_sampling):
            return None
        return DEFAULT_FPS if self.fps is None else self.fps

    def check_video(self) -> None:
        """Check the values of this group.

        Raises:
            JobError: A value, or a combination, is not allowed.
        """
        check_at_least(self, every=1, num_frames=1, stream=0)
        for name in ("fps", "window"):
            value = getattr(self, name)
            if value is not None and not 0 < value < float("inf"):
                raise JobError(f"{name} must be above 0, not {value}")
        ways = self.ways_of_sampling
        if len(ways) > 1:
            raise JobError(f"{' and '.join(ways)} are different ways of choosing frames: give one")
        for name in ("start", "end"):
            value = getattr(self, name)
            if value is not None and value < 0:
                raise JobError(f"{name} must not be below 0, not {value}")
        if any(time < 0 for time in self.at):
            raise JobError("the times of `at` must not be below 0")
        if not all(math.isfinite(time) for time in (*self.at, self.start or 0, self.end or 0)):
            raise JobError("start, end and at are times in seconds, not nan or inf")
        if self.window is not None and self.window < 0.01:
            raise JobError(f"window must be at least 0.01 seconds, not {self.window}")
        if self.start is not None and self.end is not None and self.end <= self.start:
            raise JobError(f"end ({self.end}) must come after start ({self.start})")
        if self.scene_threshold is not None:
            if not self.scenes:
                raise JobError("scene_threshold goes with scenes")
            if not 0 < self.scene_threshold <= 255:
                raise JobError(
                    f"scene_threshold must be above 0 and at most 255, not {self.scene_threshold}"
                )
        if self.skip_similar is not None and not 0 <= self.skip_similar <= 1:
            raise JobError(f"skip_similar must be from 0 to 1, not {self.skip_similar}")
