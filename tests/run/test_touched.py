"""Files with another time and the same content, and texts that were corrected by hand."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

from tests.media import write_picture, write_video
from tests.run.jobs import job, rows, start
from vlmbatch.engine.scripted import ScriptedEngine
from vlmbatch.job import Job


def touch(folder: Path, seconds: int) -> None:
    for path in folder.iterdir():
        os.utime(path, (seconds, seconds))


def asked(job: Job) -> list[str]:
    _, engine = start(job, ScriptedEngine())
    return [key for key, _ in engine.answered]


def test_touched_pictures_are_not_asked_about_again_and_changed_ones_are(photos: Path) -> None:
    assert len(asked(job(photos))) == 19
    before = rows(job(photos))
    touch(photos, 1000)
    write_picture(photos / "03.png", seed=99)
    assert asked(job(photos)) == ["03.png"]
    assert [row["created_at"] for row in rows(job(photos)) if row["id"] != "03.png"] == [
        row["created_at"] for row in before if row["id"] != "03.png"
    ]
    assert asked(job(photos)) == []


def test_a_copied_project_is_not_asked_about_and_its_corrections_stay(photos: Path) -> None:
    start(job(photos))
    output = photos.parent / "out.jsonl"
    lines = [json.loads(line) for line in output.read_text().splitlines()]
    lines[4]["text"] = "corrected by hand"
    output.write_text("".join(json.dumps(line) + "\n" for line in lines))
    copied = photos.parent / "elsewhere"
    (copied / "photos").mkdir(parents=True)
    for path in photos.iterdir():
        (copied / "photos" / path.name).write_bytes(path.read_bytes())
    for name in ("out.jsonl", "out.jsonl.journal"):
        shutil.copy(photos.parent / name, copied)
    write_picture(copied / "photos" / "04.png", seed=98)
    outcome, engine = start(job(copied / "photos"))
    assert not engine.answered
    assert outcome.summary["kept"] == {"items": 20, "rows": 20, "errors": 1, "edited": 1}
    assert rows(job(copied / "photos"))[4]["text"] == "corrected by hand"


def test_touched_videos_pages_archives_and_tables_are_not_asked_about(tmp_path: Path) -> None:
    from PIL import Image

    folder = tmp_path / "mixed"
    folder.mkdir()
    write_video(folder / "a.mp4", 30, fps=10)
    pages = [Image.new("RGB", (40, 40), (shade, 0, 0)) for shade in range(3)]
    pages[0].save(folder / "doc.pdf", save_all=True, append_images=pages[1:])
    shutil.make_archive(str(tmp_path / "packed"), "zip", folder)
    video = {"media": "video", "output": str(tmp_path / "video.jsonl")}
    assert len(asked(job(folder, **video))) == 3
    assert len(asked(job(folder))) == 3
    zipped = job(tmp_path / "packed.zip", output=str(tmp_path / "zip.jsonl"))
    assert len(asked(zipped)) == 3
    touch(folder, 1000)
    os.utime(tmp_path / "packed.zip", (1000, 1000))
    assert asked(job(folder, **video)) == asked(job(folder)) == asked(zipped) == []
    similar = {**video, "output": str(tmp_path / "similar.jsonl"), "skip_similar": 0.0}
    start(job(folder, **similar))
    touch(folder, 2000)
    assert asked(job(folder, **similar)) == []


def test_a_file_that_changes_between_two_runs_by_one_byte_in_its_middle_is_done_again(
    tmp_path: Path,
) -> None:
    picture = tmp_path / "photos" / "large.ppm"
    picture.parent.mkdir()
    side = 2500
    content = bytearray(b"P6 %d %d 255\n" % (side, side) + bytes(3 * side * side))
    picture.write_bytes(content)
    assert asked(job(picture.parent)) == ["large.ppm"]
    content[len(content) // 2] = 255
    picture.write_bytes(content)
    assert asked(job(picture.parent)) == ["large.ppm"]
