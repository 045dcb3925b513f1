"""Folders of ``.txt`` files beside pictures as DATA."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.finetune.data import PROMPT
from tests.media import write_picture
from vlmbatch.errors import JobError
from vlmbatch.finetune.job import FinetuneJob
from vlmbatch.finetune.text_folder import read_any_data


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    folder = tmp_path / "photos"
    for name in ("a.jpg", "a.png", "2019/b.png", "2019/c.png"):
        write_picture(folder / name)
    for name, text in (
        ("a.txt", "\ufeffA cat.\r\n"),
        ("a.png.txt", "A dog."),
        ("2019/b.txt", ""),
        ("notes.txt", "for myself"),
        ("list.txt", "x"),
    ):
        (folder / name).write_text(text, encoding="utf-8", newline="")
    (folder / "list.csv").touch()
    return folder


def test_each_text_beside_a_picture_is_a_row(photos: Path) -> None:
    job = FinetuneJob(data=str(photos))
    assert job.output_path == "photos.finetuned"
    data = read_any_data(photos, None, job.video_job)
    assert [(row.place, row.path, row.answer, row.error) for row in data.rows] == [
        ("a.png.txt", str(photos / "a.png"), "A dog.", ""),
        ("a.txt", str(photos / "a.jpg"), "A cat.", ""),
        ("2019/b.txt", str(photos / "2019/b.png"), "", "an empty text"),
    ]
    assert {row.prompt for row in data.rows} == {PROMPT}
    asked = read_any_data(photos, "Name it.", job.video_job)
    assert {row.prompt for row in asked.rows} == {"Name it."}


def test_what_is_no_such_folder_is_refused(photos: Path) -> None:
    video_job = FinetuneJob(data=str(photos)).video_job
    (photos / "empty").mkdir()
    with pytest.raises(JobError, match=r"there is no \.txt file beside a picture"):
        read_any_data(photos / "empty", None, video_job)
    with pytest.raises(JobError, match=r"or a folder of \.txt files beside pictures, not 'none'"):
        FinetuneJob(data="none")
    with pytest.raises(JobError, match="prompt goes with a folder"):
        FinetuneJob(data="rows.jsonl", prompt="Name it.")
    (photos / "a.txt").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(JobError, match="photos: not text"):
        read_any_data(photos, None, video_job)
