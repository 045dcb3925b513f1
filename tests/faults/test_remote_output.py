"""Whole runs with an OUTPUT behind a URL are killed, interrupted and moved to another machine:
every row is there once in the end.
"""

from __future__ import annotations

import random
import signal
import subprocess
import time
from pathlib import Path

import pytest

from tests.faults.runs import begin, finish, ids_of, kept_on_disk, write_photos

SCRIPTED = ("-m", "tests.faults.scripted")


def staged_file(staging: Path) -> Path:
    """The file of the only OUTPUT that is staged; one that is not there when there is none."""
    return (
        next((folder / "out.jsonl" for folder in staging.iterdir()), staging / "none")
        if staging.exists()
        else staging / "none"
    )


def test_kills_cost_no_row_that_was_kept_and_another_machine_goes_on(tmp_path: Path) -> None:
    wanted = write_photos(tmp_path / "photos", 500)
    output, here, there = tmp_path / "mount" / "out.jsonl", tmp_path / "here", tmp_path / "there"
    begun = time.monotonic()
    assert (
        finish(tmp_path, "photos", f"file://{tmp_path}/first/out.jsonl", 2, here, program=SCRIPTED)[
            0
        ]
        == 0
    )
    whole_run = (
        time.monotonic() - begun
    )  # where in the run a kill falls depends on the machine; what must hold does not
    dice = random.Random(5)
    staging = tmp_path / "staging"
    kept: set[str] = set()
    for _ in range(6):
        process = begin(tmp_path, "photos", f"file://{output}", 2, staging, program=SCRIPTED)
        try:
            process.communicate(timeout=dice.uniform(0.3, 1) * whole_run)
        except subprocess.TimeoutExpired:
            process.kill()
            process.communicate()
        now = kept_on_disk(staged_file(staging))
        assert kept <= now <= set(wanted)
        kept = now
        assert set(ids_of(output)) <= now
    code, said = finish(tmp_path, "photos", f"file://{output}", 0, there, program=SCRIPTED)
    assert code == 0, said
    assert ids_of(output) == wanted
    code, said = finish(tmp_path, "photos", f"file://{output}", 0, staging, program=SCRIPTED)
    assert code == 0, said
    assert ids_of(output) == wanted


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_run_uploads_what_is_finished(
    tmp_path: Path, number: signal.Signals
) -> None:
    wanted = write_photos(tmp_path / "photos", 400)
    output, staging = tmp_path / "mount" / "out.jsonl", tmp_path / "staging"
    process = begin(tmp_path, "photos", f"file://{output}", 10, staging, program=SCRIPTED)
    while process.poll() is None and not kept_on_disk(staged_file(staging)):
        time.sleep(0.01)
    process.send_signal(number)
    _, said = process.communicate()
    assert process.returncode == 130, said
    assert 256 <= len(ids_of(output)) < 400
    assert (
        finish(tmp_path, "photos", f"file://{output}", 0, tmp_path / "another", program=SCRIPTED)[0]
        == 0
    )
    assert ids_of(output) == wanted


def test_a_mount_that_is_gone_costs_nothing_but_the_upload(tmp_path: Path) -> None:
    wanted = write_photos(tmp_path / "photos", 20)
    mount, staging = tmp_path / "mount", tmp_path / "staging"
    mount.symlink_to("/proc/nowhere")
    code, said = finish(
        tmp_path, "photos", f"file://{mount}/out.jsonl", 0, staging, program=SCRIPTED
    )
    assert code == 1
    assert (
        f"every finished row is kept in {staged_file(staging)}, and the same command uploads them"
        in said
    )
    mount.unlink()
    code, said = finish(
        tmp_path, "photos", f"file://{mount}/out.jsonl", 0, staging, program=SCRIPTED
    )
    assert (code, said) == (0, "")
    assert ids_of(mount / "out.jsonl") == wanted


def test_of_two_machines_at_once_the_later_one_publishes_beside_the_first(tmp_path: Path) -> None:
    wanted = write_photos(tmp_path / "photos", 20)
    output, here = tmp_path / "mount" / "out.jsonl", tmp_path / "here"
    arguments = ("photos", f"file://{output}")
    process = begin(tmp_path, *arguments, 100, here, program=SCRIPTED)
    while process.poll() is None and not Path(f"{staged_file(here)}.journal").exists():
        time.sleep(0.01)  # watching another process, not synchronising with it
    process.send_signal(signal.SIGSTOP)
    code, said = finish(tmp_path, *arguments, 0, tmp_path / "there", program=SCRIPTED)
    assert (code, said) == (0, "")
    before = output.read_bytes()
    process.send_signal(signal.SIGCONT)
    _, said = process.communicate()
    assert process.returncode == 1, said
    (part,) = output.parent.glob("out.part-*.jsonl")
    assert f"file://{output} was written by another run meanwhile; the rows of this run" in said
    assert f"are in file://{part}" in said
    assert output.read_bytes() == before
    assert ids_of(part) == ids_of(output) == wanted
    code, said = finish(tmp_path, *arguments, 0, here, program=SCRIPTED)
    assert (code, said) == (0, "")
