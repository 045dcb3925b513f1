"""A folder of pictures and answers, as ``datasets`` loads it."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.cli.conftest import Command
from tests.cli.conftest import _command_leaves_nothing as _command_leaves_nothing
from tests.cli.conftest import vlmbatch as vlmbatch
from tests.media import write_picture
from tests.write.rows import failed, record, store

LOAD = """
import json, os, sys
os.environ |= {"HF_HUB_OFFLINE": "1", "HF_DATASETS_CACHE": sys.argv[2]}
import datasets
datasets.disable_progress_bars()
loaded = datasets.load_dataset("imagefolder", data_dir=sys.argv[1])
print(json.dumps({
    split: [{**row, "image": row["image"].size} for row in rows] for split, rows in loaded.items()
}))
"""


def loaded(folder: Path) -> Any:
    command = [sys.executable, "-c", LOAD, folder, folder.parent / "cache"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def output(tmp_path: Path, *names: str) -> Path:
    """An OUTPUT about pictures, the first one 10 pixels wide, the second one 11."""
    with store(tmp_path / "out.jsonl") as rows:
        for number, name in enumerate(names):
            source = write_picture(tmp_path / "photos" / name, 10 + number, 8)
            rows.write(record(number, f"about {name}", id=name, source=str(source)))
        rows.write(failed(98))
        rows.write(record(99))
    return tmp_path / "out.jsonl"


@pytest.mark.parametrize("link", [False, True])
def test_datasets_loads_the_folder(vlmbatch: Command, tmp_path: Path, link: bool) -> None:
    output(tmp_path, "a.png", "2019/ü.png")
    done = vlmbatch("export", "out.jsonl", "--to", "imagefolder", *(["--link"] if link else []))
    assert done.returncode == 0, done.stderr
    assert "left out: 2 items: no picture file on this disk" in done.stderr
    folder = tmp_path / "out.imagefolder"
    lines = [json.loads(line) for line in (folder / "metadata.jsonl").read_text().splitlines()]
    assert lines == [
        {"file_name": "a.png", "text": "about a.png"},
        {"file_name": "2019/ü.png", "text": "about 2019/ü.png"},
    ]
    assert (folder / "a.png").is_symlink() is link
    found = loaded(folder)
    assert list(found) == ["train"]
    rows = [(tuple(row["image"]), row["text"]) for row in found["train"]]
    assert rows == [((10, 8), "about a.png"), ((11, 8), "about 2019/ü.png")]


def test_names_that_datasets_takes_for_splits_lose_no_picture(
    vlmbatch: Command, tmp_path: Path
) -> None:
    output(tmp_path, "test/1.png", "test_1.png", "2020/val 3.png")
    done = vlmbatch("export", "out.jsonl", "--to", "imagefolder", "-o", "set")
    assert "all pictures are in the folder train" in done.stderr
    found = loaded(tmp_path / "set")
    assert {split: [row["text"] for row in rows] for split, rows in found.items()} == {
        "train": ["about test/1.png", "about test_1.png", "about 2020/val 3.png"]
    }


def test_several_questions_are_columns_and_pictures_without_answer_are_left_out(
    vlmbatch: Command, tmp_path: Path
) -> None:
    sources = [str(write_picture(tmp_path / f"{number}.png")) for number in range(2)]
    with store(tmp_path / "out.jsonl") as rows:
        rows.write(record(0, "a dog", source=sources[0]))
        rows.write(record(0, "brown", source=sources[0], task="vqa", prompt="Colour?"), question=1)
        rows.write(dataclasses.replace(failed(1), source=sources[1]))
    done = vlmbatch("export", "out.jsonl", "--to", "imagefolder", "-o", "set")
    assert "left out: 1 item: no answer" in done.stderr
    [line] = (tmp_path / "set" / "metadata.jsonl").read_text().splitlines()
    assert json.loads(line) == {"file_name": "00000.jpg", "caption": "a dog", "Colour?": "brown"}


def test_a_folder_without_pictures_is_no_success(vlmbatch: Command, tmp_path: Path) -> None:
    with store(tmp_path / "out.jsonl") as rows:
        rows.write(record(0))
    done = vlmbatch("export", "out.jsonl", "--to", "imagefolder", "-o", "set")
    assert done.returncode == 66
    assert "1 without a picture file here (a source counts from the folder" in done.stderr
    assert not (tmp_path / "set").exists()


def test_pictures_that_are_no_files_here_are_left_out_with_the_reason(
    vlmbatch: Command, tmp_path: Path
) -> None:
    (tmp_path / "a.zip").write_bytes(b"PK")
    sources = ("a.zip/0.png", "a.zip/1.png", "https://example.com/2.png", "gone/3.png")
    with store(tmp_path / "out.jsonl") as rows:
        for number, source in enumerate(sources):
            rows.write(record(number, source=source))
        rows.write(failed(4))
    done = vlmbatch("export", "out.jsonl", "--to", "imagefolder", "-o", "set")
    assert done.returncode == 66
    reasons = (
        "2 inside an archive or a table, 1 behind a URL, 1 not found, 1 an error row; 0 without"
    )
    assert "5 without a picture file here (" in done.stderr
    assert reasons in done.stderr
    done = vlmbatch("export", "out.jsonl", "--to", "imagefolder", "-o", "set", "--task", "ocr")
    assert done.returncode == 66
    assert "no rows of out.jsonl for set: no task is ocr: there is caption" in done.stderr


def test_only_a_folder_that_an_export_made_is_replaced(vlmbatch: Command, tmp_path: Path) -> None:
    output(tmp_path, "a.png")
    arguments = ("export", "out.jsonl", "--to", "imagefolder", "-o")
    assert vlmbatch(*arguments, "set").returncode == 0
    assert "set is there; --overwrite replaces it" in vlmbatch(*arguments, "set").stderr
    assert vlmbatch(*arguments, "set", "--overwrite").returncode == 0
    done = vlmbatch(*arguments, "photos", "--overwrite")
    assert done.returncode == 1
    assert "photos holds something else" in done.stderr
    (tmp_path / "photos" / ".vlmbatch-export").touch()
    done = vlmbatch(*arguments, "photos", "--overwrite")
    assert "photos has the pictures of OUTPUT; choose another folder" in done.stderr
    assert (tmp_path / "photos" / "a.png").exists()
