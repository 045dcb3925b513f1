"""Frames that are decoded without their pixels change no other frame: in the streams that x264
writes, whatever its settings.
"""

from __future__ import annotations

import contextlib
import random
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from tests.media import HEIGHT, WIDTH, write_video
from vlmbatch.core import UInt8Array
from vlmbatch.read.video import file as video_file
from vlmbatch.read.video.file import VideoFile
from vlmbatch.read.video.h264 import B, P, Slice, Stream
from vlmbatch.read.video.h264_bits import Bits, Unsupported, se, ue, write_nal
from vlmbatch.read.video.references import References
from vlmbatch.read.video.skipping import Step
from vlmbatch.read.video.sparing import open_sparing

LIMIT = 10**9
PYRAMID = "b-adapt=0:bframes=3:b-pyramid=normal"
SETTINGS = {
    "one reference": f"{PYRAMID}:ref=1",
    "sixteen references": f"{PYRAMID}:ref=16:mixed-refs=1",
    "long pyramids": "b-adapt=0:bframes=15:b-pyramid=normal:ref=1",
    "forgetting": "b-adapt=0:bframes=5:b-pyramid=strict:ref=3",
    "no arithmetic coding": f"{PYRAMID}:ref=1:cabac=0",
    "weights": f"{PYRAMID}:ref=1:weightp=2:weightb=1",
    "temporal prediction": f"{PYRAMID}:ref=1:direct=temporal",
    "slices": f"{PYRAMID}:ref=1:slices=3",
    "open groups": f"{PYRAMID}:ref=1:open-gop=1",
    "fields": f"{PYRAMID}:ref=1:interlaced=1",
    "no reordering": "bframes=0:ref=1",
}
SPARING = {*SETTINGS} - {"sixteen references", "fields", "no reordering"}
NOT_READ = {"fields", "no reordering"}


def written(path: Path, settings: str, count: int = 150) -> Path:
    """A video of things that move apart, with a fade."""
    rng = np.random.default_rng(1)
    ground, thing = (rng.integers(0, 256, (HEIGHT, WIDTH + 200, 3), np.uint8) for _ in range(2))

    def draw(number: int) -> UInt8Array:
        left = int(60 + 50 * np.sin(number / 9))
        picture = ground[:, left : left + WIDTH].copy()
        picture[10:30, 20:60] = thing[10:30, 3 * number % 200 : 3 * number % 200 + 40]
        return (picture * (0.5 + 0.5 * np.cos(number / 11))).astype(np.uint8)

    encoder = {"preset": "medium", "x264-params": settings}
    return write_video(path, count, fps=25, key_every=37, draw=draw, encoder=encoder)


def pictures(path: Path, numbers: list[int]) -> Iterator[tuple[float, UInt8Array]]:
    """The frames of these numbers."""
    times = [number / 25 for number in numbers]
    with VideoFile(str(path), LIMIT) as video:
        for frame in video.frames(
            lambda after: next((time for time in times if time >= after), None)
        ):
            if any(abs(frame.time_seconds - time) < 1e-6 for time in times):
                yield frame.time_seconds, frame.rgb()


@pytest.mark.parametrize("name", SETTINGS)
def test_wanted_frames_are_what_decoding_everything_gives(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    path = written(tmp_path / "a.mp4", SETTINGS[name])
    spared: list[Slice] = []
    without_pixels = Stream.without_pixels
    monkeypatch.setattr(
        Stream,
        "without_pixels",
        lambda self, header: spared.append(header) or without_pixels(self, header),
    )
    with VideoFile(str(path), LIMIT) as video:
        everything = {frame.time_seconds: frame.rgb() for frame in video.frames()}
    assert not spared
    rng = random.Random(name)
    for share in (0.02, 0.1, 0.4):
        numbers = sorted(rng.sample(range(150), int(150 * share)))
        found = list(pictures(path, numbers))
        assert [time for time, _ in found] == [number / 25 for number in numbers]
        assert all(np.array_equal(picture, everything[time]) for time, picture in found)
    assert bool(spared) == (name in SPARING)


def flv_tags(content: bytes) -> Iterator[tuple[int, bytes]]:
    """Time in milliseconds and body of the video tags of an FLV file."""
    place = 13
    while place < len(content):
        size, time = (
            int.from_bytes(content[place + 1 : place + 4], "big"),
            int.from_bytes(content[place + 4 : place + 7], "big"),
        )
        if content[place] == 9:
            yield time, content[place + 11 : place + 11 + size]
        place += 11 + size + 4


def joined(path: Path, first: str, second: str) -> Path:
    """A recording whose parameter sets change in the middle, as when a live stream is begun anew."""
    parts = [
        written(path.with_name(f"{number}.flv"), settings).read_bytes()
        for number, settings in enumerate((first, second))
    ]
    content = parts[0][:13]
    for number, part in enumerate(parts):
        for time, body in flv_tags(part):
            if number or body[1] != 2:  # which ends the sequence
                head = (
                    b"\x09"
                    + len(body).to_bytes(3, "big")
                    + (time + 6000 * number).to_bytes(3, "big")
                    + bytes(4)
                )
                content += head + body + (11 + len(body)).to_bytes(4, "big")
    path.write_bytes(content)
    return path


@pytest.mark.parametrize("second", ["forgetting", "no arithmetic coding", "slices"])
@pytest.mark.parametrize("gap", [0.5, 15.0])
def test_parameter_sets_that_change_are_not_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, second: str, gap: float
) -> None:
    monkeypatch.setattr(video_file, "SEEK_GAP_SECONDS", gap)
    monkeypatch.setattr(video_file, "_SEEK_MARGIN_SECONDS", 0.3)
    path = joined(tmp_path / "a.flv", SETTINGS["one reference"], SETTINGS[second])
    with VideoFile(str(path), LIMIT) as video:
        everything = {round(frame.time_seconds * 25): frame.rgb() for frame in video.frames()}
        assert (len(everything), video.num_broken) == (300, 0)
    for numbers in ([155], [200], [280], [295], [10, 290], range(0, 300, 7)):
        found = list(pictures(path, list(numbers)))
        assert [round(time * 25) for time, _ in found] == list(numbers)
        assert all(np.array_equal(picture, everything[round(time * 25)]) for time, picture in found)


@pytest.mark.parametrize("name", SETTINGS)
def test_headers_are_read_or_refused(tmp_path: Path, name: str) -> None:
    import av

    with av.open(str(written(tmp_path / "a.mp4", SETTINGS[name]))) as container:
        extradata = container.streams.video[0].codec_context.extradata or b""
        packets = [bytes(packet) for packet in container.demux(video=0) if packet.size]
    try:
        stream = Stream(extradata)
        references = References(stream.sequence)
        refers_to = [
            references.add(stream.slices(packet), number) for number, packet in enumerate(packets)
        ]
    except Unsupported:
        assert name in NOT_READ
        return
    assert name not in NOT_READ
    assert refers_to[0] == []
    assert all(set(numbers) <= set(range(number)) for number, numbers in enumerate(refers_to))
    if name == "one reference":
        kinds = [stream.slices(packet)[0] for packet in packets]
        assert {
            len(set(numbers))
            for numbers, header in zip(refers_to, kinds, strict=True)
            if header.kind == P
        } == {1}
        assert {
            len(set(numbers))
            for numbers, header in zip(refers_to, kinds, strict=True)
            if header.kind == B
        } == {2}


def test_cut_and_strange_packets_are_refused(tmp_path: Path) -> None:
    import av

    with av.open(str(written(tmp_path / "a.mp4", SETTINGS["one reference"], 10))) as container:
        extradata = container.streams.video[0].codec_context.extradata or b""
        packet = next(bytes(packet) for packet in container.demux(video=0) if packet.size)
    stream = Stream(extradata)
    for content in (b"", packet[:-1], packet[:3], b"\0\0\0\1\x67", b"\0\0\0\2\x65\0", b"\0\0\0\0"):
        with pytest.raises(Unsupported):
            stream.slices(content)
    for content in (b"", b"\0\0\0\1" + extradata, extradata[:12], extradata[:5] + b"\xe0\0"):
        with pytest.raises(Unsupported):
            Stream(content)
        assert open_sparing("h264", content) is None
    assert open_sparing("hevc", extradata) is None
    rng = random.Random(0)
    for _ in range(300):
        damaged = bytearray(packet)
        damaged[rng.randrange(min(60, len(packet)))] = rng.randrange(256)
        with contextlib.suppress(Unsupported):
            References(stream.sequence).add(stream.slices(bytes(damaged)), None)


def test_a_header_that_cannot_be_read_ends_the_sparing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = written(tmp_path / "a.mp4", SETTINGS["one reference"])
    with VideoFile(str(path), LIMIT) as video:
        everything = {frame.time_seconds: frame.rgb() for frame in video.frames()}
    slices, num_read = Stream.slices, 0

    def failing(self: Stream, packet: bytes) -> list[Slice]:
        nonlocal num_read
        num_read += 1
        if num_read == 40:
            raise Unsupported("for the test")
        return slices(self, packet)

    monkeypatch.setattr(Stream, "slices", failing)
    assert all(
        np.array_equal(picture, everything[time])
        for time, picture in pictures(path, [3, 33, 60, 110])
    )
    assert num_read == 40


def test_steps_hold_no_more_packets_than_are_held_back(tmp_path: Path) -> None:
    import av

    from vlmbatch.read.video.sparing import H264Sparing

    with av.open(str(written(tmp_path / "a.mp4", SETTINGS["one reference"]))) as container:
        sparing = open_sparing("h264", container.streams.video[0].codec_context.extradata)
        assert isinstance(sparing, H264Sparing)
        held: list[Step] = []
        for packet in container.demux(video=0):
            if packet.size:
                held.append(
                    Step(packet, packet.pts, packet.is_keyframe, is_shown=True, wanted=True)
                )
                sparing.spare(held, len(held))
                held.clear()
    assert not sparing._known


@pytest.mark.parametrize("number", [0, 1, 2, 7, 8, 255, 2**16, 2**31])
def test_numbers_are_read_as_they_are_written(number: int) -> None:
    nal = write_nal(0x41, ue(number) + se(-(number // 2)) + se(number // 2) + "0" * 64 + ue(3))
    assert b"\0\0\0" not in nal
    assert b"\0\0\1" not in nal
    bits = Bits(nal)
    assert (bits.ue(), bits.se(), bits.se(), bits.u(64), bits.ue()) == (
        number,
        -(number // 2),
        number // 2,
        0,
        3,
    )
