"""``export`` and ``--sidecar`` from their arguments to files and exit codes, with a tiny
checkpoint.
"""

from __future__ import annotations

import csv
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import webvtt

from tests.cli.conftest import Command
from tests.media import write_picture, write_video
from tests.write.rows import failed, record, store


@pytest.fixture
def output(tmp_path: Path) -> Path:
    """Three rows about pictures that are not there."""
    with store(tmp_path / "out.jsonl") as rows:
        for made in (record(0, "=1+1 naïve"), failed(1), record(2, "two\nlines")):
            rows.write(made)
    return tmp_path / "out.jsonl"


def test_tables_go_round_and_come_back_as_they_were(
    vlmbatch: Command, output: Path, tmp_path: Path
) -> None:
    for arguments in (
        ("out.jsonl", "--to", "parquet"),
        ("out.parquet", "--to", "csv", "--bom", "-o", "new/x.csv"),
        ("new/x.csv", "--to", "jsonl", "-o", "again.jsonl"),
    ):
        result = vlmbatch("export", *arguments)
        assert result.returncode == 0, result.stderr
        assert result.stderr.startswith("3 rows -> ")
    assert (tmp_path / "again.jsonl").read_bytes() == output.read_bytes()
    assert (tmp_path / "new" / "x.csv").read_bytes().startswith(b"\xef\xbb\xbfid,")
    assert pq.read_table(tmp_path / "out.parquet")["text"].to_pylist()[0] == "=1+1 naïve"
    sheet = vlmbatch("export", "out.parquet", "--to", "csv", "-o", "-")
    assert (
        next(row["text"] for row in csv.DictReader(sheet.stdout.splitlines(keepends=True)))
        == "'=1+1 naïve"
    )


def test_texts_go_to_a_folder_in_the_tree_of_the_ids(
    vlmbatch: Command, output: Path, tmp_path: Path
) -> None:
    result = vlmbatch("export", output, "--to", "txt", "-o", "texts")
    assert result.returncode == 0
    assert "2 sidecars written" in result.stderr
    assert {
        path.name: path.read_text(encoding="utf-8") for path in (tmp_path / "texts").glob("*.txt")
    } == {
        "00000.txt": "=1+1 naïve\n",
        "00002.txt": "two\nlines\n",
    }
    (tmp_path / "texts" / "00000.txt").write_text("mine")
    assert (
        "1 file there that we did not write, or that was changed since: kept"
        in vlmbatch("export", output, "--to", "txt", "-o", "texts").stderr
    )
    again = ("export", output, "--to", "txt", "-o", "texts")
    assert "kept (--overwrite-all replaces)" in vlmbatch(*again, "--overwrite").stderr
    assert "1 sidecar written" in vlmbatch(*again, "--overwrite-all").stderr
    assert "2 items without a file on this disk" in vlmbatch("export", output, "--to", "txt").stderr


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["none.jsonl", "--to", "csv"], 1, "cannot read none.jsonl: No such file"),
        (["photo.png", "--to", "csv"], 1, "photo.png is none of .jsonl, .parquet, .csv"),
        (
            ["theirs.jsonl", "--to", "csv"],
            1,
            "theirs.jsonl was not written by vlmbatch (line 1 is not a record)",
        ),
        (
            ["other.csv", "--to", "txt"],
            1,
            "other.csv was not written by vlmbatch (it has no column 'id')",
        ),
        (["out.jsonl", "--to", "jsonl"], 2, "out.jsonl is the OUTPUT itself"),
        (
            ["out.jsonl", "--to", "csv", "-o", "other.csv"],
            1,
            "other.csv is there; --overwrite replaces it",
        ),
        (
            ["out.jsonl", "--to", "csv", "-o", "x.txt"],
            2,
            "--to csv writes a file that ends in .csv",
        ),
        (["out.jsonl", "--to", "parquet", "-o", "-"], 2, "parquet does not go to stdout"),
        (["out.jsonl", "--to", "jsonl", "-o", "x.jsonl", "--bom"], 2, "--bom goes with --to csv"),
        (["out.jsonl", "--to", "srt"], 2, "has no times: srt files are made from videos"),
        (["out.jsonl", "--to", "txt", "-o", "-"], 2, "cannot go to stdout"),
        (
            ["out.jsonl", "--to", "txt", "-o", "all.txt"],
            2,
            "is about 3 files, not one: give -o FOLDER",
        ),
        (["out.jsonl", "--to", "docx"], 2, "'docx' is not one of"),
        (["out.jsonl"], 2, "Missing option '--to'"),
    ],
)
def test_what_goes_wrong_is_one_line_and_an_exit_code(
    vlmbatch: Command, output: Path, tmp_path: Path, arguments: list[str], code: int, message: str
) -> None:
    write_picture(tmp_path / "photo.png")
    (tmp_path / "theirs.jsonl").write_text('{"a": 1}\n')
    (tmp_path / "other.csv").write_text("a,b\n1,2\n")
    before = sorted(path.name for path in tmp_path.iterdir())
    result = vlmbatch("export", *arguments)
    assert result.returncode == code, result.stderr
    assert message in result.stderr
    assert "Traceback" not in result.stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == before
    assert (tmp_path / "other.csv").read_text() == "a,b\n1,2\n"


def test_a_video_run_writes_subtitles_and_export_writes_the_same(
    vlmbatch: Command, tiny: Path, tmp_path: Path
) -> None:
    (tmp_path / "clips").mkdir()
    write_video(tmp_path / "clips" / "a.mp4", 30, fps=10)
    result = vlmbatch(
        "video",
        "clips",
        "--fps",
        2,
        "--model",
        tiny,
        "--max-new-tokens",
        2,
        "-o",
        "frames.parquet",
        "--sidecar",
        "vtt",
    )
    assert result.returncode == 0, result.stderr
    assert "1 sidecar written" in result.stderr
    assert (
        "6 of 6 answers were cut off at --max-new-tokens 2; --redo cut-off --max-new-tokens 8"
        in result.stderr
    )
    cues = list(webvtt.read(tmp_path / "clips" / "a.vtt"))
    assert cues[0].start == "00:00:00.000"
    assert cues[-1].end == "00:00:03.000"
    assert vlmbatch("export", "frames.parquet", "--to", "vtt", "-o", "b.vtt").returncode == 0
    assert (tmp_path / "b.vtt").read_bytes() == (tmp_path / "clips" / "a.vtt").read_bytes()
    printed = vlmbatch("video", "clips", "--model", "demo", "--sidecar", "srt", "--dry-run").stdout
    assert "sidecar: srt\n" in printed
