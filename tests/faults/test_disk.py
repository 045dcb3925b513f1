"""Disks that are full or read-only: one line, the right exit code, and every row that was kept
before.
"""

from __future__ import annotations

import os
import re
import resource
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.faults.runs import begin, finish, ids_of, kept_on_disk, write_photos

SCRIPTED = ("-m", "tests.faults.scripted")


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of half a megabyte; only root can make one."""
    folder = tmp_path / "disk"
    folder.mkdir()
    try:
        subprocess.run(
            ["mount", "-t", "tmpfs", "-o", "size=512k", "tmpfs", folder],
            check=True,
            capture_output=True,
        )
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("no permission to mount a disk")
    yield folder
    subprocess.run(["umount", "-l", folder], check=True, capture_output=True)


def test_a_full_disk_ends_a_run_and_more_room_lets_it_go_on(
    tmp_path: Path, small_disk: Path
) -> None:
    wanted = write_photos(tmp_path / "photos", 900)
    output = small_disk / "out.jsonl"
    code, said = finish(tmp_path, "photos", output, 0, program=SCRIPTED)
    assert code == 1, said
    assert "No space left on device" in said
    assert "Traceback" not in said
    kept = kept_on_disk(output)
    assert 256 <= len(kept) < 900
    assert re.search(r"only \d+ of these \d+ rows stored", said)
    code, said = finish(
        tmp_path, "photos", output, 0, program=SCRIPTED
    )  # the disk is as full as before
    assert code == 1, said
    assert kept <= kept_on_disk(output)
    subprocess.run(["mount", "-o", "remount,size=32m", small_disk], check=True, capture_output=True)
    code, said = finish(tmp_path, "photos", output, 0, program=SCRIPTED)
    assert code == 0, said
    assert ids_of(output) == wanted
    assert sorted(path.name for path in small_disk.iterdir()) == [
        "out.jsonl",
        "out.jsonl.journal",
        "out.jsonl.runs.jsonl",
        "out.jsonl.summary.json",
    ]


def test_a_limit_on_the_size_of_files_is_a_full_disk(tmp_path: Path) -> None:
    wanted = write_photos(tmp_path / "photos", 700)
    output = tmp_path / "out.parquet"
    limits = {
        "preexec_fn": lambda: resource.setrlimit(
            resource.RLIMIT_FSIZE, (400_000, resource.RLIM_INFINITY)
        )
    }
    code, said = finish(tmp_path, "photos", output, 0, program=SCRIPTED, **limits)
    assert code == 1, said
    assert "File too large" in said
    kept = kept_on_disk(output)
    assert 256 <= len(kept) < 700
    assert finish(tmp_path, "photos", output, 0, program=SCRIPTED)[0] == 0
    assert ids_of(output) == wanted


def test_a_read_only_disk_is_one_line_and_output_stays(tmp_path: Path, small_disk: Path) -> None:
    wanted = write_photos(tmp_path / "photos", 20)
    output = small_disk / "out.jsonl"
    assert finish(tmp_path, "photos", output, 0, program=SCRIPTED)[0] == 0
    subprocess.run(["mount", "-o", "remount,ro", small_disk], check=True, capture_output=True)
    write_photos(tmp_path / "photos", 30)
    for path in (output, small_disk / "new" / "out.jsonl"):
        code, said = finish(tmp_path, "photos", path, 0, program=SCRIPTED)
        assert code == 1
        assert "Read-only file system" in said
        assert said.count("\n") == 1
    assert ids_of(output) == wanted


def test_a_folder_that_goes_away_during_a_run_ends_it(tmp_path: Path) -> None:
    write_photos(tmp_path / "photos", 200)
    output = tmp_path / "there" / "out.jsonl"
    process = begin(tmp_path, "photos", output, 10, program=SCRIPTED)
    while process.poll() is None and not Path(f"{output}.journal").exists():
        time.sleep(0.01)
    shutil.rmtree(output.parent)
    said = "".join(process.communicate())
    assert process.returncode == 1
    assert "No such file or directory" in said
    assert "Traceback" not in said


def test_a_folder_that_may_not_be_written_to_is_one_line(tmp_path: Path) -> None:
    if os.geteuid() == 0:
        pytest.skip("root may write everywhere")
    write_photos(tmp_path / "photos", 3)
    (tmp_path / "there").mkdir(mode=0o500)
    code, said = finish(tmp_path, "photos", "there/out.jsonl", 0, program=SCRIPTED)
    assert code == 1
    assert "Permission denied" in said
    assert said.count("\n") == 1
