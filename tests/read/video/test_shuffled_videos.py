"""Shuffled frames of damaged videos: each is a row, with an answer or an error; a second run keeps
them.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.media import HEIGHT, WIDTH, write_video
from vlmbatch.core import UInt8Array
from vlmbatch.engine.scripted import ScriptedEngine
from vlmbatch.errors import DecodeError
from vlmbatch.job import Job
from vlmbatch.read import open_reader
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
def test_what_can_be_decoded_of_a_damaged_video_has_an_answer(
    tmp_path: Path, name: str, codec: str, how: str, way: dict[str, object]
) -> None:
    options = {"movflags": "faststart"} if name.endswith("mp4") else {}
    path = damage(
        write_video(
            tmp_path / name, 100, fps=25, codec=codec, key_every=30, draw=moving, options=options
        ),
        how,
    )
    ask(path, "shuffled.jsonl", shuffle=True, **way)
    found = rows(path, "shuffled.jsonl")
    assert [row[1] for row in found] == list(range(len(found)))
    ask(path, "in-order.jsonl", **way)
    answered = {row[0] for row in rows(path, "in-order.jsonl") if row[2] == "ok"}
    assert {row[0] for row in found if row[2] == "ok"} <= answered
    assert all(row[2] == "ok" or row[3] for row in found)
    again = ask(path, "shuffled.jsonl", shuffle=True, **way)
    assert (again.summary["rows"], again.summary["kept"]["rows"]) == (0, len(found))
    assert rows(path, "shuffled.jsonl") == found


def test_damage_that_a_row_tells_of_is_known_when_frames_are_shuffled(tmp_path: Path) -> None:
    path = damage(
        write_video(
            tmp_path / "a.mp4", 100, fps=25, draw=moving, options={"movflags": "faststart"}
        ),
        "zeros",
    )
    ask(path, "out.jsonl", fps=2)
    expected = rows(path, "out.jsonl")
    assert expected[-1][3].startswith("damaged after")
    again = ask(path, "out.jsonl", fps=2, shuffle=True)
    assert (again.summary["rows"], again.summary["kept"]["errors"]) == (0, 1)
    assert rows(path, "out.jsonl") == expected


def test_no_video_is_decoded_before_its_frames_have_their_turn(tmp_path: Path) -> None:
    path = write_video(tmp_path / "in" / "a.mp4", 50, fps=25, draw=moving)
    job = Job(inputs=(str(path.parent),), media="video", shuffle=True)
    found = list(open_reader(job, sampler=make_sampler(job)))
    path.write_bytes(b"another file")
    for item in found:
        with pytest.raises(DecodeError):
            item.load()
