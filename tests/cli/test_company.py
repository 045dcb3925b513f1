"""Options of threads and of kernels, as the commands take and show them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import yaml

from tests.cli.conftest import Command
from vlmbatch.bench import run as bench_run
from vlmbatch.bench.sizes import choose_sizes
from vlmbatch.engine.torch import device as devices
from vlmbatch.processor import processor_share


@pytest.fixture(autouse=True)
def _threads_as_before() -> Iterator[None]:
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


def test_threads_are_an_option_a_key_and_in_the_summary(
    vlmbatch: Command, photos: Path, tmp_path: Path
) -> None:
    done = vlmbatch("caption", photos, "--model", "demo", "--threads", "1", "-o", "out.jsonl")
    assert done.returncode == 0, done.stderr
    summary = json.loads((tmp_path / "out.jsonl.summary.json").read_text())
    assert summary["engine"]["threads"] == summary["job"]["threads"] == 1
    assert summary["processor"]["host_cores"] >= summary["processor"]["cores"] >= 1
    shown = vlmbatch("caption", photos, "--model", "demo", "--threads", "auto", "--dry-run")
    assert yaml.safe_load(shown.stdout)["threads"] is None
    assert vlmbatch("caption", photos, "--threads", "0").returncode == 2


def test_doctor_says_what_the_process_may_use_and_how_threads_wait(
    vlmbatch: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OMP_WAIT_POLICY", "ACTIVE")
    found = {
        line["name"]: line["found"] for line in json.loads(vlmbatch("doctor", "--json").stdout)
    }
    assert found["processor"].startswith(f"{processor_share().describe()}: ")
    assert found["threads wait"] == "as OMP_WAIT_POLICY=ACTIVE says"


def test_the_cache_folder_is_the_environments(
    vlmbatch: Command, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    vlmbatch("caption", photos, "--model", "demo", "-o", "out.jsonl")
    summary = json.loads((tmp_path / "out.jsonl.summary.json").read_text())
    assert summary["job"]["cache_dir"] == str(tmp_path / "cache" / "vlmbatch")


def test_bench_chooses_kernels_again(
    vlmbatch: Command, tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(devices, "SMALL_MODEL_PARAMETERS", 0)
    monkeypatch.setattr(
        bench_run, "choose_sizes", lambda device, **_: choose_sizes(device, quick=True, rounds=1)
    )
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    kept = tmp_path / "vlmbatch" / "kernels" / "old.json"
    kept.parent.mkdir(parents=True)
    kept.write_text("{}")
    command = ("bench", "--model", tiny, "--device", "cpu", "--threads", "1", "--only", "memory")
    done = vlmbatch(*command, "--retune", "--json", "bench.json")
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert f", 1 thread on {processor_share().describe()})" in lines[0]
    assert lines[2].startswith("kernels chosen again: ")
    (choice,) = kept.parent.iterdir()
    assert choice.name != "old.json"
    machine = json.loads((tmp_path / "bench.json").read_text())["machine"]
    assert machine["threads"] == 1
    assert set(machine["kernel_choice"]) == {"spread", "share", "steady"}


def test_a_model_without_a_choice_refuses_to_retune(vlmbatch: Command) -> None:
    done = vlmbatch("bench", "--model", "demo", "--device", "cpu", "--retune")
    assert done.returncode == 2
    assert "leave it out" in done.stderr
