"""Rows whose source is gone are counted; ``--prune`` removes them."""

from __future__ import annotations

import json
import shutil
import zipfile
from collections.abc import Iterator
from pathlib import Path

import fsspec
import pytest

from tests.media import write_picture
from tests.run.jobs import job, rows, start
from vlmbatch.errors import JobError
from vlmbatch.write import read_records, read_runs, read_summary
from vlmbatch.write.sources import is_gone

NOTHING = {"rows": 0, "edited": 0, "files": 0, "pruned": False}


@pytest.fixture
def bucket() -> Iterator[str]:
    yield "memory://bucket"
    fsspec.filesystem("memory").rm("/bucket", recursive=True)


@pytest.mark.parametrize("form", ["jsonl", "csv", "parquet"])
def test_rows_of_files_that_are_gone_are_counted_and_removed(photos: Path, form: str) -> None:
    output = photos.parent / f"out.{form}"
    asked = job(photos, output=str(output), questions=["Who?", "Why?"], task="vqa")
    start(asked)
    (photos / "03.png").unlink()
    (photos / "04.png").unlink()
    outcome, _ = start(asked)
    assert outcome.summary["gone"] == {**NOTHING, "rows": 4, "files": 2}
    assert len(rows(asked)) == 40
    prune = job(photos, output=str(output), questions=["Who?", "Why?"], task="vqa", prune=True)
    outcome, engine = start(prune)
    assert outcome.summary["gone"] == {**NOTHING, "rows": 4, "files": 2, "pruned": True}
    assert outcome.exit_code == 0
    assert not engine.answered
    assert len(rows(asked)) == 36
    assert not {row["id"] for row in rows(asked)} & {"03.png", "04.png"}
    summary = read_summary(output)
    assert summary is not None
    assert summary["gone"]["pruned"], "a run that removed rows had something to do"
    assert read_runs(output)[-1]["gone"]["rows"] == 4
    assert start(prune)[0].summary["gone"] == NOTHING


def test_what_is_there_stays_whatever_the_run_is_about(photos: Path) -> None:
    start(job(photos))
    other = photos.parent / "other"
    write_picture(other / "z.png")
    with zipfile.ZipFile(other / "a.zip", "w") as archive:
        archive.write(photos / "00.png", "in.png")
    output = str(photos.parent / "out.jsonl")
    for values in (
        {"include": ["0*"]},
        {"limit": 2},
        {"inputs": [str(other), str(other / "a.zip")]},
        {"inputs": [str(other)]},
        {"task": "ocr"},
    ):
        outcome, _ = start(job(photos, **{"output": output, "prune": True, **values}))
        assert not outcome.summary["gone"]["rows"]
    assert len(rows(job(photos))) == 20 + 2 + 20


def test_a_folder_that_is_gone_below_an_input_takes_its_rows_along(photos: Path) -> None:
    write_picture(photos / "deep/er/a.png")
    start(job(photos))
    shutil.rmtree(photos / "deep")
    assert start(job(photos, prune=True))[0].summary["gone"]["rows"] == 1
    assert len(rows(job(photos))) == 20


def test_a_disk_that_is_not_mounted_costs_no_row(photos: Path) -> None:
    start(job(photos))
    for path in photos.iterdir():
        path.unlink()
    outcome, _ = start(job(photos, prune=True))
    assert (outcome.exit_code, outcome.summary["gone"]) == (66, {})
    photos.rmdir()
    other = photos.parent / "other"
    write_picture(other / "z.png")
    outcome, _ = start(job(other, output=str(photos.parent / "out.jsonl"), prune=True))
    assert outcome.summary["gone"] == NOTHING
    assert len(rows(job(photos))) == 21


def test_edited_texts_are_never_removed(photos: Path) -> None:
    start(job(photos))
    output = photos.parent / "out.jsonl"
    lines = output.read_text().splitlines()
    lines[3] = json.dumps({**json.loads(lines[3]), "text": "by hand"})
    output.write_text("\n".join(lines) + "\n")
    (photos / "03.png").unlink()
    (photos / "04.png").unlink()
    outcome, _ = start(job(photos, prune=True))
    assert outcome.summary["gone"] == {"rows": 1, "edited": 1, "files": 2, "pruned": True}
    found = {row["id"]: row["text"] for row in rows(job(photos))}
    assert (found["03.png"], "04.png" in found) == ("by hand", False)


def test_an_output_behind_a_url_is_pruned_too(photos: Path, bucket: str) -> None:
    where = {"output": f"{bucket}/out.jsonl", "staging_dir": str(photos.parent / "staging")}
    start(job(photos, **where))
    (photos / "03.png").unlink()
    outcome, _ = start(job(photos, **where, prune=True))
    assert outcome.summary["gone"]["rows"] == 1
    copy = photos.parent / "copy.jsonl"
    copy.write_bytes(fsspec.filesystem("memory").cat("/bucket/out.jsonl"))
    assert "03.png" not in {row["id"] for row in read_records(copy)}


def test_a_stream_has_no_rows_to_remove(photos: Path) -> None:
    with pytest.raises(JobError, match="prune removes rows of an OUTPUT that is kept"):
        job(photos, output="-", prune=True)


def test_relative_sources_are_judged_from_the_inputs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "photos").mkdir()
    (tmp_path / "a.zip").touch()
    assert is_gone("photos/a.png", [str(tmp_path / "photos")])
    assert not is_gone("photos/a.png", [str(tmp_path / "elsewhere")])
    assert not is_gone("a.zip/b.png", [str(tmp_path)])
    assert not is_gone("https://example.com/a.png", [str(tmp_path)])
    assert is_gone("photos/deep/a.png", [str(tmp_path)])
    assert not is_gone("photos/deep/a.png")


def test_sidecars_of_pruned_rows_go_unless_somebody_edited_them(photos: Path) -> None:
    asked = job(photos, sidecar="txt")
    start(asked)
    for number in (3, 4, 5, 6):
        (photos / f"0{number}.png").unlink()
    (photos / "04.txt").write_text("edited\n")
    output = Path(asked.output_path)
    lines = [json.loads(line) for line in output.read_text().splitlines()]
    lines[5]["text"] = "corrected"  # its row stays, and its sidecar with it
    output.write_text("".join(json.dumps(line) + "\n" for line in lines))
    start(asked)
    assert {path.stem for path in photos.glob("0[3-6].txt")} == {"03", "04", "05", "06"}
    outcome, _ = start(job(photos, prune=True))
    assert outcome.summary["gone"] == {
        "rows": 3, "edited": 1, "files": 4, "pruned": True, "sidecars": 2
    }  # fmt: skip
    assert {path.stem for path in photos.glob("0[3-6].txt")} == {"04", "05"}
    assert (photos / "08.txt").exists()
    assert "sidecars" not in start(job(photos, prune=True))[0].summary["gone"]


def test_sidecars_of_a_folder_that_is_not_there_stay(photos: Path) -> None:
    texts = photos.parent / "texts"
    start(job(photos, sidecar="txt", sidecar_dir=str(texts)))
    other = photos.parent / "other"
    photos.rename(photos.parent / "not mounted")
    write_picture(other / "x.png")
    start(job(other, output=str(photos.parent / "out.jsonl"), prune=True))
    assert len(list(texts.glob("*.txt"))) == 19
