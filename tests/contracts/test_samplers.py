"""One class that every way of sampling passes, on real videos: the frames that a reader's Items are
made of.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.media import write_video
from vlmbatch.core import Item
from vlmbatch.job import Job
from vlmbatch.read import open_reader
from vlmbatch.read.video.file import VideoFile
from vlmbatch.read.video.undecoded import UndecodedVideo
from vlmbatch.sample import WAYS, StretchSampler, make_sampler

FPS, FRAMES, KEY_EVERY = 10, 45, 12
OPTIONS: dict[str, dict[str, object]] = {
    "fps": {"fps": 3.0},
    "every": {"every": 7},
    "num_frames": {"num_frames": 6},
    "at": {"at": (0.31, 1.0, 2.55, 4.4)},
    "keyframes": {"keyframes": True},
    "scenes": {"scenes": True},
}
"""An example of each way."""


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("clip") / "clip.mp4"
    return write_video(path, FRAMES, fps=FPS, key_every=KEY_EVERY)


def sampler(way: str, **options: object) -> StretchSampler:
    return make_sampler(Job.from_dict({"media": "video", **OPTIONS[way], **options}))


def times(chosen: StretchSampler, video: object) -> list[float]:
    """Times of the chosen frames, stretch by stretch."""
    return [frame.time_seconds for stretch in chosen(video) for frame in stretch.choose(video)]


def decoded(clip: Path, chosen: StretchSampler) -> list[float]:
    with VideoFile(str(clip), 10**8) as video:
        return times(chosen, video)


def items(clip: Path, way: str, **options: object) -> Iterator[Item]:
    values = {"inputs": [str(clip)], "media": "video", **OPTIONS[way], **options}
    job = Job.from_dict(values)
    return iter(open_reader(job, sampler=make_sampler(job)))


def test_every_way_joins() -> None:
    assert OPTIONS.keys() == WAYS.keys()


@pytest.mark.parametrize("way", WAYS)
class TestSampler:
    def test_frames_are_frames_of_the_video_in_order_and_none_twice(
        self, clip: Path, way: str
    ) -> None:
        chosen = decoded(clip, sampler(way))
        assert chosen
        assert chosen == sorted(set(chosen))
        assert {round(time * FPS, 6) for time in chosen} <= set(range(FRAMES))

    def test_the_choice_is_the_same_every_time(self, clip: Path, way: str) -> None:
        chosen = sampler(way)
        assert decoded(clip, chosen) == decoded(clip, chosen)

    def test_the_choice_is_the_same_without_decoding(self, clip: Path, way: str) -> None:
        chosen = sampler(way)
        if chosen.needs_pixels:
            return
        with VideoFile(str(clip), 10**8) as video:
            assert video.packet_times is not None
            undecoded = UndecodedVideo(video.packet_times, video.extent, video.step_seconds)
            assert times(chosen, undecoded) == times(chosen, video)

    def test_start_and_end_cut(self, clip: Path, way: str) -> None:
        chosen = decoded(clip, sampler(way, start=1.0, end=3.0))
        # A time is answered by the frame on screen then, which may have begun before it.
        assert all(1.0 - 1 / FPS < time < 3.0 for time in chosen)

    def test_windows_hold_only_their_own_frames(self, clip: Path, way: str) -> None:
        if way == "scenes":  # refused: a window is cut by time
            return
        chosen = sampler(way, per="window", window=1.5)
        with VideoFile(str(clip), 10**8) as video:
            for stretch in chosen(video):
                for frame in stretch.choose(video):
                    shown_until = frame.time_seconds + 1 / FPS
                    assert stretch.start_seconds < shown_until
                    assert frame.time_seconds < stretch.end_seconds

    def test_items_have_the_times_and_ids_of_their_frames(self, clip: Path, way: str) -> None:
        chosen = decoded(clip, sampler(way))
        found = list(items(clip, way))
        assert [item.id for item in found] == [f"clip.mp4#t={time:.3f}" for time in chosen]
        if way == "scenes":  # each stands for its whole scene
            assert (found[0].time_seconds, found[-1].end_seconds) == (0.0, FRAMES / FPS)
            return
        assert [item.time_seconds for item in found] == chosen
        ends = [item.end_seconds for item in found]
        assert ends[:-1] == chosen[1:]
        assert ends[-1] == pytest.approx(FRAMES / FPS)
