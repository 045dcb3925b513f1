"""Samplers: which frames of a video become Items. The table names the ways of choosing; what they
promise is in base.py.
"""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Callable

from vlmbatch.errors import MissingDependencyError
from vlmbatch.job import DEFAULT_FPS, Job
from vlmbatch.sample.base import Sampler, Span, Way

__all__ = ["WAYS", "Sampler", "Span", "Way", "make_sampler"]


def _every(job: Job) -> Way:
    from vlmbatch.sample.every import Every

    return Every(job.every or 1)


def _uniform(job: Job) -> Way:
    from vlmbatch.sample.uniform import Uniform

    return Uniform(job.num_frames or 1)


def _timestamps(job: Job) -> Way:
    from vlmbatch.sample.timestamps import Timestamps

    return Timestamps(job.at)


def _fps(job: Job) -> Way:
    from vlmbatch.sample.fps import Fps

    return Fps(job.sampling_fps or DEFAULT_FPS)


def _keyframes(job: Job) -> Way:
    from vlmbatch.sample.keyframes import Keyframes

    return Keyframes()


def _scenes(job: Job) -> Way:
    if importlib.util.find_spec("scenedetect") is None:
        raise MissingDependencyError(
            "--scenes finds cuts with PySceneDetect, which is not installed: pip install 'vlmbatch[scenes]'"
        )
    from vlmbatch.sample.scenes import Scenes

    return Scenes()


WAYS: dict[str, Callable[[Job], Way]] = {
    "every": _every,
    "num_frames": _uniform,
    "at": _timestamps,
    "keyframes": _keyframes,
    "scenes": _scenes,
    "fps": _fps,
}
"""The job's option to the way of choosing that it asks for. A job gives at most one of them; none
means fps.
"""


def make_sampler(job: Job) -> Sampler:
    """Makes the sampler of a job's video options.

    Raises:
        MissingDependencyError: The way of choosing takes a package that is not installed.
    """
    from vlmbatch.sample.spans import SpanSampler

    name = next((name for name in WAYS if getattr(job, name) not in (None, (), False)), "fps")
    end = math.inf if job.end is None else job.end
    return SpanSampler(
        WAYS[name](job),
        job.per,
        job.start or 0.0,
        end,
        job.window_seconds,
        job.skip_similar,
        needs_pixels=name == "scenes",
    )
