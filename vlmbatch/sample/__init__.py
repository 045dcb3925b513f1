"""Samplers: the frames of a video that become Items. The table names the ways of choosing; base.py
has their contract.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable

from vlmbatch.job import DEFAULT_FPS, DEFAULT_SCENE_THRESHOLD, Job, VideoOptions
from vlmbatch.sample.at import At
from vlmbatch.sample.base import MAX_CLIP_FRAMES, Stretch, Way
from vlmbatch.sample.every import Every
from vlmbatch.sample.fps import Fps
from vlmbatch.sample.keyframes import Keyframes
from vlmbatch.sample.num_frames import NumFrames
from vlmbatch.sample.scenes import Scenes
from vlmbatch.sample.stretches import StretchSampler

__all__ = ["WAYS", "Stretch", "StretchSampler", "Way", "make_sampler"]

WAYS: dict[str, Callable[[VideoOptions], Way]] = {
    "every": lambda options: Every(options.every or 1),
    "num_frames": lambda options: NumFrames(options.num_frames or 1),
    "at": lambda options: At(options.at),
    "keyframes": lambda options: Keyframes(),
    "scenes": lambda options: Scenes(options.scene_threshold or DEFAULT_SCENE_THRESHOLD),
    "fps": lambda options: Fps(options.sampling_fps or DEFAULT_FPS),
}
"""The option to the way of choosing that it asks for. A job gives at most one; none means fps."""

logger = logging.getLogger(__name__)


def make_sampler(job: Job) -> StretchSampler:
    """Make the sampler of a job's video options."""
    name = next(iter(job.ways_of_sampling), "fps")
    if job.per == "window" and name == "fps":
        _check_window(job.sampling_fps or DEFAULT_FPS, job.window_seconds)
    return StretchSampler(
        WAYS[name](job),
        job.per,
        job.start or 0.0,
        math.inf if job.end is None else job.end,
        job.window_seconds,
        job.skip_similar,
        needs_pixels=name == "scenes",
    )


def _check_window(fps: float, window_seconds: float) -> None:
    """Warn when a window has more frames than one prompt takes."""
    frames = math.ceil(fps * window_seconds)
    if frames > MAX_CLIP_FRAMES:
        logger.warning(
            "%d of the %d frames of a window go into one prompt, evenly spread: more do not fit; "
            "--window %.4g takes all of them",
            MAX_CLIP_FRAMES,
            frames,
            MAX_CLIP_FRAMES / fps,
        )
