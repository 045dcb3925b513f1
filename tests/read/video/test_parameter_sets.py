"""Parameter sets that change in the middle of a stream, as when a live stream is begun anew."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from tests.media import HEIGHT, WIDTH, write_video
from vlmbatch.core import UInt8Array
from vlmbatch.read.video import decoder
from vlmbatch.read.video.file import VideoFile

LIMIT = 10**9
NOISE = np.random.default_rng(1).integers(0, 256, (HEIGHT, WIDTH + 200, 3), np.uint8)


def moving(number: int) -> UInt8Array:
    return np.ascontiguousarray(NOISE[:, number : number + WIDTH])


def tags(content: bytes) -> Iterator[tuple[int, bytes]]:
    """Time in milliseconds and body of the video tags of an FLV file."""
    place = 13
    while place < len(content):
        size = int.from_bytes(content[place + 1 : place + 4], "big")
        if content[place] == 9:
            time = int.from_bytes(content[place + 4 : place + 7], "big")
            yield time, content[place + 11 : place + 11 + size]
        place += 11 + size + 4


def joined(path: Path, *settings: str) -> Path:
    """Recordings of 6 seconds in one FLV file, whose times go on."""
    content = b""
    for number, setting in enumerate(settings):
        encoder = {"preset": "medium", "x264-params": setting}
        one = path.with_name(f"{number}.flv")
        write_video(one, 150, fps=25, key_every=37, draw=moving, encoder=encoder)
        content = content or one.read_bytes()[:13]
        for time, body in tags(one.read_bytes()):
            if number or body[1] != 2:  # a tag that ends the sequence
                head = len(body).to_bytes(3, "big") + (time + 6000 * number).to_bytes(3, "big")
                content += b"\x09" + head + bytes(4) + body + (11 + len(body)).to_bytes(4, "big")
    path.write_bytes(content)
    return path


@pytest.mark.parametrize("second", ["ref=3", "ref=1:cabac=0", "ref=1:slices=3"])
@pytest.mark.parametrize("gap_seconds", [0.5, 15.0])
def test_frames_after_a_change_are_those_of_decoding_everything(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, second: str, gap_seconds: float
) -> None:
    monkeypatch.setattr(decoder, "SEEK_GAP_SECONDS", gap_seconds)
    path = joined(tmp_path / "a.flv", "ref=1", second)
    with VideoFile(str(path), LIMIT) as video:
        everything = {round(frame.time_seconds * 25): frame.rgb() for frame in video.frames()}
        assert (len(everything), video.counts.num_broken) == (300, 0)
    for numbers in ([155], [200], [280], [295], [10, 290], [*range(0, 300, 7)]):
        times = [number / 25 for number in numbers]
        with VideoFile(str(path), LIMIT) as video:
            found = {
                round(frame.time_seconds * 25): frame.rgb()
                for frame in video.frames(
                    lambda after, times=times: next((time for time in times if time >= after), None)
                )
            }
        assert set(numbers) <= set(found)
        assert all(np.array_equal(found[number], everything[number]) for number in numbers)
