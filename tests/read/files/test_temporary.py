"""Copies of videos go with what needs them, and those of killed processes with the next run."""

from __future__ import annotations

import gc
import os
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path
from threading import Thread

import pytest

from tests.media import write_video
from tests.processes import start
from vlmbatch.errors import ReadError
from vlmbatch.job import Job
from vlmbatch.read import open_reader
from vlmbatch.read.files.temporary import TemporaryFile, remove_leftovers
from vlmbatch.sample import make_sampler

COPIES = """
import sys
from vlmbatch.read.files.temporary import TemporaryFile
copies = [TemporaryFile(".mp4", lambda file: file.write(b"video")) for _ in range(3)]
print(copies[0].path, flush=True)
sys.stdin.read()
"""


@pytest.fixture
def copies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder for temporary files, empty."""
    folder = tmp_path / "copies"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    return folder


def begin(copies: Path) -> tuple[subprocess.Popen[str], Path]:
    """A process that holds three copies, and where the first of them is."""
    environment = {
        **os.environ,
        "TMPDIR": str(copies),
        "PYTHONPATH": str(Path(__file__).parents[3]),
    }
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    process = start([sys.executable, "-c", COPIES], env=environment, **pipes)
    assert process.stdout is not None
    return process, Path(process.stdout.readline().strip())


def test_what_a_killed_process_left_goes_and_what_a_running_one_holds_stays(
    copies: Path, tmp_path: Path
) -> None:
    killed, left = begin(copies)
    running, held = begin(copies)
    mine = TemporaryFile(".mp4", lambda file: file.write(b"mine"))
    remove_leftovers()
    assert left.read_bytes() == held.read_bytes() == b"video"
    killed.kill()
    killed.communicate()
    assert left.exists()
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.write(write_video(tmp_path / "clip.mp4", 10), "clip.mp4")
    job = Job(inputs=(str(tmp_path / "a.zip"),), media="video")
    reader = open_reader(job, sampler=make_sampler(job))
    assert not left.exists()
    assert [item.id for item in reader] == ["a.zip/clip.mp4#t=0.000"]
    assert held.read_bytes() == b"video"
    assert Path(mine.path).read_bytes() == b"mine"
    running.communicate("")
    del mine
    gc.collect()
    assert list(copies.iterdir()) == []


def test_only_copies_are_removed(copies: Path, tmp_path: Path) -> None:
    precious = tmp_path / "precious"
    precious.mkdir()
    (precious / "lock").touch()
    (copies / "vlmbatch-copies-link").symlink_to(precious)
    (copies / "vlmbatch-copies-file").touch()
    (copies / "vlmbatch-copies-lockless").mkdir()
    (copies / "vlmbatch-copies-lockless" / "a.mp4").touch()
    (copies / "vlmbatch-other").mkdir()
    remove_leftovers()
    assert sorted(path.name.removeprefix("vlmbatch-") for path in copies.iterdir()) == [
        "copies-file",
        "copies-link",
        "copies-lockless",
        "other",
    ]
    assert (precious / "lock").exists()


def test_without_locks_copies_stay_those_of_their_process(
    copies: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(handle: int, how: int) -> None:
        raise OSError("no locks here")

    monkeypatch.setattr("fcntl.flock", refuse)
    kept = TemporaryFile("", lambda file: file.write(b"kept"))
    remove_leftovers()
    assert Path(kept.path).read_bytes() == b"kept"
    del kept
    gc.collect()
    assert list(copies.iterdir()) == []


def test_a_copy_that_cannot_be_made_leaves_nothing(
    copies: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fill(file: object) -> None:
        raise OSError(28, "No space left on device")

    with pytest.raises(ReadError, match=r"no room for a copy: .*No space left"):
        TemporaryFile(".mp4", fill)
    assert list(copies.iterdir()) == []
    monkeypatch.setattr(tempfile, "tempdir", str(copies / "gone"))
    with pytest.raises(ReadError, match="no room for a copy"):
        TemporaryFile(".mp4", fill)
    remove_leftovers()


def test_threads_make_and_drop_copies_side_by_side(copies: Path) -> None:
    troubles: list[Exception] = []

    def make() -> None:
        try:
            for number in range(200):
                copy = TemporaryFile(".mp4", lambda file, number=number: file.write(b"%d" % number))  # type: ignore[misc]
                assert Path(copy.path).read_bytes() == b"%d" % number
        except Exception as exc:
            troubles.append(exc)

    threads = [Thread(target=make) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert troubles == []
    gc.collect()
    assert list(copies.iterdir()) == []
