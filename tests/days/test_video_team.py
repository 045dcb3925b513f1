"""A day of a video team: what happens when in a film, as a table and as subtitles."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from tests.cli.conftest import Command
from tests.media import HEIGHT, WIDTH, write_video
from vlmbatch.core import UInt8Array

COLOURS = [(200, 30, 30), (30, 30, 200), (240, 200, 20)]


def scene(number: int) -> UInt8Array:
    """A frame of one of three scenes of two seconds; the last one has a rest of half a second."""
    colour = COLOURS[min(2, number // 20)]
    return np.broadcast_to(np.array(colour, np.uint8), (HEIGHT, WIDTH, 3)).copy()


def test_a_day_of_a_video_team(vlmbatch: Command, tmp_path: Path) -> None:
    write_video(tmp_path / "films" / "day.mp4", 65, fps=10, draw=scene)

    # A frame every two seconds. The option for that is another one, and the message names it.
    result = vlmbatch("video", "films", "--every", "2s", "--model", "demo")
    assert result.returncode == 2
    assert "--fps 0.5" in result.stderr
    result = vlmbatch("video", "films", "--fps", 0.5, "--model", "demo", "-o", "frames.jsonl")
    assert result.returncode == 0, result.stderr
    assert "4 answers ok" in result.stderr
    # Small frames were enlarged to many tiles, and the closing line says what saves them.
    assert "--detail low takes one tile a frame" in result.stderr
    low = ("--detail", "low", "-o", "low.jsonl")
    result = vlmbatch("video", "films", "--fps", 0.5, "--model", "demo", *low)
    assert "--detail low" not in result.stderr
    rows = [json.loads(line) for line in (tmp_path / "low.jsonl").read_text().splitlines()]
    assert [row["tiles"] for row in rows] == [1, 1, 1, 1]

    # The scenes; a threshold that no cut reaches finds one.
    assert "# 3 items" in vlmbatch("video", "films", "--scenes", "--dry-run").stdout
    one = ("--scenes", "--scene-threshold", 255, "--dry-run")
    assert "# 1 item\n" in vlmbatch("video", "films", *one).stdout

    # One description of the whole film has no time stamp; one a window has.
    words = ("--model", "demo", "--detail", "low", "--max-new-tokens", 8)
    result = vlmbatch("video", "films", "--per", "clip", *words, "-o", "clip.jsonl")
    assert result.returncode == 0, result.stderr
    result = vlmbatch("export", "clip.jsonl", "--to", "txt", "-o", "whole")
    assert result.returncode == 0, result.stderr
    assert "-->" not in (tmp_path / "whole" / "day.txt").read_text()

    # Two questions a second and a half: subtitles say them, in lines that fit on a screen.
    asked = ("-q", "color=What color is it?", "-q", "shapes=How many shapes are there here?")
    at = ("--at", "0,3", *words, "-o", "qa.jsonl", "--sidecar", "srt")
    result = vlmbatch("video", "films", "--task", "vqa", *asked, *at)
    assert result.returncode == 0, result.stderr
    cues = (tmp_path / "films" / "day.srt").read_text()
    assert "What color is it?" in cues
    assert max(map(len, cues.splitlines())) <= 42
    assert all(len(cue.splitlines()) <= 4 for cue in cues.split("\n\n"))
    # The same as a table for the editors: a row a moment, a column a question.
    wide = ("--to", "csv", "--wide", "--columns", "time_seconds,color,shapes", "-o", "-")
    table = vlmbatch("export", "qa.jsonl", *wide).stdout.splitlines()
    assert table[0] == "time_seconds,color,shapes"
    assert [line.split(",")[0] for line in table[1:]] == ["0.0", "3.0"]
