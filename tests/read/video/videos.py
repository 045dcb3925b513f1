"""Items of videos, and the frames that they show."""

from __future__ import annotations

from pathlib import Path

from tests.media import number_of
from vlmbatch.core import Item
from vlmbatch.job import Job
from vlmbatch.read import open_reader
from vlmbatch.sample import make_sampler

LIMIT = 200_000_000


def items(*inputs: Path, **options: object) -> list[Item]:
    job = Job(inputs=tuple(map(str, inputs)), media="video", **options)
    return list(open_reader(job, sampler=make_sampler(job)))


def shown(found: list[Item]) -> list[int]:
    return [number_of(frame) for item in found for frame in item.load().arrays()]


CONTAINERS = [
    ("a.mp4", "libx264"),
    ("a.mkv", "libx264"),
    ("a.ts", "libx264"),
    ("a.mov", "mpeg4"),
    ("a.webm", "libvpx-vp9"),
]
