"""Scenes: the middle frame of each, with its span, in real videos."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest

from tests.media import HEIGHT, WIDTH, write_video
from vlmbatch.core import Item, UInt8Array
from vlmbatch.errors import JobError
from vlmbatch.job import Job
from vlmbatch.read import open_reader
from vlmbatch.sample import make_sampler

COLOURS = [(200, 30, 30), (235, 235, 235), (20, 20, 90)]


def scene(number: int) -> UInt8Array:
    """A frame of one of three scenes of 20, 30 and 10 frames."""
    colour = COLOURS[0 if number < 20 else 1 if number < 50 else 2]
    return np.broadcast_to(np.array(colour, np.uint8), (HEIGHT, WIDTH, 3)).copy()


def items(path: Path, **options: object) -> list[Item]:
    job = Job(inputs=(str(path),), media="video", scenes=True, **options)
    return list(open_reader(job, sampler=make_sampler(job)))


def spans(found: list[Item]) -> list[tuple[str, float, float]]:
    return [
        (
            item.id.partition("#")[2],
            round(item.time_seconds or 0, 6),
            round(item.end_seconds or 0, 6),
        )
        for item in found
    ]


@pytest.fixture
def film(tmp_path: Path) -> Path:
    return write_video(tmp_path / "a.mp4", 60, draw=scene)


def test_each_scene_gives_its_middle_frame_and_its_span(film: Path) -> None:
    found = items(film)
    assert spans(found) == [("t=1.000", 0, 2), ("t=3.500", 2, 5), ("t=5.500", 5, 6)]
    for item, colour in zip(found, COLOURS, strict=True):
        assert np.abs(item.load().frames[0].mean((0, 1)) - colour).max() < 12


def test_scenes_of_a_stretch(film: Path) -> None:
    assert spans(items(film, start=1.0, end=4.0)) == [("t=1.500", 1, 2), ("t=3.000", 2, 4)]
    assert items(film, start=60.0) == []


def test_scenes_with_a_variable_frame_rate_have_the_streams_own_times(tmp_path: Path) -> None:
    pts = [number * 100 if number < 20 else 2000 + (number - 20) * 250 for number in range(60)]
    path = write_video(tmp_path / "a.mkv", 60, pts=pts, time_base=Fraction(1, 1000), draw=scene)
    assert [span[1] for span in spans(items(path))] == [0, 2, 9.5]


def test_a_video_of_one_scene_gives_one_frame(tmp_path: Path) -> None:
    path = write_video(tmp_path / "a.mkv", 31, draw=lambda number: scene(0))
    assert spans(items(path)) == [("t=1.500", 0, 3.1)]


def test_the_middles_are_the_frames_of_a_clip(film: Path) -> None:
    (item,) = items(film, per="clip")
    assert (item.id, item.time_seconds, item.end_seconds) == ("a.mp4", 0, 6)
    assert item.load().times_seconds == pytest.approx([1, 3.5, 5.5])


def test_windows_are_not_scenes() -> None:
    with pytest.raises(JobError, match="--per frame or --per clip"):
        Job(media="video", scenes=True, per="window")


def test_a_higher_threshold_finds_fewer_cuts(film: Path) -> None:
    assert len(items(film)) == 3
    assert len(items(film, scene_threshold=255.0)) == 1
    assert Job(media="video", scenes=True).identity() != (
        Job(media="video", scenes=True, scene_threshold=20.0).identity()
    )


@pytest.mark.parametrize("options", [{"scenes": True, "scene_threshold": 0.0}, {"fps": 1.0}])
def test_a_threshold_that_means_nothing_is_refused(options: dict[str, object]) -> None:
    with pytest.raises(JobError, match="scene_threshold"):
        Job(media="video", **{"scene_threshold": 20.0, **options})
