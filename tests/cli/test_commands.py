"""Commands from their arguments to files, lines and exit codes, with a tiny checkpoint.

Some run as processes, as a user starts them.
"""

from __future__ import annotations

import csv
import json
import os
import re
import shlex
import shutil
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import yaml

from tests.cli.conftest import Command
from tests.media import numbered, write_huge_png, write_picture, write_video
from tests.write.rows import record, store


def lines(path: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_caption_writes_a_file_named_after_its_input(
    process: Command, photos: Path, tiny: Path, tmp_path: Path
) -> None:
    result = process("caption", "photos", "--model", tiny, "--max-new-tokens", 4)
    assert result.returncode == 0, result.stderr
    found = lines(tmp_path / "photos.caption.jsonl")
    assert [row["id"] for row in found] == ["0.png", "1.png", "2.png", "3.png"]
    assert len({row["text"] for row in found}) == 4
    assert found[0]["model"] == str(tiny)
    assert str(found[0]["revision"]).startswith("sha256:")
    assert (found[0]["engine"], found[0]["device"], found[0]["dtype"]) == (
        "torch",
        "cpu",
        "float32",
    )
    assert found[0]["finish_reason"] in ("stop", "length")
    assert "4 items" in result.stderr
    assert "Traceback" not in result.stderr
    summary = json.loads((tmp_path / "photos.caption.jsonl.summary.json").read_text())
    assert 1 <= summary["engine"]["max_sequences"] <= 4  # how many meet is the machine's affair
    total = sum(float(str(row["compute_seconds"])) for row in found)
    assert total == pytest.approx(summary["engine"]["busy_seconds"], rel=0.05)
    assert process("caption", "photos", "--model", tiny, "--max-new-tokens", 4).returncode == 0
    assert lines(tmp_path / "photos.caption.jsonl") == found


def test_the_three_formats_hold_the_same_rows(
    vlmbatch: Command, photos: Path, tiny: Path, tmp_path: Path
) -> None:
    for name in ("a.jsonl", "a.parquet", "a.csv"):
        assert (
            vlmbatch(
                "ocr", "photos", "--model", tiny, "--max-new-tokens", 3, "-o", name, "-q"
            ).returncode
            == 0
        )
    table = pq.read_table(tmp_path / "a.parquet").to_pylist()
    with open(tmp_path / "a.csv", newline="", encoding="utf-8") as file:
        sheet = list(csv.DictReader(file))
    first = lines(tmp_path / "a.jsonl")
    assert (
        [row["text"] for row in first]
        == [row["text"] for row in table]
        == [row["text"] for row in sheet]
    )
    assert list(first[0]) == list(table[0]) == list(sheet[0])


def test_a_dash_reads_paths_from_stdin_and_writes_rows_to_stdout(
    process: Command, photos: Path, tiny: Path
) -> None:
    result = process(
        "vqa",
        "-",
        "-q",
        "Why?",
        "-q",
        "What?",
        "-o",
        "-",
        "--model",
        tiny,
        "--max-new-tokens",
        2,
        stdin="photos/2.png\nphotos/none.png\nphotos/0.png\n",
    )
    assert result.returncode == 3, result.stderr
    found = [json.loads(line) for line in result.stdout.splitlines()]
    assert [(row["id"], row["prompt"]) for row in found] == [
        (f"photos/{name}.png", question)
        for name in ("2", "none", "0")
        for question in ("Why?", "What?")
    ]
    assert [row["status"] for row in found] == ["ok", "ok", "error", "error", "ok", "ok"]


@pytest.mark.parametrize("options", [["--device", "cuda:7"], ["--max-memory", "100K"]])
def test_a_run_that_could_not_begin_names_no_output(
    vlmbatch: Command, photos: Path, tiny: Path, tmp_path: Path, options: list[str]
) -> None:
    result = vlmbatch("caption", "photos", "--model", tiny, *options)
    assert result.returncode == 1
    assert "0 items in " in result.stderr
    assert "->" not in result.stderr
    assert not (tmp_path / "photos.caption.jsonl").exists()
    assert (
        "4 answers ok, 0 errors -> photos.caption.jsonl"
        in vlmbatch("caption", "photos", "--model", tiny, "--max-new-tokens", 2).stderr
    )


def test_bad_pictures_are_rows_and_the_rest_is_whole(
    vlmbatch: Command, photos: Path, tiny: Path, tmp_path: Path
) -> None:
    whole = write_picture(photos / "whole.jpg", 200, 100).read_bytes()
    (photos / "cut.jpg").write_bytes(whole[: len(whole) // 2])
    (photos / "empty.png").write_bytes(b"")
    (photos / "text.jpg").write_text("hello")
    write_huge_png(photos / "huge.png")
    (photos / "broken link.png").symlink_to(photos / "gone.png")
    (photos / "loop").symlink_to(photos)
    write_picture(photos / "one.png", 1, 1)
    write_picture(photos / "tall.png", 1, 5000)
    write_picture(photos / "a new\nline.png")
    Path(os.fsdecode(os.fsencode(str(photos)) + b"/caf\xe9.png")).write_bytes(
        (photos / "1.png").read_bytes()
    )
    result = vlmbatch(
        "caption", "photos", "--model", tiny, "--max-new-tokens", 2, "-o", "out.jsonl", "-q"
    )
    assert result.returncode == 3, result.stderr
    found = {str(row["id"]): row for row in lines(tmp_path / "out.jsonl")}
    bad = {name for name, row in found.items() if row["status"] == "error"}
    assert bad == {"cut.jpg", "empty.png", "text.jpg", "huge.png", "broken link.png"}
    assert {"0.png", "one.png", "tall.png", "a new\nline.png", "whole.jpg"} <= found.keys() - bad
    assert len(found) == 14
    assert "--max-pixels" in str(found["huge.png"]["error"])
    assert found["broken link.png"]["error_type"] == "ReadError"


def test_a_dry_run_prints_a_job_that_run_takes_back(
    vlmbatch: Command, photos: Path, tiny: Path, tmp_path: Path
) -> None:
    result = vlmbatch(
        "vqa", "photos", "-q", "Why?", "--model", "no/model", "--detail", "low", "--dry-run"
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout.startswith("# 4 items\n# 4 new, 0 changed, 0 done\n")
    printed = yaml.safe_load(result.stdout)
    assert (printed["questions"], printed["detail"], printed["output"]) == (
        ["Why?"],
        "low",
        "photos.vqa.jsonl",
    )
    (tmp_path / "job.yaml").write_text(result.stdout)
    again = vlmbatch("run", "job.yaml", "--dry-run")
    assert again.stdout == result.stdout
    result = vlmbatch(
        "run", "job.yaml", "--set", f"model={tiny}", "--set", "max_new_tokens=2", "--set", "limit=2"
    )
    assert result.returncode == 0, result.stderr
    assert len(lines(tmp_path / "photos.vqa.jsonl")) == 2


def test_video_by_frames_and_as_a_clip(vlmbatch: Command, tiny: Path, tmp_path: Path) -> None:
    (tmp_path / "clips").mkdir()
    write_video(tmp_path / "clips" / "a.mp4", 30, fps=10)
    write_picture(tmp_path / "clips" / "photo.png")
    (tmp_path / "clips" / "bad.mp4").write_text("no video")
    result = vlmbatch(
        "video", "clips", "--fps", 2, "--model", tiny, "--max-new-tokens", 2, "-o", "frames.jsonl"
    )
    assert result.returncode == 3, result.stderr
    assert "1 image left alone" in result.stderr
    found = lines(tmp_path / "frames.jsonl")
    assert [row["id"] for row in found] == [f"a.mp4#t={t / 2:.3f}" for t in range(6)] + ["bad.mp4"]
    result = vlmbatch(
        "video",
        "clips/a.mp4",
        "--per",
        "clip",
        "--task",
        "vqa",
        "-q",
        "Which way?",
        "--model",
        tiny,
        "--max-new-tokens",
        2,
        "-o",
        "clip.jsonl",
    )
    assert result.returncode == 0, result.stderr
    clip = lines(tmp_path / "clip.jsonl")[0]
    assert (clip["id"], clip["media"], clip["time_seconds"]) == ("a.mp4", "clip", 0)
    assert clip["tiles"] == 3


def test_a_stretch_that_a_video_does_not_have_is_not_called_no_video(
    vlmbatch: Command, tiny: Path, tmp_path: Path
) -> None:
    write_video(tmp_path / "a.mp4", 5)
    result = vlmbatch("video", "a.mp4", "--start", 10, "--model", tiny)
    assert result.returncode == 66, result.stderr
    assert "nothing to ask about: a.mp4: no frame of it was asked for; --allow" in result.stderr
    assert "no video found" not in result.stderr


def test_a_time_behind_the_end_of_a_video_is_said_once(
    vlmbatch: Command, tiny: Path, tmp_path: Path
) -> None:
    write_video(tmp_path / "a.mp4", 5)
    result = vlmbatch("video", "a.mp4", "--at", "0,30", "--model", tiny, "--max-new-tokens", 2)
    assert result.stderr.count("no frame at 30 s: the video ends at ") == 1


def test_shuffled_frames_are_a_sample_of_the_whole_video(
    vlmbatch: Command, tiny: Path, tmp_path: Path
) -> None:
    write_video(tmp_path / "a.mp4", 60, fps=10)
    command = [
        "video",
        "a.mp4",
        "--fps",
        5,
        "--shuffle",
        "--model",
        tiny,
        "--max-new-tokens",
        2,
        "-o",
        "frames.jsonl",
    ]
    assert vlmbatch(*command, "--limit", 4).returncode == 0
    found = lines(tmp_path / "frames.jsonl")
    assert len(found) == 4
    assert [row["index"] for row in found] == sorted(row["index"] for row in found)
    assert found[-1]["index"] > 3
    assert vlmbatch(*command).returncode == 0
    again = lines(tmp_path / "frames.jsonl")
    assert [row["id"] for row in again] == [f"a.mp4#t={number / 5:.3f}" for number in range(30)]
    assert [row for row in again if row["id"] in {row["id"] for row in found}] == found


def test_questions_about_nothing_here_are_one_line(
    vlmbatch: Command, photos: Path, tiny: Path, tmp_path: Path
) -> None:
    (tmp_path / "q.csv").write_text("id,question\n0.png,Why?\nphotos/1.png,Why?\n")
    command = ["vqa", "photos", "--questions", "q.csv", "--model", tiny, "--max-new-tokens", 2]
    result = vlmbatch(*command)
    assert result.returncode == 0
    assert (
        "question file q.csv: no item has 1 of its 2 ids, such as 'photos/1.png'\n" in result.stderr
    )
    (tmp_path / "q.csv").write_text("id,question\nphotos/1.png,Why?\n")
    for options in (["-o", "new.jsonl"], ["--dry-run"]):
        result = vlmbatch(*command, *options)
        assert result.returncode == 66
        assert (
            "vlmbatch: question file q.csv: no item has its id: it asks about 'photos/1.png', and "
            "an item here is '0.png'\n" in result.stderr
        )
    assert not list(tmp_path.glob("new.jsonl*"))


def test_similar_frames_are_told_in_the_closing_lines(
    vlmbatch: Command, tiny: Path, tmp_path: Path
) -> None:
    write_video(tmp_path / "a.mp4", 30, fps=10, draw=lambda number: numbered(0))
    result = vlmbatch(
        "video",
        "a.mp4",
        "--keyframes",
        "--model",
        tiny,
        "--max-new-tokens",
        2,
        "-o",
        "still.jsonl",
        "--skip-similar",
    )
    assert result.returncode == 0, result.stderr
    assert "1 answer ok, 2 similar, 0 errors" in result.stderr
    assert (
        "2 of 3 frames resembled an earlier one: so many encodes and 2 answers saved"
        in result.stderr
    )
    assert [row["similar_to"] for row in lines(tmp_path / "still.jsonl")] == [
        None,
        "a.mp4#t=0.000",
        "a.mp4#t=0.000",
    ]


def test_stats_tell_what_a_run_took(vlmbatch: Command, photos: Path, tiny: Path) -> None:
    vlmbatch("caption", "photos", "--model", tiny, "--max-new-tokens", 2, "-o", "x.parquet")
    result = vlmbatch("stats", "x.parquet")
    assert result.returncode == 0
    assert "4 items, 4 rows" in result.stdout
    assert re.search(r"decode +\d", result.stdout)
    assert json.loads(vlmbatch("stats", "x.parquet", "--json").stdout)["new_tokens"] == 8


@pytest.mark.parametrize(
    "asking", [["stats"], ["export", "--to", "csv"], ["eval", "--reference", "right.csv"]]
)
def test_what_a_killed_run_left_is_told_to_who_asks(
    vlmbatch: Command, tmp_path: Path, asking: list[str]
) -> None:
    rows = store(tmp_path / "out.jsonl")
    rows.write(record(0))
    rows.write(record(1))
    rows.commit()
    rows.abandon()
    (tmp_path / "right.csv").write_text("id,answer\n0.jpg,x\n")
    result = vlmbatch(*asking, "out.jsonl")
    assert result.returncode == 1
    assert (
        "out.jsonl.journal holds 2 rows, and the same command goes on from there" in result.stderr
    )


def test_log_lines_can_be_json_events(
    vlmbatch: Command, photos: Path, tiny: Path, tmp_path: Path
) -> None:
    (photos / "bad.jpg").write_text("hello")
    result = vlmbatch(
        "caption", "photos", "--model", tiny, "--max-new-tokens", 2, "--log-format", "json"
    )
    entries = [json.loads(line) for line in result.stderr.splitlines()]
    events = {entry["event"]: entry for entry in entries}
    assert {"run_started", "loading", "engine_ready", "item_error", "run_finished"} <= events.keys()
    [row, *_] = lines(tmp_path / "photos.caption.jsonl")
    assert {entry["run_id"] for entry in entries} == {row["run_id"]}
    assert all({"time", "level", "message"} <= entry.keys() for entry in entries)
    assert (events["item_error"]["id"], events["item_error"]["error_type"]) == (
        "bad.jpg",
        "DecodeError",
    )
    end = events["run_finished"]
    assert (end["exit_code"], end["status"]) == (3, {"ok": 4, "error": 1})
    assert (end["items"], end["errors"], end["level"]) == (5, {"DecodeError": 1}, "info")
    quiet = ("--max-new-tokens", 2, "--log-format", "json", "--quiet", "--retry-errors")
    again = vlmbatch("caption", "photos", "--model", tiny, *quiet)
    assert (again.returncode, again.stderr) == (3, "")


@pytest.mark.parametrize(
    ("arguments", "code"),
    [(["nowhere"], 2), (["photos", "--model", "{tiny}", "--device", "cuda:7"], 1)],
)
def test_so_can_what_ends_a_run(
    vlmbatch: Command, photos: Path, tiny: Path, arguments: list[str], code: int
) -> None:
    result = vlmbatch(
        "caption", *(argument.format(tiny=tiny) for argument in arguments), "--log-format", "json"
    )
    assert result.returncode == code
    entries = [json.loads(line) for line in result.stderr.splitlines()]
    [error] = [entry for entry in entries if entry["event"] == "error"]
    assert (error["level"], error["exit_code"]) == ("error", code)
    assert error["error"] == error["message"]


def test_manifests_and_archives_are_inputs_and_carry_columns(
    vlmbatch: Command, photos: Path, tiny: Path, tmp_path: Path
) -> None:
    (tmp_path / "rows.csv").write_text("image,label\nphotos/0.png,cat\nphotos/gone.png,dog\n")
    shutil.make_archive(str(tmp_path / "shard"), "gztar", photos)
    command = (
        "caption",
        "rows.csv",
        "shard.tar.gz",
        "--keep",
        "label=kind",
        "--model",
        tiny,
        "--max-new-tokens",
        2,
        "-o",
        "out.parquet",
    )
    result = vlmbatch(*command)
    assert result.returncode == 3, result.stderr
    rows = pq.read_table(tmp_path / "out.parquet").to_pylist()
    found = [(row["id"], row["kind"], row["status"]) for row in rows]
    assert found[:2] == [("photos/0.png", "cat", "ok"), ("photos/gone.png", "dog", "error")]
    assert found[2:] == [(f"shard.tar.gz/{number}.png", None, "ok") for number in range(4)]
    assert "nothing new: 5 answers and 1 error done before" in vlmbatch(*command).stderr
    plan = vlmbatch(*command, "--dry-run").stdout
    assert plan.startswith("# 6 items\n# 0 new, 0 changed, 6 done\n")
    other = vlmbatch(*command, "--id-column", "label", "--dry-run")
    assert "# the run is refused: out.parquet was made with other settings (" in other.stdout
    assert "id_column: none there, label here" in other.stdout
    refused = vlmbatch(*command, "--id-column", "label")
    assert (refused.returncode, "id_column: none there, label here" in refused.stderr) == (1, True)
    assert pq.read_metadata(tmp_path / "out.parquet").num_rows == 6
    refused = vlmbatch("caption", "rows.csv", "--keep", "nope", "--model", tiny)
    assert (refused.returncode, refused.stderr) == (
        2,
        "vlmbatch: manifest rows.csv: it has no column 'nope' (columns: image, label)\n",
    )


def test_broken_pictures_are_named_with_the_command_that_lists_all(
    vlmbatch: Command, photos: Path, tiny: Path
) -> None:
    for number in range(4):
        (photos / f"bad {number}.jpg").write_text("hello")
    command = ("caption", "photos", "--model", tiny, "--max-new-tokens", 2, "-o", "a b.jsonl")
    said = vlmbatch(*command).stderr
    assert "4 answers ok, 4 errors" in said
    assert "  4 x DecodeError\n    bad " in said
    # The first three that failed, in the order in which they did.
    assert sum(f"    bad {number}.jpg: " in said for number in range(4)) == 3
    listing = said.split("all of them: vlmbatch ")[1].splitlines()[0]
    assert "bad 3.jpg" in vlmbatch(*shlex.split(listing)).stdout
    assert vlmbatch("stats", "a b.jsonl").stdout.count("    bad ") == 3
    again = vlmbatch(*command)
    assert "4 kept errors" in again.stderr
    assert again.returncode == 0  # nothing of it was asked again
