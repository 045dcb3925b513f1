"""Trainings that are stopped, killed or finished, and started again."""

from __future__ import annotations

import dataclasses
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch

from tests.finetune.data import read_lines, write_rows
from tests.finetune.runs import begin, train, weights
from vlmbatch.checkpoint import find_checkpoint
from vlmbatch.errors import (
    ModelLoadError,
    OutputError,
)
from vlmbatch.finetune import FinetuneJob
from vlmbatch.finetune.folder import TrainingFolder
from vlmbatch.finetune.run import Finetuning

pytestmark = pytest.mark.timeout(600)


def test_a_training_that_loses_its_terminal_is_saved(job: FinetuneJob) -> None:
    folder = TrainingFolder(Path(job.output_path))
    process = begin(job, "--max-steps 100000")
    while process.poll() is None and not (folder.log.exists() and folder.log.stat().st_size):
        time.sleep(0.01)  # watching another process, not synchronising with it
    process.send_signal(signal.SIGHUP)
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 130, errors
    assert "Traceback" not in errors
    saved, state = folder.last_checkpoint(), folder.state()
    assert saved is not None
    assert state is not None
    assert (saved.step > 0, state["status"]) == (True, "training")


def test_a_killed_training_goes_on_and_ends_as_if_nothing_had_happened(
    job: FinetuneJob, tmp_path: Path
) -> None:
    long = dataclasses.replace(job, max_steps=60, save_every=5, eval_every=20)
    train(dataclasses.replace(long, output=str(tmp_path / "whole")))
    out = Path(job.output_path)
    process = begin(job, "--max-steps 60 --save-every 5 --eval-every 20")
    while process.poll() is None and not any((out / "checkpoints").glob("*/trainer_state.json")):
        time.sleep(0.01)  # watching another process, not synchronising with it
    process.send_signal(signal.SIGKILL)
    _, errors = process.communicate()
    assert process.returncode == -signal.SIGKILL, errors
    assert not (out / "config.json").exists()
    with pytest.raises(ModelLoadError):
        find_checkpoint(str(out)).config  # noqa: B018
    latest = max(
        (out / "checkpoints").iterdir(), key=lambda path: int(path.name.rpartition("-")[2])
    )
    shutil.copytree(latest, out / "checkpoints" / "checkpoint-55")
    (out / "checkpoints" / "checkpoint-55" / "trainer_state.json").write_text(
        '{"global_step": 5'
    )  # as a kill leaves one that it cut short
    with open(out / "training.jsonl", "a", encoding="utf-8") as file:
        file.write('{"step": 1')
    assert train(long).state["status"] == "finished"
    steps = [entry["step"] for entry in read_lines(out / "training.jsonl") if "loss" in entry]
    assert steps == list(range(1, 61))
    for name, value in weights(tmp_path / "whole").items():
        torch.testing.assert_close(weights(out)[name], value, rtol=1e-4, atol=1e-5, msg=name)


def test_a_stopped_training_is_saved_and_goes_on(job: FinetuneJob) -> None:
    training = Finetuning(job)
    training.stop()
    with pytest.raises(KeyboardInterrupt):
        training.start()
    long = dataclasses.replace(job, max_steps=10)
    training = Finetuning(long)
    check = training.folder.begin

    def begin(*arguments: Mapping[str, object]) -> None:
        training.stop()
        check(*arguments)

    training.folder.begin = begin  # type: ignore[method-assign]
    outcome = training.start()
    assert outcome.interrupted
    assert outcome.state["status"] == "training"
    assert training.folder.last_checkpoint() == (
        training.folder.checkpoints / "checkpoint-1",
        1,
        False,
    )
    assert train(long).state["status"] == "finished"
    assert [entry["step"] for entry in read_lines(training.folder.log) if "loss" in entry] == list(
        range(1, 11)
    )


def test_a_kill_after_the_last_update_costs_no_update_and_adds_none(
    job: FinetuneJob, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train(dataclasses.replace(job, output=str(tmp_path / "whole")))

    def killed(*arguments: object) -> None:
        raise SystemExit

    monkeypatch.setattr("vlmbatch.finetune.run.save_adapter", killed)
    with pytest.raises(SystemExit):
        train(job)
    monkeypatch.undo()
    state = train(job).state
    assert (state["status"], state["result"]["updates"]) == ("finished", 4)
    assert state["result"]["last_eval_loss"] < state["result"]["first_eval_loss"]
    for name, value in weights(tmp_path / "whole").items():
        assert torch.equal(weights(Path(job.output_path))[name], value), name


def test_the_same_command_on_a_finished_out_changes_nothing(job: FinetuneJob) -> None:
    train(job)
    out = Path(job.output_path)
    before = {path: path.stat().st_mtime_ns for path in out.rglob("*")}
    assert train(job).state["status"] == "finished"
    assert {path: path.stat().st_mtime_ns for path in out.rglob("*")} == before
    with pytest.raises(OutputError, match=r"another seed \(0 there, 1 now\)"):
        train(dataclasses.replace(job, seed=1))
    rows = read_lines(Path(job.data))
    write_rows(Path(job.data), [*rows[:-1], {**rows[-1], "answer": "Other words."}])
    with pytest.raises(OutputError, match=r"another (rows|held_out); choose another OUT"):
        train(job)
    assert {
        path: path.stat().st_mtime_ns for path in out.rglob("*") if path.name != "rows.jsonl"
    } == {p: t for p, t in before.items() if p.name != "rows.jsonl"}
    assert train(dataclasses.replace(job, overwrite=True)).state["identity"] != {}


@pytest.mark.slow
def test_two_processes_train_and_one_of_them_writes(job: FinetuneJob, tmp_path: Path) -> None:
    out = tmp_path / "two"
    command = [
        *(sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2"),
        *("-m", "vlmbatch", "finetune", job.data, "-o", out, "--model", job.model),
        *("--max-steps", "4", "--save-every", "2", "--log-every", "1", "--batch-size", "2"),
        *("--gradient-accumulation", "1", "--device", "cpu", "--detail", "low"),
    ]
    result = subprocess.run(
        [*map(str, command)],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    assert "2 processes" in result.stderr
    assert [entry["step"] for entry in read_lines(out / "training.jsonl") if "loss" in entry] == [
        1,
        2,
        3,
        4,
    ]
    assert find_checkpoint(str(out)).config
