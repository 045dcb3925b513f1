"""The frames that each way of choosing takes, on frames that are only times."""

from __future__ import annotations

import dataclasses
import logging
import math
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vlmbatch.job import Job
from vlmbatch.sample import WAYS, make_sampler
from vlmbatch.sample.base import MAX_CLIP_FRAMES
from vlmbatch.sample.fps import Fps, clip_indices


@dataclasses.dataclass(frozen=True)
class Still:
    """A frame without a picture."""

    time_seconds: float
    duration_seconds: float = 0.1
    stored_size: tuple[int, int] = (16, 9)


class Film:
    """A video of given times. Counts the frames that are held at once."""

    def __init__(self, times: Sequence[float], end_seconds: float) -> None:
        self.times, self.end_seconds = list(times), end_seconds
        self.taken = 0
        self.packet_times: object | None = object()
        self.step_seconds = 0.1

    def frames(
        self, next_instant: Callable[[float], float | None] | None = None
    ) -> Iterator[Still]:
        for time in self.times:
            self.taken += 1
            yield Still(time)

    def key_frames(self, start_seconds: float = 0.0) -> Iterator[Still]:
        return (Still(time) for time in self.key_times() if time >= start_seconds)

    def frame_times(self) -> list[float]:
        return self.times

    def key_times(self) -> list[float]:
        return self.times[::12]


def film(count: int = 100, fps: float = 10.0, first: float = 0.0) -> Film:
    return Film([first + number / fps for number in range(count)], first + count / fps)


def chosen(video: Film, **options: object) -> list[list[float]]:
    sampler = make_sampler(Job(media="video", **options))
    return [
        [round(frame.time_seconds, 6) for frame in stretch.choose(video)]
        for stretch in sampler(video)
    ]


def test_fps_takes_the_frames_on_screen_at_whole_multiples() -> None:
    assert chosen(film()) == [[float(second) for second in range(10)]]
    assert chosen(film(30), fps=2.0) == [[0, 0.5, 1, 1.5, 2, 2.5]]
    assert chosen(film(30), fps=0.5) == [[0, 2]]
    assert chosen(film(5), fps=1000.0) == [[0, 0.1, 0.2, 0.3, 0.4]]


def test_a_frame_that_stands_over_several_instants_is_taken_once() -> None:
    assert chosen(Film([0, 0.9, 5.0, 5.5], 6.0)) == [[0, 0.9, 5.0]]


def test_the_first_frame_stands_for_what_comes_before_it() -> None:
    assert chosen(Film([0.5, 0.8, 1.2], 2.0)) == [[0.5, 0.8]]


def test_no_instant_at_or_after_the_end() -> None:
    assert chosen(Film([0, 0.5], 1.0)) == [[0]]
    assert chosen(Film([0, 0.5], 1.1)) == [[0, 0.5]]


@pytest.mark.parametrize("end", [8.96, 8.9997, 9.0, 9.0003, 9.04])
@pytest.mark.parametrize("per", ["frame", "window"])
def test_an_instant_within_a_rounding_of_the_end_is_none(end: float, per: str) -> None:
    video = Film([number / 10 for number in range(90)], end)
    option: dict[str, object] = {"window": 1.0} if per == "window" else {}
    seconds = [float(second) for second in range(9)]
    expected = [seconds] if per == "frame" else [[second] for second in seconds]
    assert chosen(video, per=per, **option) == expected
    assert chosen(Film(video.times, 9.06)) == [[*seconds, 8.9]]
    (window,) = chosen(video, per="window", window=30.0)
    assert window == seconds


def test_a_stated_end_before_the_last_frame_does_not_hide_it() -> None:
    assert chosen(Film([0, 1.0, 2.0], 0.5)) == [[0, 1.0, 2.0]]


def test_times_that_are_no_binary_fractions_are_met() -> None:
    thirds = [number * 1001 / 30000 for number in range(300)]
    assert chosen(Film(thirds, 10.01), fps=30000 / 1001) == [[round(time, 6) for time in thirds]]
    assert chosen(film(400, 10.0), fps=0.1) == [[0, 10, 20, 30]]


@given(
    gaps=st.lists(st.integers(1, 3000), min_size=1, max_size=30),
    fps=st.sampled_from([0.3, 1.0, 2.0, 7.0, 25.0]),
    start=st.sampled_from([0.0, 1.5]),
    end=st.sampled_from([None, 4.0]),
)
def test_fps_is_what_the_definition_says(
    gaps: list[int], fps: float, start: float, end: float | None
) -> None:
    times = [sum(gaps[:number]) / 1000 for number in range(len(gaps))]
    stop = times[-1] + gaps[-1] / 1000
    expected = []
    for number in range(10_000):
        instant = start + number / fps
        if instant >= min(stop, end or math.inf) - 1e-6:
            break
        if instant > times[-1] + 1e-6 and instant >= stop - 0.05:
            break
        shown = [time for time in times if time <= instant + 1e-6] or times[:1]
        if shown[-1] not in expected:
            expected.append(shown[-1])
    assert chosen(Film(times, stop), fps=fps, start=start, end=end) == [
        [round(time, 6) for time in expected]
    ]


def test_every_counts_from_the_first_frame_asked_for() -> None:
    assert chosen(film(10), every=4) == [[0, 0.4, 0.8]]
    assert chosen(film(30), every=5, start=1.0, end=2.0) == [[1.0, 1.5]]
    assert chosen(film(30), every=5, start=1.05) == [[1.1, 1.6, 2.1, 2.6]]


@pytest.mark.parametrize(("total", "wanted"), [(100, 8), (5, 8), (1, 3), (7, 7), (10, 1)])
def test_num_frames_spreads_evenly_by_number(total: int, wanted: int) -> None:
    numbers = np.unique(np.linspace(0, total - 1, min(wanted, total), dtype=int))
    assert chosen(film(total), num_frames=wanted) == [[number / 10 for number in numbers]]


def test_num_frames_of_a_stretch() -> None:
    assert chosen(film(100), num_frames=3, start=2.0, end=4.0) == [[2.0, 2.9, 3.9]]


def test_at_takes_the_frames_on_screen_in_order_of_time(caplog: pytest.LogCaptureFixture) -> None:
    assert chosen(film(30), at=(1.25, 0.0, 1.29, 2.95)) == [[0, 1.2, 2.9]]
    assert not caplog.text
    assert chosen(film(30), at=(1.25, 99.0)) == [[1.2]]
    assert "no frame at 99 s: the video ends at 3.000 s" in caplog.text


def test_a_stretch_begins_with_the_frame_on_screen_at_its_start() -> None:
    assert chosen(Film([0, 0.7, 1.9, 3.0], 4.0), start=1.0, end=3.0) == [[0.7, 1.9]]


def test_choosing_ends_with_the_last_instant() -> None:
    video = film(10_000)
    assert chosen(video, at=(0.5, 1.0)) == [[0.5, 1.0]]
    assert video.taken == 12


def reference_indices(
    total: int, fps: float, duration: float, num_frames: int, native_fps: float
) -> list[int]:
    """``sample_frames`` of transformers 5.23, models/smolvlm/video_processing_smolvlm.py, written
    down step by step.
    """
    wanted = max(1, min(round(fps * duration), num_frames))
    start, end = 0, total - 1
    if duration - 2 > num_frames * fps:
        start, end = int(native_fps), int(total - native_fps)
    start, end = max(0, start), min(end, total - 1)
    if start >= end:
        start, end = 0, total - 1
    return [int(index) for index in np.unique(np.linspace(start, end, wanted, dtype=int))]


@given(
    total=st.integers(1, 5000),
    native_fps=st.sampled_from([1.0, 5.0, 10.0, 30.0]),
    fps=st.sampled_from([0.5, 1.0, 2.0]),
)
def test_a_clip_takes_the_frames_that_the_checkpoint_takes(
    total: int, native_fps: float, fps: float
) -> None:
    duration = total / native_fps
    assert clip_indices(total, duration, fps) == reference_indices(
        total, fps, duration, MAX_CLIP_FRAMES, total / duration
    )


def test_a_clip_is_one_span() -> None:
    assert chosen(film(60), per="clip") == [[0, 1.1, 2.3, 3.5, 4.7, 5.9]]
    assert chosen(film(60), per="clip", num_frames=16) == [
        [number / 10 for number in np.linspace(0, 59, 16, dtype=int)]
    ]
    assert chosen(film(60), per="clip", at=(1.0, 2.0)) == [[1, 2]]
    assert chosen(film(60), per="clip", start=2.0, end=4.0) == [[2.0, 3.9]]


def test_every_in_a_clip_is_thinned_with_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        (times,) = chosen(film(1000), per="clip", every=2)
    assert len(times) == MAX_CLIP_FRAMES
    assert times[0] == 0
    assert times[-1] == 99.8
    assert "64 of the 500 frames" in caplog.text


def test_windows_cover_the_video() -> None:
    sampler = make_sampler(Job(media="video", per="window", window=4.0, start=1.0))
    assert [(stretch.start_seconds, stretch.end_seconds) for stretch in sampler(film(100))] == [
        (1.0, 5.0),
        (5.0, 9.0),
        (9.0, 10.0),
    ]
    assert chosen(film(100), per="window", window=4.0, start=1.0) == [
        [1, 2, 3, 4],
        [5, 6, 7, 8],
        [9],
    ]
    assert chosen(film(100), per="window", window=5.0, num_frames=2) == [[0, 4.9], [5, 9.9]]
    assert chosen(film(100), per="window", window=5.0, every=20) == [[0, 2, 4], [5, 7, 9]]
    assert chosen(film(100), per="window", window=5.0, at=(6.0, 7.0)) == [[6, 7]]


def test_a_last_window_under_a_second_is_part_of_the_one_before() -> None:
    def windows(count: int, **options: object) -> list[tuple[float, float]]:
        sampler = make_sampler(Job(media="video", per="window", **options))
        return [(stretch.start_seconds, stretch.end_seconds) for stretch in sampler(film(count))]

    assert windows(109, window=5.0) == [(0, 5), (5, 10.9)]
    assert windows(110, window=5.0) == [(0, 5), (5, 10), (10, 11)]
    assert windows(8, window=5.0) == [(0, 0.8)]
    assert windows(10, window=0.5) == [(0, 0.5), (0.5, 1)]
    assert chosen(film(109), per="window", window=5.0, fps=0.5)[-1] == [5, 7, 9]


def test_a_clip_of_more_frames_than_one_prompt_takes_says_so(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with caplog.at_level(logging.WARNING):
        chosen(film(600), per="clip")
    assert not caplog.text
    with caplog.at_level(logging.WARNING):
        chosen(film(700), per="clip")
    assert "64 of the 70 frames" in caplog.text


def test_a_window_has_no_more_frames_than_the_checkpoint_takes(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with caplog.at_level(logging.WARNING):
        (times,) = chosen(film(1000, 10.0), per="window", window=100.0, fps=5.0)
    assert "64 of the 500 frames of a window" in caplog.text
    assert "--window 12.8 takes all" in caplog.text
    assert len(times) == MAX_CLIP_FRAMES
    assert times[0] == 0
    assert times[-1] == 99.8


def test_nothing_is_asked_for_past_the_end() -> None:
    for per in ("clip", "window"):
        assert chosen(film(10), per=per, start=60.0) == []


@pytest.mark.parametrize("name", WAYS)
def test_every_way_takes_nothing_from_a_video_without_frames(name: str) -> None:
    option: dict[str, object] = {
        "fps": {"fps": 1.0},
        "every": {"every": 2},
        "num_frames": {"num_frames": 3},
        "at": {"at": (0.0,)},
    }.get(name, {name: True})
    assert chosen(Film([], 0.0), **option) == [[]]


def test_frames_are_streamed() -> None:
    video = film(1_000_000)
    first = next(iter(Fps(1.0).frames(video, 0.0, math.inf)))
    assert first.time_seconds == 0
    assert video.taken == 2


class Sparse(Film):
    """A film that leaves out all that it may: what is on screen at no instant."""

    def frames(
        self, next_instant: Callable[[float], float | None] | None = None
    ) -> Iterator[Still]:
        ended = False
        for number, time in enumerate(self.times):
            due = next_instant(time - 1e-6 if number else -math.inf) if next_instant else time
            until = self.times[number + 1] if number + 1 < len(self.times) else math.inf
            if due is None or due < until - 5e-7:
                assert not ended, "it goes on after the frame that ends the last one"
                ended = due is None
                self.taken += 1
                yield Still(time)


@given(
    gaps=st.lists(st.integers(1, 3000), min_size=1, max_size=60),
    first=st.sampled_from([0, 40, 700]),
    way=st.sampled_from(
        [
            {"fps": 0.3},
            {"fps": 1.0},
            {"fps": 7.0},
            {"every": 3},
            {"num_frames": 4},
            {"at": (0.0, 0.04, 2.5, 2.6, 30.0)},
            {"keyframes": True},
        ]
    ),
    start=st.sampled_from([0.0, 1.5]),
    end=st.sampled_from([None, 4.0]),
    per=st.sampled_from(["frame", "clip", "window"]),
)
def test_what_may_be_left_out_changes_nothing(
    gaps: list[int], first: int, way: dict[str, object], start: float, end: float | None, per: str
) -> None:
    times = [(first + sum(gaps[:number])) / 1000 for number in range(len(gaps))]
    stop = times[-1] + gaps[-1] / 1000
    options: dict[str, object] = {
        **way,
        "start": start,
        "end": end,
        "per": per,
        **({"window": 2.0} if per == "window" else {}),
    }
    assert chosen(Sparse(times, stop), **options) == chosen(Film(times, stop), **options)


def test_key_frames_of_a_stretch() -> None:
    assert chosen(film(60), keyframes=True) == [[0, 1.2, 2.4, 3.6, 4.8]]
    assert chosen(film(60), keyframes=True, start=1.2, end=3.6) == [[1.2, 2.4]]
    assert chosen(film(60), keyframes=True, per="clip") == [[0, 1.2, 2.4, 3.6, 4.8]]
    assert chosen(film(60), keyframes=True, per="window", window=3.0) == [[0, 1.2, 2.4], [3.6, 4.8]]


def test_every_frame_of_a_video_whose_packets_have_no_times_is_counted_by_decoding() -> None:
    video = film(10)
    video.packet_times = None
    video.frame_times = lambda: pytest.fail("that would decode it twice")  # type: ignore[method-assign]
    assert chosen(video, every=4) == [[0, 0.4, 0.8]]
