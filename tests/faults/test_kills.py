"""Whole runs are killed at random moments, again and again: every row is there once in the end, and
none that was kept is ever lost.
"""

from __future__ import annotations

import random
import signal
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path

import pytest

from tests.faults.runs import CAPTION_PHOTOS, begin, finish, ids_of, kept_on_disk, write_photos

SCRIPTED = ("-m", "tests.faults.scripted")


def kill_again_and_again(
    folder: Path,
    arguments: Sequence[object],
    output: Path,
    wanted: list[str],
    kills: int,
    *,
    program: Sequence[str],
    most: float,
) -> int:
    """Kills the run at random moments; when it gets to its end in between, OUTPUT is taken away and
    it starts anew.

    Returns:
        How many kills left rows that were kept.
    """
    dice = random.Random(5)
    kept: set[str] = set()
    num_with_rows = 0
    while kills:
        process = begin(folder, *arguments, program=program)
        try:
            _, errors = process.communicate(timeout=dice.uniform(0, most))
        except subprocess.TimeoutExpired:
            process.kill()
            process.communicate()
            kills -= 1
        else:
            assert process.returncode == 0, errors
            assert ids_of(output) == wanted
            for path in (output, Path(f"{output}.journal")):
                path.unlink()
            kept = set()
            continue
        now = kept_on_disk(output)
        assert kept <= now
        assert now <= set(wanted)
        kept = now
        num_with_rows += bool(now)
    code, said = finish(folder, *arguments, program=program)
    assert code == 0, said
    assert ids_of(output) == wanted
    return num_with_rows


def test_a_run_that_is_killed_again_and_again_has_every_row_once(tmp_path: Path) -> None:
    wanted = write_photos(tmp_path / "photos", 600)
    begun = time.monotonic()
    assert finish(tmp_path, "photos", "first.jsonl", 2, program=SCRIPTED)[0] == 0
    whole_run = (
        time.monotonic() - begun
    )  # where in the run a kill falls depends on the machine; what must hold does not
    assert kill_again_and_again(
        tmp_path,
        ("photos", "out.jsonl", 2),
        tmp_path / "out.jsonl",
        wanted,
        8,
        program=SCRIPTED,
        most=whole_run,
    )


def test_links_beside_their_files_keep_their_ids_through_a_kill(tmp_path: Path) -> None:
    found = write_photos(tmp_path / "photos", 300)
    for number, name in enumerate(found[::3]):
        (tmp_path / "photos" / "0" / f"link {number:03d}.png").symlink_to(
            tmp_path / "photos" / name
        )
    (tmp_path / "more").mkdir()
    (tmp_path / "more" / "other.png").symlink_to(tmp_path / "photos" / found[0])
    wanted = sorted([*found, *(f"0/link {number:03d}.png" for number in range(100))]) + [
        "other.png"
    ]
    output = tmp_path / "out.jsonl"
    process = begin(tmp_path, "photos:more", output, 10, program=SCRIPTED)
    while process.poll() is None and not kept_on_disk(output):
        time.sleep(0.01)  # watching another process, not synchronising with it
    process.kill()
    process.communicate()
    kept = kept_on_disk(output)
    assert kept < set(wanted)
    assert any("link" in name for name in kept)
    assert finish(tmp_path, "photos:more", output, 0, program=SCRIPTED)[0] == 0
    assert ids_of(output) == wanted


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("suffix", ["jsonl", "parquet"])
def test_fifty_kills_over_five_hundred_pictures(tmp_path: Path, suffix: str) -> None:
    wanted = write_photos(tmp_path / "photos", 500)
    output = tmp_path / f"out.{suffix}"
    arguments = (*CAPTION_PHOTOS, "-o", output)
    begun = time.monotonic()
    assert finish(tmp_path, *arguments)[0] == 0
    whole_run = time.monotonic() - begun
    assert ids_of(output) == wanted
    assert (
        kill_again_and_again(
            tmp_path,
            arguments,
            output,
            wanted,
            50,
            program=("-m", "vlmbatch"),
            most=whole_run * 1.1,
        )
        > 5
    )


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_second_signal_ends_a_run_at_once_and_costs_no_row_that_was_kept(
    tmp_path: Path, number: signal.Signals
) -> None:
    wanted = write_photos(tmp_path / "photos", 400)
    output = tmp_path / "out.jsonl"
    process = begin(tmp_path, "photos", "out.jsonl", 10, program=SCRIPTED)
    assert process.stderr is not None
    while process.poll() is None and not kept_on_disk(output):
        time.sleep(0.01)
    process.send_signal(number)
    assert process.stderr.readline().startswith("stopping:")
    process.send_signal(number)
    process.communicate()
    assert process.returncode in (-number, 130)  # it may have come to its end before the second one
    kept = kept_on_disk(output)
    assert 256 <= len(kept) < 400
    assert finish(tmp_path, "photos", "out.jsonl", 0, program=SCRIPTED)[0] == 0
    assert ids_of(output) == wanted


def test_of_many_runs_at_once_one_does_the_work(tmp_path: Path) -> None:
    wanted = write_photos(tmp_path / "photos", 60)
    runs = [begin(tmp_path, "photos", "out.jsonl", 20, program=SCRIPTED) for _ in range(4)]
    said = [run.communicate()[1] for run in runs]
    codes = {run.returncode for run in runs}
    assert 0 in codes, said
    assert codes <= {0, 75}, said  # one that comes when the first is done finds nothing to do
    assert ids_of(tmp_path / "out.jsonl") == wanted
    assert not list(tmp_path.glob("out.jsonl.[lt]*"))
