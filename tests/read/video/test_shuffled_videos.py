"""Shuffled frames: decoded when their turn comes, and the same rows as in order, also of damaged
videos.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.media import HEIGHT, WIDTH, write_video
from vlmbatch.core import UInt8Array
from vlmbatch.engine.scripted import ScriptedEngine
from vlmbatch.job import Job
from vlmbatch.read import open_reader
from vlmbatch.read.video import reader as videos
from vlmbatch.run.pipeline import Outcome, Run
from vlmbatch.sample import make_sampler
from vlmbatch.write import read_records

NOISE = np.random.default_rng(0).integers(0, 256, (HEIGHT, WIDTH + 200, 3), np.uint8)


def moving(number: int) -> UInt8Array:
    return np.ascontiguousarray(NOISE[:, number : number + WIDTH])


def damage(path: Path, how: str) -> Path:
    """Cuts a file off, or overwrites a fifth of it."""
    content = bytearray(path.read_bytes())
    size = len(content)
    if how == "cut":
        del content[size * 2 // 3 :]
    else:
        content[size // 2 : size * 7 // 10] = {
            "zeros": bytes,
            "noise": np.random.default_rng(1).bytes,
        }[how](size * 7 // 10 - size // 2)
    path.write_bytes(content)
    return path


def ask(path: Path, output: str, **options: object) -> Outcome:
    job = Job.from_dict(
        {"inputs": [str(path)], "media": "video", "output": str(path.parent / output), **options}
    )
    return Run(job, engine=ScriptedEngine()).start()


def rows(path: Path, output: str) -> list[Any]:
    return [
        (row["id"], row["index"], row["status"], row["error"], row["end_seconds"])
        for row in read_records(path.parent / output)
    ]


@pytest.mark.parametrize(
    ("name", "codec"), [("a.mp4", "libx264"), ("a.mp4", "mpeg4"), ("a.mkv", "libx264")]
)
@pytest.mark.parametrize("how", ["zeros", "noise", "cut"])
@pytest.mark.parametrize("way", [{"fps": 2}, {"every": 7}])
def test_damaged_videos_give_the_rows_that_they_give_in_order(
    tmp_path: Path, name: str, codec: str, how: str, way: dict[str, object]
) -> None:
    options = {"movflags": "faststart"} if name.endswith("mp4") else {}
    path = damage(
        write_video(
            tmp_path / name, 100, fps=25, codec=codec, key_every=30, draw=moving, options=options
        ),
        how,
    )
    ask(path, "in-order.jsonl", **way)
    expected = rows(path, "in-order.jsonl")
    if how != "cut" and name.endswith("mp4"):
        assert expected[-1][3].startswith("damaged after")
    ask(path, "shuffled.jsonl", shuffle=True, **way)
    assert rows(path, "shuffled.jsonl") == expected
    again = ask(path, "shuffled.jsonl", shuffle=True, **way)
    assert (again.summary["rows"], again.summary["kept"]["rows"]) == (0, len(expected))
    assert rows(path, "shuffled.jsonl") == expected


def test_damage_that_a_row_tells_of_is_known_when_frames_are_shuffled(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = damage(
        write_video(
            tmp_path / "a.mp4", 100, fps=25, draw=moving, options={"movflags": "faststart"}
        ),
        "zeros",
    )
    monkeypatch.setattr(
        videos, "looks_whole", lambda path: True
    )  # as of the codecs whose headers do not tell
    ask(path, "out.jsonl", fps=2)
    expected = rows(path, "out.jsonl")
    again = ask(path, "out.jsonl", fps=2, shuffle=True)
    assert (again.summary["rows"], again.summary["kept"]["errors"]) == (0, 1)
    assert rows(path, "out.jsonl") == expected


def test_a_damaged_video_is_no_reason_to_decode_the_others_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_video(tmp_path / "in" / "a.mp4", 50, fps=25, draw=moving)
    damage(
        write_video(
            tmp_path / "in" / "b.mp4", 50, fps=25, draw=moving, options={"movflags": "faststart"}
        ),
        "zeros",
    )
    listed: list[str] = []
    frames = videos.VideoFile.frames

    def spy(self: videos.VideoFile, *arguments: Any) -> Any:
        listed.append(Path(self._path).name)
        return frames(self, *arguments)

    monkeypatch.setattr(videos.VideoFile, "frames", spy)
    job = Job(inputs=(str(tmp_path / "in"),), media="video", shuffle=True)
    assert [item.id for item in open_reader(job, sampler=make_sampler(job))][-1] == "b.mp4"
    assert set(listed) == {"b.mp4"}
