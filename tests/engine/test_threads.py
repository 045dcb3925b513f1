"""The number of threads that compute, of readers, and who goes first."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.media import write_picture
from vlmbatch.engine import open_engine
from vlmbatch.job import Job, ResourceOptions
from vlmbatch.processor import ProcessorShare
from vlmbatch.run import preparation
from vlmbatch.run.pipeline import Run
from vlmbatch.run.preparation import (
    MAX_READ_WORKERS,
    MAX_READ_WORKERS_OF_GPU,
    REQUESTS_IN_HAND,
    num_workers,
)


@pytest.fixture(autouse=True)
def _threads_as_before() -> None:
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


@pytest.mark.parametrize("engine", ["torch", "transformers"])
def test_an_engine_computes_with_the_threads_of_the_job(tiny: Path, engine: str) -> None:
    opened = open_engine(Job(inputs=["x"], model=str(tiny), device="cpu", engine=engine, threads=3))
    assert torch.get_num_threads() == 3
    assert opened.stats.threads == 3
    opened.close()


def test_auto_is_what_the_process_may_use_and_no_more_than_torch_was_told() -> None:
    script = (
        "import os; os.sched_setaffinity(0, {min(os.sched_getaffinity(0))});"
        "from vlmbatch.engine.threads import num_threads;"
        "from vlmbatch.job import ResourceOptions;"
        "print(num_threads(ResourceOptions()), num_threads(ResourceOptions(threads=5)))"
    )
    environment = {**os.environ, "OMP_NUM_THREADS": "4"}
    done = subprocess.run(
        [sys.executable, "-c", script], env=environment, capture_output=True, text=True
    )
    assert done.stdout == "1 5\n", done.stderr


def test_readers_are_as_many_as_cores_and_more_beside_a_gpu(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def workers(cores: int, *, is_clip: bool = False, on_cpu: bool = True) -> int:
        share = ProcessorShare(cores, None, cores)
        monkeypatch.setattr(preparation, "processor_share", lambda: share)
        return num_workers(ResourceOptions(), is_clip=is_clip, on_cpu=on_cpu)

    assert [workers(cores) for cores in (1, 2, 6, 96)] == [2, 2, 6, MAX_READ_WORKERS]
    assert workers(96, on_cpu=False) == MAX_READ_WORKERS_OF_GPU
    assert workers(96, is_clip=True) == 2
    assert num_workers(ResourceOptions(read_workers=5), is_clip=True, on_cpu=True) == 5


def test_the_summary_names_the_processor_and_the_threads(tiny: Path, tmp_path: Path) -> None:
    assert Run(asked(tiny, tmp_path, count=1)).start().exit_code == 0
    summary = json.loads((tmp_path / "out.jsonl.summary.json").read_text())
    assert summary["processor"]["cores"] >= 1
    assert summary["engine"]["threads"] == torch.get_num_threads()


@pytest.mark.skipif(sys.platform != "linux", reason="a priority is a whole process's there")
@pytest.mark.parametrize(("device", "is_lowered"), [("cpu", True), ("cuda:0", False)])
def test_readers_go_last_once_requests_wait_for_an_engine_on_their_processor(
    tiny: Path, tmp_path: Path, device: str, is_lowered: bool
) -> None:
    count = REQUESTS_IN_HAND + 4
    job = asked(tiny, tmp_path, count=count)
    own = os.getpriority(os.PRIO_PROCESS, threading.get_native_id())
    engine: Any = NotesPriorities(open_engine(job), device, until=count)
    assert Run(job, engine=engine).start().exit_code == 0
    assert engine.seen[0] == own  # nothing waits for the engine yet
    assert (max(engine.seen) > own) is is_lowered
    assert os.getpriority(os.PRIO_PROCESS, threading.get_native_id()) == own


class NotesPriorities:
    """An engine that notes the priority of the threads that prepare, and waits for all of them."""

    def __init__(self, engine: Any, device: str, until: int) -> None:
        self._engine, self.device, self._until = engine, device, until
        self.seen: list[int] = []
        self._all_seen = threading.Event()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._engine, name)

    def prepare(self, *arguments: Any) -> Any:
        self.seen.append(os.getpriority(os.PRIO_PROCESS, threading.get_native_id()))
        if len(self.seen) == self._until:
            self._all_seen.set()
        return self._engine.prepare(*arguments)

    def run(self, source: Any) -> Any:
        assert self._all_seen.wait(60)
        yield from self._engine.run(source)


def asked(tiny: Path, tmp_path: Path, count: int) -> Job:
    """A job about small pictures, read by one thread."""
    for number in range(count):
        write_picture(tmp_path / "in" / f"{number}.png", 40, 30, seed=number)
    return Job(
        inputs=[str(tmp_path / "in")],
        model=str(tiny),
        device="cpu",
        output=str(tmp_path / "out.jsonl"),
        detail="low",
        max_new_tokens=2,
        read_workers=1,
    )
