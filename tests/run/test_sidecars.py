"""Sidecars of a run: text beside pictures, subtitles beside videos, complete or not at all."""

from __future__ import annotations

import json
from pathlib import Path

import fsspec
import srt
import webvtt

from tests.media import write_video
from tests.run.jobs import job, rows, start
from vlmbatch.engine.scripted import ScriptedEngine
from vlmbatch.write import local_copy, read_records, read_summary


def test_sidecars_are_written_of_all_rows_of_the_items_when_a_run_comes_to_its_end(
    photos: Path,
) -> None:
    job_of = job(photos, sidecar="txt")
    outcome, _ = start(job_of, ScriptedEngine(die_after=6))
    assert outcome.exit_code == 1
    assert outcome.summary["sidecars"] is None
    assert not list(photos.glob("*.txt"))
    outcome, again = start(job_of)
    assert len(again.answered) == 13
    assert outcome.summary["sidecars"]["written"] == 19
    assert (photos / "03.txt").read_text() == f"03.png: {job_of.instruction}\n"
    assert not (photos / "07.txt").exists()
    (photos / "08.png").unlink()
    (photos / "08.txt").unlink()
    start(
        job(photos, sidecar="txt", prompt="Other?")
    )  # in the same OUTPUT; 08.png has a row there, and no place any more
    assert (photos / "03.txt").read_text() == "03.png: Other?\n"
    assert not (photos / "08.txt").exists()


def test_subtitles_of_a_video_that_became_another_are_those_of_the_other(tmp_path: Path) -> None:
    (tmp_path / "v").mkdir()
    write_video(tmp_path / "v" / "clip.mp4", 50, fps=10)
    frames = job(tmp_path / "v", media="video", fps=1, sidecar="srt")
    start(frames, ScriptedEngine(lambda key, question: key[-5]))
    found = list(srt.parse((tmp_path / "v" / "clip.srt").read_text(encoding="utf-8")))
    assert [cue.content for cue in found] == list("01234")
    assert found[-1].end.total_seconds() == 5
    write_video(tmp_path / "v" / "clip.mp4", 23, fps=10)
    _, again = start(
        frames, ScriptedEngine(lambda key, question: "so" if key[-5] != "1" else "-->\n\n&")
    )
    assert len(again.answered) == 3
    found = list(srt.parse((tmp_path / "v" / "clip.srt").read_text(encoding="utf-8")))
    assert [(cue.start.total_seconds(), cue.end.total_seconds(), cue.content) for cue in found] == [
        (0, 1, "so"),
        (1, 2, "-> &"),
        (2, 2.3, "so"),
    ]
    assert len(rows(frames)) == 3  # no row of the frames that are gone


def test_windows_of_a_video_have_subtitles_too(tmp_path: Path) -> None:
    (tmp_path / "v").mkdir()
    write_video(tmp_path / "v" / "clip.mp4", 50, fps=10)
    start(
        job(
            tmp_path / "v",
            media="video",
            per="window",
            window=2,
            sidecar="vtt",
            sidecar_dir=str(tmp_path / "subs"),
        )
    )
    assert [(cue.start, cue.end) for cue in webvtt.read(tmp_path / "subs" / "clip.vtt")] == [
        *(
            ("00:00:00.000", "00:00:02.000"),
            ("00:00:02.000", "00:00:04.000"),
            ("00:00:04.000", "00:00:05.000"),
        )
    ]


def test_a_folder_where_sidecars_cannot_be_written_ends_in_an_error_with_every_row_kept(
    photos: Path,
) -> None:
    (photos / "03.txt").mkdir()
    outcome, _ = start(job(photos, sidecar="txt"))
    assert outcome.exit_code == 1
    assert "03.txt: Is a directory" in str(outcome.error)
    assert len(rows(job(photos))) == 20
    assert (photos / "04.txt").exists()


def test_an_output_behind_a_url_has_rows_summary_and_sidecars(photos: Path) -> None:
    files = fsspec.filesystem("memory")
    where = {"output": "memory://bucket/out.parquet", "staging_dir": str(photos.parent / "staging")}
    outcome, _engine = start(job(photos, **where, sidecar="txt", limit=3))
    assert outcome.exit_code == 0
    assert (photos / "02.txt").read_text() == f"02.png: {job(photos).instruction}\n"
    outcome, engine = start(job(photos, **where))
    assert outcome.summary["kept"]["rows"] == 3
    assert len(engine.prepared) == 16
    with local_copy(where["output"]) as path:
        assert [row["id"] for row in read_records(path)] == [
            f"{number:02d}.png" for number in range(20)
        ]
        assert read_summary(path) == json.loads(json.dumps(outcome.summary))
    files.rm("/bucket", recursive=True)


def test_sidecars_have_the_answers_to_the_questions_that_the_rows_of_a_manifest_ask(
    photos: Path,
) -> None:
    table = photos / "asked.csv"
    table.write_text("path,question\n01.png,Who?\n02.png,Why?\n02.png,Where?\n")
    start(job(table, task="vqa", sidecar="txt", output=str(photos.parent / "out.jsonl")))
    assert (photos / "01.txt").read_text() == "01.png: Who?\n"
    assert (photos / "02.txt").read_text() == "02.png: Why?\n02.png: Where?\n"
    table.write_text("path,question\n01.png,Who?\n01.png,\n02.png,Where?\n")
    outcome, engine = start(
        job(
            table,
            task="vqa",
            questions=["What?"],
            sidecar="txt",
            output=str(photos.parent / "out.jsonl"),
        )
    )
    assert len(engine.answered) == 1
    assert outcome.summary["kept"]["rows"] == 2
    assert (photos / "01.txt").read_text() == "01.png: Who?\n01.png: What?\n"
    assert (
        photos / "02.txt"
    ).read_text() == "02.png: Where?\n"  # what was asked before stays in OUTPUT only
