"""Times that start anew in the middle of a file: one clock for all ways of sampling."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest

from tests.media import number_of, numbered, write_video
from vlmbatch.core import Item
from vlmbatch.engine.scripted import ScriptedEngine
from vlmbatch.job import Job
from vlmbatch.read import open_reader
from vlmbatch.read.video import decoder
from vlmbatch.read.video.file import VideoFile
from vlmbatch.run.pipeline import Run
from vlmbatch.sample import make_sampler
from vlmbatch.write import read_records

COUNTER_SECONDS = Fraction(1 << 33, 90_000)
"""The counter of MPEG-TS starts anew after it."""

KINDS = {
    "ts": ("ts", "libx264", {}),
    "open": ("ts", "libx264", {"x264-params": "open-gop=1:bframes=3"}),
    "mpeg2": ("ts", "mpeg2video", {}),
    "ps": ("mpg", "mpeg2video", {}),
    "vob": ("vob", "mpeg2video", {}),
    "ogv": ("ogv", "libtheora", {}),
}


def items(path: Path, **options: Any) -> list[Item]:
    job = Job(inputs=(str(path),), media="video", **options)
    return list(open_reader(job, sampler=make_sampler(job)))


def recording(path: Path, first: int, kind: str = "ts", start: float = 0.0) -> bytes:
    """Three seconds whose pictures are numbered from ``first`` on."""
    import av

    suffix, codec, encoder = KINDS[kind]
    if codec not in av.codecs_available:
        pytest.skip(f"this FFmpeg does not write {codec}")
    return write_video(
        path.with_name(f"{first}.{suffix}"),
        75,
        fps=25,
        codec=codec,
        key_every=25,
        encoder=encoder,
        draw=lambda number: numbered(first + number),
        options={"output_ts_offset": str(start)},
    ).read_bytes()


def joined(path: Path, kind: str = "ts", starts: tuple[float, ...] = (1.0, 0.513)) -> Path:
    """Recordings joined end to end, whose times start at these seconds."""
    path = path / f"joined.{KINDS[kind][0]}"
    path.write_bytes(
        b"".join(recording(path, 75 * number, kind, start) for number, start in enumerate(starts))
    )
    return path


def spans(found: list[Item]) -> list[tuple[float, float]]:
    return [(round(item.time_seconds or 0, 3), round(item.end_seconds or 0, 3)) for item in found]


def shown(found: list[Item]) -> list[int]:
    return [number_of(frame) for item in found for frame in item.load().arrays()]


WHOLE: list[tuple[dict[str, Any], list[int], list[float]]] = [
    ({"fps": 1.0}, [0, 25, 50, 75, 100, 125], [0, 1, 2, 3, 4, 5]),
    ({"every": 25}, [0, 25, 50, 75, 100, 125], [0, 1, 2, 3, 4, 5]),
    ({"num_frames": 4}, [0, 49, 99, 149], [0, 1.96, 3.96, 5.96]),
    ({"at": (0.5, 4.5)}, [12, 112], [0.48, 4.48]),
    ({"per": "window", "window": 1.0}, [0, 25, 50, 75, 100, 125], [0, 1, 2, 3, 4, 5]),
    ({"every": 50, "start": 2.0, "end": 5.0}, [50, 100], [2, 4]),
]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("way", range(len(WHOLE)))
def test_joined_recordings_are_sampled_as_one_video(tmp_path: Path, kind: str, way: int) -> None:
    path = joined(tmp_path, kind)
    options, numbers, times = WHOLE[way]
    found = items(path, **options)
    assert [item.time_seconds for item in found] == pytest.approx(times)
    assert shown(found) == numbers
    if "end" not in options:
        assert found[-1].end_seconds == pytest.approx(6.0)
    shuffled = items(path, shuffle=True, **options)
    assert [item.id for item in shuffled] == [item.id for item in found]
    assert spans(shuffled) == spans(found)
    assert shown(shuffled) == numbers


def test_a_clip_and_key_frames_are_those_of_the_whole(tmp_path: Path) -> None:
    path = joined(tmp_path)
    (clip,) = items(path, per="clip", num_frames=4)
    assert (clip.time_seconds, clip.end_seconds) == (0, pytest.approx(6.0))
    assert shown([clip]) == [0, 49, 99, 149]
    assert clip.load().duration_seconds == pytest.approx(6.0)
    assert shown(items(path, keyframes=True)) == [0, 25, 50, 75, 100, 125]
    assert spans(items(path, scenes=True))[-1][1] == 6.0


@pytest.mark.parametrize(
    ("starts", "seconds"),
    [
        ((2.0, 1.013, 0.5), (0, 3, 6)),
        ((0.0, 0.0, 0.0), (0, 3, 6)),
        ((5.0, 100.0), (0, 95)),  # a gap
        ((5.0, 4.0), (0, 3)),
        ((40_000.0, 5.0), (0, 3)),  # more than FFmpeg takes for a jump back
        ((float(COUNTER_SECONDS) - 2, 0.513), (0, 3)),  # the counter overflows in the first
        ((float(COUNTER_SECONDS) - 2, float(COUNTER_SECONDS) - 2), (0, 3)),
    ],
)
def test_a_jump_back_goes_on_and_a_gap_stays(
    tmp_path: Path, starts: tuple[float, ...], seconds: tuple[int, ...]
) -> None:
    path = joined(tmp_path, starts=starts)
    found = items(path, every=75)
    assert [item.time_seconds for item in found] == pytest.approx(list(seconds))
    assert shown(found) == [75 * number for number in range(len(starts))]
    assert found[-1].end_seconds == pytest.approx(seconds[-1] + 3)
    with VideoFile(str(path), 10**9) as video:
        decoded = [frame.time_seconds for frame in video.frames()]
        assert list(video.frame_times()) == pytest.approx(decoded)
        assert len(decoded) == 75 * len(starts)


@pytest.mark.parametrize("way", [{"fps": 2.0}, {"num_frames": 4}, {"keyframes": True}])
def test_a_small_step_back_is_the_same_with_and_without_skipping(
    tmp_path: Path, way: dict[str, Any]
) -> None:
    path = joined(tmp_path, starts=(1.0, 3.95))
    with VideoFile(str(path), 10**9) as video:
        times = {round(frame.time_seconds, 6) for frame in video.frames()}
    found = items(path, **way)
    assert {round(item.time_seconds or 0, 6) for item in found} <= times
    assert [item.id for item in items(path, shuffle=True, **way)] == [item.id for item in found]


def test_gaps_behind_a_restart_stay(tmp_path: Path) -> None:
    """A second recording whose picture stands for two seconds, as where the reception failed."""
    pts = [number if number < 40 else number + 50 for number in range(75)]
    second = write_video(
        tmp_path / "second.ts", 75, fps=25, pts=pts, draw=lambda number: numbered(75 + number)
    )
    path = tmp_path / "joined.ts"
    path.write_bytes(recording(path, 0, start=1.0) + second.read_bytes())
    expected = [number / 25 for number in [*range(75), *(75 + time for time in pts)]]
    for options in ({"every": 1}, {"every": 1, "shuffle": True}):
        found = items(path, **options)
        assert [item.time_seconds for item in found] == pytest.approx(expected)
    assert shown(items(path, fps=1.0)) == [0, 25, 50, 75, 100, 114, 125]


@pytest.mark.parametrize("gap_seconds", [0.2, 15.0])
def test_what_is_not_needed_of_joined_recordings_is_not_decoded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, gap_seconds: float
) -> None:
    """Nor is a time behind the restart looked for by a seek, which would find another one."""
    monkeypatch.setattr(decoder, "SEEK_GAP_SECONDS", gap_seconds)
    job = Job(inputs=("a",), media="video", at=(5.5,))
    with VideoFile(str(joined(tmp_path)), 10**9) as video:
        (stretch,) = make_sampler(job)(video)
        assert [number_of(frame.rgb()) for frame in stretch.choose(video)] == [137]
        assert video.counts.num_decoded < 60


@pytest.mark.parametrize(
    "way", [{"num_frames": 6}, {"every": 25}, {"per": "window", "window": 1.0}]
)
@pytest.mark.parametrize("shuffle", [False, True])
def test_a_second_run_with_another_video_behind_it_keeps_the_rows(
    tmp_path: Path, way: dict[str, Any], shuffle: bool
) -> None:
    path, output = joined(tmp_path), tmp_path / "out.jsonl"
    other = write_video(tmp_path / "z.mp4", 75, fps=25)

    def run(*inputs: Path) -> dict[str, Any]:
        options = {"media": "video", "output": str(output), "shuffle": shuffle, **way}
        job = Job.from_dict({"inputs": [*map(str, inputs)], **options})
        return Run(job, engine=ScriptedEngine()).start().summary

    run(path)
    first = [(row["id"], row["index"]) for row in read_records(output)]
    summary = run(path, other)
    assert summary["kept"]["rows"] == len(first) == 6
    rows = [(row["id"], row["index"]) for row in read_records(output)]
    assert rows[:6] == first
    assert [index for _, index in rows] == list(range(len(rows)))
    assert len({row_id for row_id, _ in rows}) == len(rows)
