"""An OUTPUT as a manifest: the sources of its rows are asked about again."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.media import write_picture, write_video
from tests.read.bundles.test_manifests import error, items, seed_of, write_jsonl
from vlmbatch.core import RECORD_FIELDS
from vlmbatch.errors import JobError
from vlmbatch.job import Job
from vlmbatch.read import open_reader
from vlmbatch.sample import make_sampler


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for number in range(4):
        write_picture(tmp_path / f"pics/{number}.png", seed=number)
    return tmp_path


def test_an_output_is_a_manifest_of_its_sources(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    row = dict.fromkeys(RECORD_FIELDS)
    rows = [
        {
            **row,
            "id": f"{number // 2}.png",
            "source": f"pics/{number // 2}.png",
            "media": "image",
            "prompt": f"{number}?",
        }
        for number in range(4)
    ]
    rows.append({**row, "id": "a.zip/b.png", "source": "a.zip/b.png", "media": "image"})
    (folder / "a.zip").touch()
    (folder / "out").mkdir()
    monkeypatch.chdir(folder)
    found = items(
        write_jsonl(folder / "out/captions.jsonl", rows),
        task="vqa",
        questions=("Why?",),
        keep=("prompt=asked",),
    )
    assert [(item.id, item.questions, item.extra) for item in found[:2]] == [
        ("0.png", (), {"asked": "0?"}),
        ("1.png", (), {"asked": "2?"}),
    ]
    assert [seed_of(item) for item in found[:2]] == [0, 1]
    assert error(found[2]).endswith("a.zip: give that as INPUT")


def test_the_output_of_frames_gives_its_videos_once(tmp_path: Path) -> None:
    write_video(tmp_path / "a.mp4", 30)
    row = dict.fromkeys(RECORD_FIELDS)
    rows = [
        {**row, "id": f"a.mp4#t={number}.000", "source": "a.mp4", "media": "frame"}
        for number in range(3)
    ]
    job = Job(inputs=(str(write_jsonl(tmp_path / "frames.jsonl", rows)),), media="video")
    assert [item.id for item in open_reader(job, sampler=make_sampler(job))] == [
        f"a.mp4#t={number}.000" for number in range(3)
    ]


def test_an_output_that_is_its_own_input_is_refused(folder: Path) -> None:
    (folder / "t.jsonl").write_text('{"path": "pics/0.png"}\n')
    with pytest.raises(JobError, match="INPUT and OUTPUT at once"):
        items(folder / "t.jsonl", output=str(folder / "t.jsonl"))
    write_jsonl(folder / "out.jsonl", [dict.fromkeys(RECORD_FIELDS)])
    (folder / "out.jsonl.runs.jsonl").write_text('{"run_id": "a"}\n')
    assert [item.id for item in items(folder / "*.jsonl", output=str(folder / "out.jsonl"))] == [
        "pics/0.png"
    ]
