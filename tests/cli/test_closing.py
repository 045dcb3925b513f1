"""What a run says at its end, and a dry run beforehand."""

from __future__ import annotations

import json
from pathlib import Path

from tests.cli.conftest import Command
from tests.media import write_picture


def test_files_with_the_id_of_another_one_are_said_with_an_example(
    vlmbatch: Command, tiny: Path, tmp_path: Path
) -> None:
    write_picture(tmp_path / "a" / "1.png", seed=1)
    write_picture(tmp_path / "b" / "1.png", seed=2)
    caption = ("-o", "x.jsonl", "--model", tiny, "--max-new-tokens", 2)
    assert "id of another one" not in vlmbatch("caption", "a", *caption).stderr
    line = (
        "1 file has the id of another one, whose row is replaced (1.png: was a/1.png, is b/1.png "
        "now); another OUTPUT or their common folder as INPUT keeps both"
    )
    assert f"# {line}\n" in vlmbatch("caption", "b", *caption, "--dry-run").stdout
    assert line in vlmbatch("caption", "b", *caption).stderr
    (tmp_path / "fixed.csv").write_text("id,text\n1.png,a red barn\n")
    vlmbatch("correct", "x.jsonl", "fixed.csv")
    line = (
        "1 file has the id of another one, whose corrected text is kept (1.png: it is of b/1.png, "
        "and a/1.png gets no row); another OUTPUT or"
    )
    assert f"# {line}" in vlmbatch("caption", "a", *caption, "--dry-run").stdout
    assert line in vlmbatch("caption", "a", *caption).stderr


def test_a_run_with_nothing_to_do_says_so_and_counts_errors_apart(
    vlmbatch: Command, photos: Path, tiny: Path, tmp_path: Path
) -> None:
    (photos / "bad.jpg").write_text("hello")
    caption = ("caption", "photos", "-o", "x.jsonl", "--model", tiny, "--max-new-tokens", 2)
    assert "4 answers ok, 1 error -> x.jsonl" in vlmbatch(*caption).stderr
    for _ in range(2):
        said = vlmbatch(*caption).stderr
        assert said.startswith("nothing new: 4 answers and 1 error done before -> x.jsonl\n")
        assert "1 kept error: done before and not asked again; --retry-errors asks again" in said
        assert "items/s" not in said
    write_picture(photos / "new.png", seed=77)
    said = vlmbatch(*caption).stderr
    assert "): 1 answer ok, 0 errors, 4 answers and 1 error done before -> x.jsonl\n" in said
    end = json.loads(vlmbatch(*caption, "--log-format", "json").stderr.splitlines()[-2])
    assert (end["event"], end["kept"]) == ("run_finished", {"items": 6, "rows": 6, "errors": 1})


def test_a_run_that_finds_nothing_says_why_in_one_line(
    vlmbatch: Command, tiny: Path, tmp_path: Path
) -> None:
    (tmp_path / "empty").mkdir()
    caption = ("caption", "empty", "-o", "x.jsonl", "--model", tiny)
    result = vlmbatch(*caption)
    assert result.returncode == 66
    assert result.stderr.startswith("vlmbatch: nothing to ask about: no image found in empty")
    assert result.stderr.count("\n") == 1
    said = vlmbatch(*caption, "--allow-empty").stderr
    assert said == "nothing to do -> x.jsonl\nno images found\n"
    events = vlmbatch(*caption, "--log-format", "json").stderr.splitlines()
    assert json.loads(events[-1])["event"] == "run_finished"
    write_picture(tmp_path / "a.png").rename(tmp_path / "empty" / "scan")
    why = "1 picture without a suffix left alone (rename, or give each as INPUT)"
    assert why in vlmbatch(*caption).stderr
    write_picture(tmp_path / "empty" / "b.png")
    assert f"\n{why}\n" in vlmbatch(*caption, "--max-new-tokens", 2).stderr


def test_an_estimate_is_of_what_is_left_to_do(
    vlmbatch: Command, photos: Path, tiny: Path, tmp_path: Path
) -> None:
    caption = ("caption", "photos", "-o", "x.jsonl", "--model", tiny, "--max-new-tokens", 2)
    vlmbatch(*caption, "--limit", 3)
    said = vlmbatch(*caption, "--estimate").stdout
    assert said.startswith("1 item, 3 done before; torch on cpu, ")
    tiles = [int(line.split()[1]) for line in said.splitlines()[2:5]]
    assert vlmbatch(*caption, "--estimate", "--overwrite").stdout.startswith("4 items; torch on")
    assert tiles[2] == 1  # at low detail
    vlmbatch(*caption)
    said = vlmbatch(*caption, "--estimate").stdout
    assert said == "0 items, 4 done before: there is nothing to do\n"
    assert vlmbatch(*caption, "--detail", "low", "--estimate").stdout.startswith("4 items; torch")
