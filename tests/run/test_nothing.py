"""A run that finds nothing to ask about."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.media import write_picture, write_video
from tests.run.jobs import job, rows, start
from vlmbatch.errors import JobError, NothingFound


def explain(folder: Path, **values: object) -> str:
    outcome, engine = start(job(folder, **values))
    assert outcome.exit_code == 66
    assert isinstance(outcome.error, NothingFound)
    assert not engine.stats.tiles
    return str(outcome.error)


def test_an_empty_folder_is_exit_66_and_writes_no_output(tmp_path: Path) -> None:
    (tmp_path / "none").mkdir()
    why = explain(tmp_path / "none")
    assert f"no image found in {tmp_path / 'none'}" in why
    assert "whether its disk is mounted; --allow-empty makes this no error" in why
    assert sorted(path.name for path in tmp_path.iterdir()) == ["none"]


def test_an_empty_folder_is_fine_when_that_is_normal(tmp_path: Path) -> None:
    (tmp_path / "none").mkdir()
    empty = job(tmp_path / "none", allow_empty=True)
    outcome, _ = start(empty)
    assert outcome.exit_code == 0
    assert rows(empty) == []
    outcome, _ = start(job(tmp_path / "none/*.jpg", output=empty.output, allow_empty=True))
    assert outcome.exit_code == 0


def test_rows_and_summary_stay_when_the_disk_is_not_mounted(photos: Path) -> None:
    start(job(photos))
    before = rows(job(photos))
    summary = (photos.parent / "out.jsonl.summary.json").read_bytes()
    for picture in photos.iterdir():
        picture.unlink()
    explain(photos)
    assert rows(job(photos)) == before
    assert (photos.parent / "out.jsonl.summary.json").read_bytes() == summary


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"include": ["*.tif"]}, "--include left 0 of 20;"),
        ({"exclude": ["*"]}, "--exclude left 0 of 20;"),
        ({"include": ["0*"], "exclude": ["*"]}, "--include and --exclude left 0 of 20;"),
        ({"media": "video"}, "20 images left alone (use `vlmbatch caption`)"),
    ],
)
def test_the_message_says_what_took_how_many(
    photos: Path, values: dict[str, object], said: str
) -> None:
    assert said in explain(photos, **values)


def test_pages_that_no_document_has_are_said(tmp_path: Path) -> None:
    from PIL import Image

    pages = [Image.new("RGB", (40, 40), (shade, 0, 0)) for shade in range(5)]
    for number in range(2):
        path = tmp_path / "docs" / f"doc{number}.pdf"
        path.parent.mkdir(exist_ok=True)
        pages[0].save(path, save_all=True, append_images=pages[1:])
    why = explain(tmp_path / "docs", pages="9")
    assert "doc0.pdf has 5 pages, --pages 9 is none of them and 1 more" in why


def test_a_stretch_that_no_video_has_is_said(tmp_path: Path) -> None:
    write_video(tmp_path / "clips" / "a.mp4", 5)
    why = explain(tmp_path / "clips", media="video", start=10)
    assert "a.mp4: no frame of it was asked for" in why


def test_questions_about_other_items_are_exit_66(photos: Path) -> None:
    file = photos.parent / "questions.jsonl"
    file.write_text('{"id": "other.png", "question": "Why?"}\n')
    asked = {"task": "vqa", "questions_file": str(file)}
    assert "no item has its id: it asks about 'other.png'" in explain(photos, **asked)
    outcome, _ = start(job(photos, **asked, allow_empty=True))
    assert outcome.exit_code == 0
    outcome, _ = start(job(photos, **asked, limit=2))
    assert outcome.exit_code == 0


def test_a_manifest_without_rows_is_exit_66(tmp_path: Path) -> None:
    write_picture(tmp_path / "a.png")
    (tmp_path / "list.csv").write_text("path\n")
    assert explain(tmp_path / "list.csv") != ""


@pytest.mark.parametrize("name", ["id_column", "path_column"])
def test_a_column_where_no_input_is_a_table_is_refused(photos: Path, name: str) -> None:
    with pytest.raises(JobError, match=f"{name} is a column of a manifest, and no INPUT is one"):
        start(job(photos, **{name: "sku"}))
