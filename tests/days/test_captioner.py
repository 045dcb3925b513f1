"""A day of a dataset captioner: captions beside pictures, corrected by hand, handed on."""

from __future__ import annotations

import csv
import json
import os
from pathlib import Path

from tests.days.conftest import Work, rows, shape


def test_a_day_of_a_dataset_captioner(work: Work, tool: Work, tmp_path: Path) -> None:
    photos = tmp_path / "photos"
    shape(photos / "2019" / "circle.png", "red")
    shape(photos / "2019" / "square.png", "blue", "square")
    shape(photos / "dot.png", "green")
    caption = ("caption", "photos", "-o", "captions.jsonl", "--sidecar", "txt")

    # Morning: a caption beside each picture, as trainers read them.
    done = work(*caption, "--max-new-tokens", 3)
    assert "3 answers ok" in done.stderr
    assert "3 of 3 answers were cut off at --max-new-tokens 3" in done.stderr
    assert "--redo cut-off --max-new-tokens 12" in done.stderr
    # They were too short. As the line says: only those again, in the same OUTPUT.
    work(*caption, "--redo", "cut-off", "--max-new-tokens", 12)
    assert (photos / "2019" / "circle.txt").read_text() == "A red circle.\n"

    # The captions that the model was least sure of, in a sheet.
    sheet = ("--to", "csv", "--columns", "id,text,mean_logprob", "--sort", "mean_logprob")
    tool("export", "captions.jsonl", *sheet, "--limit", 2, "--bom", "-o", "unsure.csv")
    with open(tmp_path / "unsure.csv", encoding="utf-8-sig", newline="") as file:
        unsure = list(csv.DictReader(file))
    assert len(unsure) == 2
    assert float(unsure[0]["mean_logprob"]) <= float(unsure[1]["mean_logprob"])

    # Noon: two are corrected, one in its .txt file, one in the sheet. Nothing else is touched.
    (photos / "2019" / "circle.txt").write_text("a red balloon\n")
    assert "1 text corrected" in tool("correct", "captions.jsonl", "photos").stderr
    (tmp_path / "sheet.csv").write_text("id;text\ndot.png;a green apple\n")
    assert "1 text corrected" in tool("correct", "captions.jsonl", "sheet.csv").stderr
    # Sheets and files that stand as they were written take neither of them back.
    done = tool("correct", "captions.jsonl", "unsure.csv")
    assert "0 texts corrected" in done.stderr
    assert "kept: what unsure.csv has there was written by vlmbatch" in done.stderr
    done = tool("correct", "captions.jsonl", "photos")
    assert "0 texts corrected" in done.stderr
    assert "1 text (such as dot.png) kept: what photos has there" in done.stderr
    texts = {row["id"]: row["text"] for row in rows(tmp_path / "captions.jsonl")}
    assert texts["2019/circle.png"] == "a red balloon"
    assert texts["dot.png"] == "a green apple"

    # New pictures came, and the disk was copied: every file has another time. Only the new one is
    # asked about, and the corrections are there.
    shape(photos / "2020" / "new.png", "purple", "square")
    for path in sorted(photos.rglob("*.*")):
        os.utime(path, (1_500_000_000, 1_500_000_000))
    done = work(*caption, "--max-new-tokens", 12)
    assert "1 answer ok" in done.stderr
    assert "2 texts edited in OUTPUT kept" in done.stderr
    assert (photos / "dot.txt").read_text() == "a green apple\n"

    # Evening: how good the model was, what it could learn, and the data set for others.
    done = tool("eval", "captions.jsonl", "--reference", "captions.jsonl", "--json", "-")
    assert json.loads(done.stdout)["all"]["scores"]["exact"]["value"] == 0.5
    done = tool("finetune", "photos", "--model", "demo", "--dry-run")
    assert done.stdout.startswith("# 3 rows to train on, 1 held out")
    tool("export", "captions.jsonl", "--to", "imagefolder", "-o", "dataset")
    lines = {row["file_name"]: row["text"] for row in rows(tmp_path / "dataset" / "metadata.jsonl")}
    assert lines["2019/circle.png"] == "a red balloon"
    assert len(lines) == 4
