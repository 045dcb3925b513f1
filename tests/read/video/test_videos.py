"""Videos: the right frame at the right time, upright, in every container."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.media import HEIGHT, WIDTH, number_of, numbered, write_video
from tests.read.video.videos import CONTAINERS, LIMIT, items, shown
from vlmbatch.core import UInt8Array
from vlmbatch.errors import DecodeError
from vlmbatch.job import Job
from vlmbatch.read.video import decoder
from vlmbatch.read.video.container import Demuxer
from vlmbatch.read.video.file import VideoFile
from vlmbatch.read.video.frame import DecodedFrame
from vlmbatch.sample import make_sampler

WAYS: list[dict[str, object]] = [
    {"fps": 0.4},
    {"num_frames": 4},
    {"at": (0.1, 6.05, 11.9)},
    {"every": 30, "start": 4.0},
    {"per": "window", "window": 4.0},
    {"keyframes": True},
    {"keyframes": True, "start": 3.0, "end": 9.0},
    {"keyframes": True, "per": "clip"},
]


class Whole:
    """A video that decodes everything, whatever is asked for."""

    def __init__(self, video: VideoFile) -> None:
        self._video = video

    def __getattr__(self, name: str) -> Any:
        return getattr(self._video, name)

    def frames(self, next_instant: object = None) -> Iterator[DecodedFrame]:
        return self._video.frames()

    def key_frames(self, start_seconds: float = 0.0) -> Iterator[DecodedFrame]:
        return (
            frame
            for frame in self._video.frames()
            if frame.is_key and frame.time_seconds >= start_seconds - 1e-6
        )


Chosen = list[tuple[float, UInt8Array]]


def chosen(path: Path, kind: Callable[[VideoFile], Any] = Whole, **options: object) -> Chosen:
    """Times and pictures of the frames that are chosen, decoding everything, or not."""
    sampler = make_sampler(Job(inputs=(str(path),), media="video", **options))
    with VideoFile(str(path), LIMIT) as video:
        return [
            (frame.time_seconds, frame.rgb())
            for stretch in sampler(video)
            for frame in stretch.choose(kind(video))
        ]


def same(found: Chosen, expected: Chosen) -> bool:
    return [time for time, _ in found] == [time for time, _ in expected] and all(
        np.array_equal(one, other) for (_, one), (_, other) in zip(found, expected, strict=True)
    )


def as_it_is(video: VideoFile) -> VideoFile:
    return video


@pytest.mark.parametrize(("name", "codec"), CONTAINERS)
def test_every_frame_comes_in_presentation_order_with_its_time(
    tmp_path: Path, name: str, codec: str
) -> None:
    found = items(write_video(tmp_path / name, 20, codec=codec), every=1)
    assert shown(found) == list(range(20))
    assert [item.time_seconds for item in found] == pytest.approx(
        [number / 10 for number in range(20)]
    )
    assert [item.end_seconds for item in found] == pytest.approx(
        [number / 10 for number in range(1, 21)]
    )
    assert [item.place for item in found] == [(0, number) for number in range(20)]


@pytest.mark.parametrize("name", ["a.avi", "a.h264"])
def test_streams_without_presentation_times_lose_no_frame(tmp_path: Path, name: str) -> None:
    path = write_video(tmp_path / name, 20, codec="mpeg4" if name == "a.avi" else "libx264", fps=25)
    assert shown(items(path, every=1)) == list(range(20))
    assert shown(items(path, num_frames=3)) == [0, 9, 19]


def test_ids_media_and_fingerprint(tmp_path: Path) -> None:
    path = write_video(tmp_path / "in" / "sub" / "clip.mp4", 25)
    found = items(tmp_path / "in")
    assert [item.id for item in found] == [
        "sub/clip.mp4#t=0.000",
        "sub/clip.mp4#t=1.000",
        "sub/clip.mp4#t=2.000",
    ]
    status = path.stat()
    assert {(item.media, item.fingerprint, item.source) for item in found} == {
        ("frame", f"{status.st_size}:{status.st_mtime_ns}", str(path))
    }


def test_ids_stay_apart_above_a_thousand_frames_a_second(tmp_path: Path) -> None:
    path = write_video(tmp_path / "a.mp4", 12, pts=range(12), time_base=Fraction(1, 10_000))
    found = items(path, every=1)
    assert len({item.id for item in found}) == 12


def test_variable_frame_rate_times_are_the_streams_own(tmp_path: Path) -> None:
    pts = [0, 40, 50, 400, 1000, 1001, 2500, 2600]
    path = write_video(tmp_path / "a.mp4", len(pts), pts=pts, time_base=Fraction(1, 1000))
    found = items(path, every=1)
    assert [item.time_seconds for item in found] == pytest.approx([time / 1000 for time in pts])
    assert shown(items(path, fps=2)) == [0, 3, 4, 5, 6]


def test_the_containers_start_is_time_zero(tmp_path: Path) -> None:
    path = write_video(tmp_path / "a.ts", 30, options={"output_ts_offset": "5"})
    assert [item.time_seconds for item in items(path, fps=1)] == pytest.approx([0, 1, 2])


@pytest.mark.parametrize("name", ["a.mkv", "a.nut", "a.mp4", "a.flv"])
def test_a_video_that_starts_late_ends_with_its_last_frame(tmp_path: Path, name: str) -> None:
    path = write_video(
        tmp_path / name, 20, pts=range(5000, 7000, 100), time_base=Fraction(1, 1000), b_frames=0
    )
    found = items(path, fps=1)
    assert [item.time_seconds for item in found] == pytest.approx([0, 1])
    assert [item.end_seconds for item in found] == pytest.approx([1, 2])
    (clip,) = items(path, per="clip")
    assert [clip.time_seconds, clip.end_seconds] == pytest.approx([0, 2])


def test_a_picture_that_begins_after_the_sound_keeps_its_delay(tmp_path: Path) -> None:
    import av

    path = write_video(
        tmp_path / "a.mkv",
        20,
        pts=range(500, 2500, 100),
        time_base=Fraction(1, 1000),
        b_frames=0,
        audio_from_seconds=0.0,
    )
    with av.open(str(path)) as container:
        times = [frame.time - container.start_time / 1e6 for frame in container.decode(video=0)]
    assert times[0] > 0.4
    found = items(path, every=1)
    assert [item.time_seconds for item in found] == pytest.approx(times)
    assert shown(found) == list(range(20))
    assert items(path, fps=1)[0].time_seconds == pytest.approx(times[0])


@pytest.mark.parametrize("degrees", [0, 90, 180, -90])
@pytest.mark.parametrize("hflip", [False, True])
def test_display_rotation_makes_frames_upright(tmp_path: Path, degrees: int, hflip: bool) -> None:
    (item,) = items(write_video(tmp_path / "a.mp4", 1, rotation=degrees, hflip=hflip))
    turned = np.rot90(numbered(0), degrees // 90)
    expected = turned[:, ::-1] if hflip else turned
    got = item.load().arrays()[0]
    assert got.shape == expected.shape
    assert got.flags.c_contiguous
    assert np.abs(got.astype(int) - expected).mean() < 12


@pytest.mark.parametrize("degrees", [90, 180, -90])
def test_rotation_is_what_opencv_shows(tmp_path: Path, degrees: int) -> None:
    import cv2

    path = write_video(tmp_path / "a.mp4", 1, rotation=degrees)
    _, expected = cv2.VideoCapture(str(path)).read()
    got = items(path)[0].load().arrays()[0]
    assert got.shape == expected.shape
    assert np.abs(got.astype(int) - expected[..., ::-1]).mean() < 12


def test_a_clip_is_one_item_with_the_times_of_its_frames(tmp_path: Path) -> None:
    (item,) = items(write_video(tmp_path / "clip.mp4", 60), per="clip")
    assert (item.id, item.media, item.time_seconds, item.end_seconds) == (
        "clip.mp4",
        "clip",
        0.0,
        6.0,
    )
    pixels = item.load()
    assert [number_of(frame) for frame in pixels.frames] == [0, 11, 23, 35, 47, 59]
    assert pixels.times_seconds == pytest.approx([0, 1.1, 2.3, 3.5, 4.7, 5.9])
    assert pixels.duration_seconds == 6.0


def test_windows_are_items_of_their_own(tmp_path: Path) -> None:
    found = items(write_video(tmp_path / "clip.mp4", 60), per="window", window=2.5)
    assert [item.id for item in found] == [
        "clip.mp4#t=0.000-2.500",
        "clip.mp4#t=2.500-5.000",
        "clip.mp4#t=5.000-6.000",
    ]
    assert [shown([item]) for item in found] == [[0, 10, 20], [25, 35, 45], [50]]
    assert found[1].load().duration_seconds == 6.0


@pytest.mark.parametrize(("name", "codec"), [*CONTAINERS, ("a.avi", "mpeg4")])
@pytest.mark.parametrize("key_every", [12, 1000])
def test_skipping_gives_the_frames_that_decoding_everything_gives(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, codec: str, key_every: int
) -> None:
    path = write_video(tmp_path / name, 120, codec=codec, key_every=key_every)
    everything = [chosen(path, **way) for way in WAYS]
    assert all(map(same, [chosen(path, as_it_is, **way) for way in WAYS], everything))
    monkeypatch.setattr(decoder, "SEEK_GAP_SECONDS", 0.5)
    monkeypatch.setattr(decoder, "SEEK_MARGIN_SECONDS", 0.3)
    assert all(map(same, [chosen(path, as_it_is, **way) for way in WAYS], everything))


@pytest.mark.parametrize(
    ("way", "most"),
    [({"fps": 1}, 150), ({"num_frames": 4}, 40), ({"at": (15.0,)}, 13), ({"keyframes": True}, 17)],
)
def test_skipping_decodes_less(tmp_path: Path, way: dict[str, object], most: int) -> None:
    path = write_video(tmp_path / "a.mp4", 200)
    job = Job(inputs=(str(path),), media="video", **way)
    with VideoFile(str(path), LIMIT) as video:
        (stretch,) = make_sampler(job)(video)
        assert [number_of(frame.rgb()) for frame in stretch.choose(video)]
        assert video.counts.num_decoded <= most


def test_a_seek_reads_less(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_video(tmp_path / "a.mp4", 600)
    read: list[object] = []
    packets = Demuxer.packets
    monkeypatch.setattr(
        Demuxer,
        "packets",
        lambda *arguments: (read.append(packet) or packet for packet in packets(*arguments)),
    )
    with VideoFile(str(path), LIMIT) as video:
        frames = list(video.frames(lambda after: 55.0 if after <= 55.0 else None))
    assert 55.0 in [frame.time_seconds for frame in frames]
    assert len(read) < 120


def test_only_sampled_frames_become_rgb(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    converted: list[float] = []
    rgb = DecodedFrame.rgb
    monkeypatch.setattr(
        DecodedFrame,
        "rgb",
        lambda frame: converted.append(frame.time_seconds) or rgb(frame),
    )
    found = items(write_video(tmp_path / "a.mp4", 30))
    assert not converted
    found[2].load()
    assert converted == [2.0]


@pytest.mark.parametrize(
    "way",
    [
        {"fps": 1},
        {"at": (0.1, 6.05, 11.9)},
        {"every": 9},
        {"scenes": True},
        {"per": "window", "window": 4.0},
    ],
)
def test_shuffled_frames_are_decoded_when_their_turn_comes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, way: dict[str, object]
) -> None:
    paths = [write_video(tmp_path / name, 60, fps=5, key_every=20) for name in ("a.mp4", "b.mkv")]
    wanted = [(item, shown([item])) for item in items(*paths, **way)]
    found = items(*paths, shuffle=True, **way)
    assert [(item.id, item.place, item.time_seconds, item.end_seconds) for item in found] == [
        (item.id, item.place, item.time_seconds, item.end_seconds) for item, _ in wanted
    ]
    opened: list[str] = []
    real = VideoFile.__init__

    def spy(self: VideoFile, path: str, *arguments: int) -> None:
        opened.append(path)
        real(self, path, *arguments)

    monkeypatch.setattr(VideoFile, "__init__", spy)
    assert [shown([item]) for item in reversed(found)] == [
        numbers for _, numbers in reversed(wanted)
    ]
    assert len(opened) == len(found)  # so nothing of them was kept


def test_too_many_pixels_are_refused(tmp_path: Path) -> None:
    (item,) = items(write_video(tmp_path / "a.mp4", 3), max_pixels=WIDTH)
    with pytest.raises(DecodeError, match="96 x 48 = 4,608 pixels are more than --max-pixels 96"):
        item.load()


@pytest.mark.parametrize(
    "name", ["a b.mp4", "12:30.mp4", "new\nline.mp4", "50%d.mp4", os.fsdecode(b"caf\xe9.mp4")]
)
def test_strange_names_are_opened(
    tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_video(tmp_path / "plain.mp4", 3).rename(tmp_path / name)
    monkeypatch.chdir(tmp_path)
    assert shown(items(Path(name))) == [0]
    assert shown(items(Path("."))) == [0]


def test_nothing_in_the_asked_stretch_is_a_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = write_video(tmp_path / "a.mp4", 10)
    for per in ("frame", "clip", "window"):
        caplog.clear()
        assert items(path, start=60.0, per=per) == []
        assert "no frame of it was asked for" in caplog.text


ENCODERS = {
    "closed": ("a.mp4", "libx264", {}),
    "open": ("a.mkv", "libx264", {"x264-params": "open-gop=1:bframes=3:b-pyramid=normal"}),
    "pyramid": ("a.mp4", "libx264", {"x264-params": "bframes=3:b-adapt=0:b-pyramid=normal:ref=1"}),
    "refresh": ("a.mkv", "libx264", {"x264-params": "intra-refresh=1:bframes=0"}),
    "hevc": (
        "a.mp4",
        "libx265",
        {"x265-params": "log-level=none:pools=none:frame-threads=1:bframes=4:open-gop=1"},
    ),
    "mpeg2": ("a.mpg", "mpeg2video", {}),
    "mpeg4": ("a.mkv", "mpeg4", {}),
    "vp8": ("a.webm", "libvpx", {"auto-alt-ref": "1", "lag-in-frames": "16"}),
    "vp9": ("a.webm", "libvpx-vp9", {"auto-alt-ref": "1", "lag-in-frames": "16"}),
    "av1": ("a.mkv", "libsvtav1", {"svtav1-params": "lp=1"}),
}


@pytest.mark.parametrize("kind", ENCODERS)
def test_skipping_gives_the_same_pictures_with_every_kind_of_reference(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    import av

    name, codec, encoder = ENCODERS[kind]
    if codec not in av.codecs_available:
        pytest.skip(f"this FFmpeg does not write {codec}")
    moving = np.random.default_rng(0).integers(0, 256, (HEIGHT, WIDTH + 100, 3), np.uint8)
    path = write_video(
        tmp_path / name,
        100,
        fps=25,
        codec=codec,
        key_every=23,
        encoder=encoder,
        draw=lambda number: np.ascontiguousarray(moving[:, number : number + WIDTH]),
    )
    ways: list[dict[str, object]] = [
        {"fps": 3},
        {"num_frames": 5},
        {"at": (0.9, 0.96, 1.9, 2.8)},
        {"keyframes": True},
    ]
    for way in ways:
        assert same(chosen(path, as_it_is, **way), chosen(path, **way))


@settings(max_examples=8)
@given(
    gaps=st.lists(st.integers(1, 900), min_size=5, max_size=60),
    key_every=st.integers(3, 30),
    b_frames=st.integers(0, 3),
    fps=st.sampled_from([0.7, 2.0, 9.0]),
)
def test_random_times_are_sampled_as_decoding_everything_would(
    tmp_path: Path, gaps: list[int], key_every: int, b_frames: int, fps: float
) -> None:
    pts = [sum(gaps[:number]) for number in range(len(gaps))]
    path = write_video(
        tmp_path / "a.mkv",
        len(pts),
        pts=pts,
        time_base=Fraction(1, 1000),
        key_every=key_every,
        b_frames=b_frames,
    )
    stop = (pts[-1] + 100) / 1000
    for way in ({"fps": fps}, {"num_frames": 4}, {"every": 3}):
        found = chosen(path, as_it_is, **way)
        assert same(found, chosen(path, **way))
        assert found[-1][0] <= stop


def test_a_stream_that_starts_in_the_middle_gives_what_can_be_decoded(tmp_path: Path) -> None:
    """As a recording of a broadcast does: without the key frame that the first packets refer to."""
    import av

    whole = write_video(tmp_path / "whole.ts", 60, encoder={"x264-params": "open-gop=1"})
    path = tmp_path / "cut.ts"
    with av.open(str(whole)) as source, av.open(str(path), "w") as target:
        stream = target.add_stream_from_template(source.streams.video[0])
        for number, packet in enumerate(source.demux(video=0)):
            if packet.size and number >= 5:
                packet.stream = stream
                target.mux(packet)
    ways: list[dict[str, object]] = [{"fps": 2}, {"every": 1}, {"keyframes": True}]
    for way in ways:
        assert same(chosen(path, as_it_is, **way), chosen(path, **way))
