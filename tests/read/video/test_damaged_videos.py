"""Damaged, truncated and empty videos: every frame that is there, one error, and the next video."""

from __future__ import annotations

import contextlib
from pathlib import Path

import numpy as np
import pytest

from tests.media import write_picture, write_sound, write_video
from tests.read.video.videos import CONTAINERS, LIMIT, items, shown
from vlmbatch.errors import DecodeError, ItemError, ReadError
from vlmbatch.job import Job
from vlmbatch.read import open_reader
from vlmbatch.read.video.container import Demuxer
from vlmbatch.read.video.file import VideoFile
from vlmbatch.sample import make_sampler


def test_a_download_that_broke_off_gives_its_frames_and_an_error(tmp_path: Path) -> None:
    path = write_video(tmp_path / "a.mp4", 60, options={"movflags": "faststart"})
    assert [item.id for item in items(path, end=2.0)] == ["a.mp4#t=0.000", "a.mp4#t=1.000"]
    whole = path.read_bytes()
    path.write_bytes(whole[: whole.index(b"mdat") + (len(whole) - whole.index(b"mdat")) * 2 // 3])
    for shuffle in (False, True):
        *found, last = items(path, shuffle=shuffle)
        assert [item.id for item in found][:3] == [
            "a.mp4#t=0.000",
            "a.mp4#t=1.000",
            "a.mp4#t=2.000",
        ]
        assert last.id == "a.mp4"
        with pytest.raises(
            DecodeError, match=r"cut off: the file ends before its frames from \d\.\d00 s on"
        ):
            last.load()
    assert (
        [item.id for item in items(path, end=2.0)]
        == [item.id for item in items(path, at=(0.0, 1.0))]
        == ["a.mp4#t=0.000", "a.mp4#t=1.000"]
    )
    first, second = items(path, per="window", window=5.0)
    assert shown([first])
    with pytest.raises(DecodeError, match="cut off"):
        second.load()


def broken(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


@pytest.mark.parametrize("per", ["frame", "clip", "window"])
def test_what_is_no_video_is_one_item_that_fails(tmp_path: Path, per: str) -> None:
    whole = write_video(tmp_path / "whole.mp4", 10).read_bytes()
    moov = whole.index(b"moov")
    folder = tmp_path / "in"
    folder.mkdir()
    broken(folder / "empty.mp4", b"")
    write_sound(folder / "sound.mp4")
    broken(folder / "text.mp4", b"only text\n" * 20)
    broken(folder / "truncated.mp4", whole[: moov - 4])
    broken(folder / "zeros.mkv", bytes(2000))
    found = items(folder, per=per)
    assert [item.id for item in found] == [
        "empty.mp4",
        "sound.mp4",
        "text.mp4",
        "truncated.mp4",
        "zeros.mkv",
    ]
    assert {item.media for item in found} == {"frame" if per == "frame" else "clip"}
    messages = []
    for item in found:
        with pytest.raises(DecodeError) as caught:
            item.load()
        messages.append(str(caught.value))
    assert messages[:2] == ["empty file", "no video stream"]
    assert all("\n" not in message for message in messages)


@pytest.mark.parametrize("per", ["frame", "clip", "window"])
def test_a_video_without_frames(tmp_path: Path, per: str) -> None:
    found = items(write_video(tmp_path / "a.mkv", 0), per=per)
    assert [item.id for item in found] == ["a.mkv"]
    with pytest.raises(DecodeError):
        found[0].load()


def test_missing_files_and_folders_are_read_errors(tmp_path: Path) -> None:
    for path in (tmp_path / "missing.mp4", tmp_path):
        with pytest.raises(ReadError):
            VideoFile(str(path), LIMIT)


def test_damage_in_the_middle_costs_what_is_damaged(tmp_path: Path) -> None:
    path = write_video(tmp_path / "a.mkv", 60, codec="mpeg4", b_frames=0, key_every=5)
    content = bytearray(path.read_bytes())
    middle = len(content) // 2
    content[middle : middle + 300] = bytes(300)
    path.write_bytes(content)
    found = items(path, every=1)
    good = []
    for item in found:
        try:
            good += shown([item])
        except (ItemError, AssertionError):
            continue
    assert good[:10] == list(range(10))
    assert good[-1] == 59


def test_packets_that_cannot_be_decoded_are_told_in_one_item(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import av

    path = write_video(tmp_path / "a.mp4", 30, codec="mpeg4", b_frames=0, key_every=5)
    decode = av.Packet.decode

    class Failing:
        """A packet that the decoder finds fault with."""

        def __init__(self, packet: av.Packet) -> None:
            self._packet = packet

        def __getattr__(self, name: str) -> object:
            return getattr(self._packet, name)

        def decode(self) -> list[av.VideoFrame]:
            frames = decode(self._packet)
            if any(round(frame.time * 10) in (12, 13) for frame in frames):
                raise av.error.InvalidDataError(1, "Invalid data")
            return frames

    packets = Demuxer.packets
    monkeypatch.setattr(Demuxer, "packets", lambda *args: map(Failing, packets(*args)))
    found = items(path, every=1)
    assert shown(found[:-1]) == [number for number in range(30) if number not in (12, 13)]
    assert found[-1].id == "a.mp4"
    with pytest.raises(
        DecodeError,
        match=r"damaged after 1\.100 s: 2 packets could not be decoded \(Invalid data\)",
    ):
        found[-1].load()


@pytest.mark.parametrize(("name", "codec"), CONTAINERS)
def test_random_damage_raises_nothing_but_item_errors(
    tmp_path: Path, name: str, codec: str
) -> None:
    whole = write_video(tmp_path / name, 30, codec=codec).read_bytes()
    random = np.random.default_rng(0)
    for number in range(12):
        content = np.frombuffer(whole, np.uint8).copy()
        places = random.integers(0, len(content), 1 + number * 2)
        content[places] = random.integers(0, 256, len(places))
        (tmp_path / name).write_bytes(content.tobytes())
        way: dict[str, object] = [{"every": 1}, {"num_frames": 3}, {"per": "clip"}][number % 3]
        for item in items(tmp_path / name, **way):
            with contextlib.suppress(ItemError):
                assert item.load().arrays()


def test_a_truncated_stream_gives_the_frames_that_are_there(tmp_path: Path) -> None:
    path = write_video(tmp_path / "a.ts", 60)
    path.write_bytes(path.read_bytes()[: path.stat().st_size * 2 // 3])
    found = [item for item in items(path, every=1) if item.time_seconds is not None]
    assert 20 < len(found) < 60


def test_one_bad_video_does_not_stop_the_next(tmp_path: Path) -> None:
    broken(tmp_path / "a.mp4", b"no")
    write_video(tmp_path / "b.mp4", 3)
    write_picture(tmp_path / "c.png")
    job = Job(inputs=(str(tmp_path),), media="video")
    reader = open_reader(job, sampler=make_sampler(job))
    assert [(item.id, item.place) for item in reader] == [
        ("a.mp4", (0, 0)),
        ("b.mp4#t=0.000", (1, 0)),
    ]
    assert reader.counts.other_media == 1
