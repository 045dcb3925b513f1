"""The stream that is taken of a file with several, its shape, and its own end."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.media import HEIGHT, WIDTH, number_of, numbered, write_video
from vlmbatch.core import Item
from vlmbatch.engine.scripted import ScriptedEngine
from vlmbatch.errors import DecodeError
from vlmbatch.job import Job
from vlmbatch.read import open_reader
from vlmbatch.run.pipeline import Run
from vlmbatch.sample import make_sampler
from vlmbatch.write import read_records


def items(path: Path, **options: Any) -> list[Item]:
    job = Job(inputs=(str(path),), media="video", **options)
    return list(open_reader(job, sampler=make_sampler(job)))


def shape(item: Item) -> tuple[int, ...]:
    return item.load().arrays()[0].shape


def write_streams(path: Path, *streams: tuple[int, int, str], cover: bool = False) -> Path:
    """Writes a second of each: width, height, and the names of its flags."""
    import av

    with av.open(str(path), "w") as container:
        made = []
        if cover:
            stream = container.add_stream("mjpeg", rate=1)
            stream.width, stream.height, stream.pix_fmt = 600, 400, "yuvj420p"
            stream.disposition = av.stream.Disposition.attached_pic
            made.append(stream)
        for width, height, flag in streams:
            stream = container.add_stream("libx264", rate=10, options={"preset": "ultrafast"})
            stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
            stream.disposition = av.stream.Disposition[flag] if flag else 0
            made.append(stream)
        container.start_encoding()
        for number in range(10):
            for stream in made[cover:] if number else made:
                black = np.zeros((stream.height, stream.width, 3), np.uint8)
                frame = av.VideoFrame.from_ndarray(black, format="rgb24")
                frame.pts, frame.time_base = number, Fraction(1, 10)
                container.mux(stream.encode(frame))
        for stream in made:
            container.mux(stream.encode(None))
    return path


@pytest.mark.parametrize(
    ("streams", "taken"),
    [
        (((160, 120, ""), (320, 240, "default")), 1),
        (((160, 120, "default"), (320, 240, "")), 0),
        (((160, 120, ""), (320, 240, "")), 1),
        (((160, 120, "default"), (320, 240, "default"), (240, 160, "default")), 1),
        (((160, 120, ""), (160, 90, "")), 0),
    ],
)
def test_the_default_stream_is_taken_and_then_the_largest(
    tmp_path: Path, streams: tuple[tuple[int, int, str], ...], taken: int
) -> None:
    path = write_streams(tmp_path / "a.mkv", *streams)
    sizes = [(height, width, 3) for width, height, _ in streams]
    assert shape(items(path)[0]) == sizes[taken]
    for number, size in enumerate(sizes):
        for options in ({}, {"shuffle": True}, {"per": "clip"}, {"per": "window", "window": 1.0}):
            assert shape(items(path, stream=number, **options)[0]) == size


@pytest.mark.parametrize("name", ["a.mp4", "a.mkv"])
def test_a_cover_is_no_stream_of_the_video(tmp_path: Path, name: str) -> None:
    path = write_streams(tmp_path / name, (160, 120, ""), cover=name == "a.mp4")
    assert shape(items(path)[0]) == shape(items(path, stream=0)[0]) == (120, 160, 3)
    (item,) = items(path, stream=1)
    with pytest.raises(DecodeError, match="no video stream 1: the file has 1, so --stream takes 0"):
        item.load()


def test_a_stream_that_is_not_there_is_an_error_row(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    write_streams(tmp_path / "in" / "a.mkv", (160, 120, ""), (320, 240, ""))
    write_streams(tmp_path / "in" / "b.mkv", *[(96, 48, "")] * 3)
    output = tmp_path / "out.jsonl"
    job = Job(inputs=(str(tmp_path / "in"),), media="video", stream=2, output=str(output))
    Run(job, engine=ScriptedEngine()).start()
    first, second = read_records(output)
    assert (first["id"], first["status"]) == ("a.mkv", "error")
    assert first["error"] == "no video stream 2: the file has 2, so --stream takes 0 to 1"
    assert (second["id"], second["status"], second["height"]) == ("b.mkv#t=0.000", "ok", 48)


@pytest.mark.parametrize("name", ["a.mp4", "a.mkv", "a.ts", "a.mov"])
@pytest.mark.parametrize("aspect", [Fraction(2), Fraction(64, 45), Fraction(1, 2), Fraction(8, 9)])
def test_frames_have_the_shape_that_a_player_shows(
    tmp_path: Path, name: str, aspect: Fraction
) -> None:
    path = write_video(tmp_path / name, 10, aspect=aspect)
    width = round(WIDTH * aspect)
    stretched = np.asarray(Image.fromarray(numbered(0)).resize((width, HEIGHT)))
    for options in ({}, {"per": "clip"}, {"shuffle": True}):
        pixels = items(path, **options)[0].load().arrays()[0]
        assert pixels.shape == (HEIGHT, width, 3)
        assert np.abs(pixels.astype(int) - stretched).mean() < 12
        back = np.asarray(Image.fromarray(pixels).resize((WIDTH, HEIGHT)))
        assert number_of(back) == 0


@pytest.mark.parametrize(("degrees", "size"), [(90, (192, 48)), (180, (48, 192)), (-90, (192, 48))])
def test_pixels_are_stretched_before_they_are_turned(
    tmp_path: Path, degrees: int, size: tuple[int, int]
) -> None:
    path = write_video(tmp_path / "a.mp4", 1, rotation=degrees, aspect=Fraction(2))
    (item,) = items(path)
    pixels = item.load().arrays()[0]
    assert pixels.shape == (*size, 3)
    upright = np.asarray(Image.fromarray(np.rot90(pixels, -degrees // 90)).resize((WIDTH, HEIGHT)))
    assert number_of(upright) == 0


def test_width_and_height_of_a_row_are_those_that_are_shown(tmp_path: Path) -> None:
    path = write_video(tmp_path / "a.mp4", 1, aspect=Fraction(2))
    job = Job(inputs=(str(path),), media="video", output=str(tmp_path / "out.jsonl"))
    Run(job, engine=ScriptedEngine()).start()
    (row,) = read_records(tmp_path / "out.jsonl")
    assert (row["width"], row["height"]) == (2 * WIDTH, HEIGHT)


def test_the_shown_size_counts_for_the_limit_of_pixels(tmp_path: Path) -> None:
    (item,) = items(
        write_video(tmp_path / "a.mp4", 1, aspect=Fraction(2)), max_pixels=WIDTH * HEIGHT
    )
    with pytest.raises(DecodeError, match="192 x 48"):
        item.load()


@pytest.mark.parametrize("name", ["a.mp4", "a.mkv", "a.ts", "a.mov", "a.flv", "a.nut", "a.avi"])
def test_a_video_ends_with_its_picture_whatever_the_sound(tmp_path: Path, name: str) -> None:
    path = write_video(
        tmp_path / name,
        30,
        codec="mpeg4" if name == "a.avi" else "libx264",
        b_frames=0,
        audio_from_seconds=0.0,
        audio_seconds=10.0,
    )
    end = pytest.approx((items(path, every=1)[-1].time_seconds or 0.0) + 0.1)
    (clip,) = items(path, per="clip")
    assert clip.end_seconds == end
    assert clip.end_seconds < 3.3  # with the delay of the sound's encoder
    assert clip.load().duration_seconds == end
    assert items(path, fps=1.0)[-1].end_seconds == end
    assert items(path, per="window", window=2.0)[-1].end_seconds == end


def test_a_stated_end_before_the_last_frame_is_corrected(tmp_path: Path) -> None:
    """As FFmpeg writes it for slides with B-frames."""
    pts = [number if number < 5 else 3 * number for number in range(10)]
    path = write_video(tmp_path / "a.mp4", 10, fps=1, pts=pts, time_base=Fraction(1))
    for options in ({"per": "clip"}, {"per": "window", "window": 3.0}, {"every": 1}):
        last = items(path, **options)[-1]
        assert (last.end_seconds or 0) > 27
        assert number_of(last.load().arrays()[-1]) == 9


@pytest.mark.parametrize("b_frames", [0, 2])
def test_times_of_avi_begin_with_0(tmp_path: Path, b_frames: int) -> None:
    path = write_video(tmp_path / "a.avi", 30, codec="mpeg4", b_frames=b_frames)
    for options in ({"every": 1}, {"every": 1, "shuffle": True}):
        found = items(path, **options)
        assert [item.time_seconds for item in found] == pytest.approx([n / 10 for n in range(30)])
        assert [number_of(item.load().arrays()[0]) for item in found] == list(range(30))
    assert found[-1].end_seconds == pytest.approx(3.0)


def test_frames_before_the_first_key_frame_are_counted_once_they_are_decoded(
    tmp_path: Path,
) -> None:
    """As in a recording that begins in the middle of a broadcast."""
    path = write_video(tmp_path / "a.ts", 60, key_every=20)
    content = path.read_bytes()
    path.write_bytes(content[188 * (len(content) // 188 // 6) :])
    in_order, shuffled = items(path, every=5), items(path, every=5, shuffle=True)
    assert [item.id for item in shuffled] == [item.id for item in in_order]
    assert all(item.load() for item in shuffled)
