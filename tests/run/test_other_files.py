"""Two folders with files of one name and one OUTPUT: what becomes of the other row is said."""

from __future__ import annotations

import json
import os
import shutil
import zipfile
from pathlib import Path
from typing import Any

import pytest

from tests.media import write_picture, write_video
from tests.run.jobs import job, rows, start
from vlmbatch.job import Job
from vlmbatch.run.plan import plan_items
from vlmbatch.write.sources import is_other_file


@pytest.fixture
def folders(tmp_path: Path) -> tuple[Path, Path]:
    """Two folders with pictures of the same names."""
    for seed, name in enumerate(("a", "b")):
        for number in range(2):
            write_picture(tmp_path / name / f"{number}.png", seed=10 * seed + number)
    return tmp_path / "a", tmp_path / "b"


def said(asked: Job) -> dict[str, Any]:
    """Return what a run says of other files, after the same from a dry run."""
    planned = plan_items(asked).other_files
    outcome, _ = start(asked)
    assert outcome.summary["other_files"] == planned
    return planned


def example(id: str, was: Path, now: Path) -> dict[str, str]:
    return {"id": id, "was": str(was / id), "now": str(now / id)}


@pytest.mark.parametrize("form", ["jsonl", "csv", "parquet"])
def test_rows_that_another_folder_replaces_are_counted(
    folders: tuple[Path, Path], form: str
) -> None:
    one, other = folders
    asks = {"output": str(one.parent / f"out.{form}"), "questions": ["Who?", "Why?"], "task": "vqa"}
    assert said(job(one, **asks)) == {}
    assert said(job(one, **asks)) == {}
    replaced = {"replaced": {"files": 2, "example": example("0.png", one, other)}}
    assert said(job(other, **asks)) == replaced
    assert said(job(other, **asks)) == {}
    # Of both folders the second gets ids of its own, and the first its rows back.
    both = Job.from_dict({**job(one, **asks).to_dict(), "inputs": [str(one), str(other)]})
    assert said(both) == {"replaced": {"files": 2, "example": example("0.png", other, one)}}
    assert {row["id"] for row in rows(both)} == {"0.png", "1.png", "b/0.png", "b/1.png"}


def test_a_corrected_text_that_keeps_another_file_without_a_row_is_said(
    folders: tuple[Path, Path],
) -> None:
    one, other = folders
    start(job(one))
    output = one.parent / "out.jsonl"
    lines = [json.loads(line) for line in output.read_text().splitlines()]
    lines[1]["text"] = "corrected by hand"
    output.write_text("".join(json.dumps(line) + "\n" for line in lines))
    found = said(job(other))
    assert found["kept"] == {"files": 1, "example": example("1.png", one, other)}
    assert found["replaced"]["files"] == 1
    for _ in range(2):  # as long as the command is the same
        assert said(job(other)) == {"kept": found["kept"]}
    assert [row["text"] for row in rows(job(one))][1] == "corrected by hand"
    assert said(job(one)) == {"replaced": {"files": 1, "example": example("0.png", other, one)}}


def test_the_same_file_elsewhere_is_no_other_one(folders: tuple[Path, Path]) -> None:
    one, other = folders
    start(job(one))
    shutil.rmtree(other)
    one.rename(other)
    write_picture(other / "0.png", seed=77)
    assert said(job(other)) == {}, "the folder was renamed, and a file has changed"
    one.symlink_to(other)
    write_picture(other / "0.png", seed=78)
    assert said(job(one)) == {}, "the folder has another path"
    copied = one.parent / "copied"
    shutil.copytree(other, copied)
    for path in copied.iterdir():
        os.utime(path, (1, 1))
    assert said(job(copied)) == {}, "a copy has the same answers"


def test_frames_and_archives_are_told_apart_by_their_files(tmp_path: Path) -> None:
    for seconds, name in enumerate(("a", "b"), 2):
        write_video(tmp_path / name / "clip.mp4", 10 * seconds, fps=10)
        write_picture(tmp_path / name / "1.png", seed=seconds)
        with zipfile.ZipFile(tmp_path / name / "in.zip", "w") as archive:
            archive.write(tmp_path / name / "1.png", "1.png")
    one, other = tmp_path / "a", tmp_path / "b"
    video = {"media": "video", "output": str(tmp_path / "video.jsonl")}
    start(job(one, **video))
    outcome, _ = start(job(other, **video))
    assert outcome.summary["other_files"]["replaced"] == {
        "files": 1,
        "example": example("clip.mp4", one, other),
    }
    zipped = {"output": str(tmp_path / "zip.jsonl")}
    start(job(one / "in.zip", **zipped))
    assert said(job(other / "in.zip", **zipped))["replaced"]["files"] == 1


def test_redo_says_it_too(folders: tuple[Path, Path]) -> None:
    one, other = folders
    start(job(one))
    found = said(job(other, redo=("stale",), max_new_tokens=7))
    assert found["replaced"] == {"files": 2, "example": example("0.png", one, other)}


def test_urls_and_files_that_are_gone_are_no_other_files(tmp_path: Path) -> None:
    here = write_picture(tmp_path / "here.png")
    assert not is_other_file("https://example.com/a/1.png", "https://example.com/b/1.png")
    assert not is_other_file(str(tmp_path / "gone" / "here.png"), str(here))
    assert not is_other_file(f"{here}#row=1", f"{tmp_path}/../{tmp_path.name}/here.png")
