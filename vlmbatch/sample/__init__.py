"""Samplers: the frames of a video that become Items. The table names the ways of choosing; base.py
has their contract.
"""

from __future__ import annotations

import math
from collections.abc import Callable

from vlmbatch.job import DEFAULT_FPS, Job, VideoOptions
from vlmbatch.sample.at import At
from vlmbatch.sample.base import Stretch, Way
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
    "scenes": lambda options: Scenes(),
    "fps": lambda options: Fps(options.sampling_fps or DEFAULT_FPS),
}
"""The option to the way of choosing that it asks for. A job gives at most one; none means fps."""


def make_sampler(job: Job) -> StretchSampler:
    """Make the sampler of a job's video options."""
    name = next(iter(job.ways_of_sampling), "fps")
    return StretchSampler(
        WAYS[name](job),
        job.per,
        job.start or 0.0,
        math.inf if job.end is None else job.end,
        job.window_seconds,
        job.skip_similar,
        needs_pixels=name == "scenes",
    )
