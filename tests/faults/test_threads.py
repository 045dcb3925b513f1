"""A stage that dies, or goes quiet, ends the run with what was finished; no row is missing without
a word.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.media import write_picture
from vlmbatch.core import Completion
from vlmbatch.engine import RequestQueue
from vlmbatch.engine.scripted import ScriptedEngine
from vlmbatch.errors import EngineError, ItemError, OutputError
from vlmbatch.job import Job
from vlmbatch.run.pipeline import Outcome, Run
from vlmbatch.write import read_records

COUNT = 150


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    for number in range(COUNT):
        write_picture(tmp_path / "photos" / f"{number:03d}.png", 8, 8, seed=number)
    return tmp_path / "photos"


def job_of(folder: Path, **values: Any) -> Job:
    return Job.from_dict(
        {"inputs": [str(folder)], "output": str(folder.parent / "out.jsonl"), **values}
    )


def ends_with_what_was_finished(folder: Path, running: Run, at_least: int = 0) -> Outcome:
    """Runs to the end, sees that no thread is left and that OUTPUT is whole, and that the same
    command does the rest.
    """
    outcome = running.start()
    left = [
        thread.name
        for thread in threading.enumerate()
        if thread.name in ("reader", "writer", "closer", "stopper", "counter")
    ]
    assert left == []
    output = folder.parent / "out.jsonl"
    ids = [row["id"] for row in read_records(output)] if output.exists() else []
    assert len(ids) == len(set(ids)) >= at_least
    again = Run(job_of(folder), engine=ScriptedEngine()).start()
    assert again.exit_code == 0
    assert again.summary["kept"]["rows"] == len(ids)
    assert [row["id"] for row in read_records(output)] == [
        f"{number:03d}.png" for number in range(COUNT)
    ]
    return outcome


@pytest.mark.parametrize(
    "error", [RuntimeError("no such kernel"), MemoryError(), EngineError("lost")]
)
def test_an_engine_that_dies(photos: Path, error: Exception) -> None:
    class Dying(ScriptedEngine):
        def run(self, source: RequestQueue) -> Iterator[Completion]:
            for number, completion in enumerate(super().run(source)):
                if number == 40:
                    raise error
                yield completion

    outcome = ends_with_what_was_finished(photos, Run(job_of(photos), engine=Dying()), 40)
    assert outcome.error is error
    assert outcome.exit_code == 1


def test_an_engine_that_ends_too_early(photos: Path) -> None:
    class Tired(ScriptedEngine):
        def run(self, source: RequestQueue) -> Iterator[Completion]:
            for number, completion in enumerate(super().run(source)):
                if number == 40:
                    return
                yield completion

    outcome = ends_with_what_was_finished(photos, Run(job_of(photos), engine=Tired()), 40)
    assert outcome.exit_code == 1
    assert "ended before" in str(outcome.error)


def test_an_engine_that_forgets_a_request(photos: Path) -> None:
    class Forgetful(ScriptedEngine):
        def run(self, source: RequestQueue) -> Iterator[Completion]:
            for number, completion in enumerate(super().run(source)):
                if number != 40:
                    yield completion

    outcome = ends_with_what_was_finished(
        photos, Run(job_of(photos), engine=Forgetful()), COUNT - 1
    )
    assert outcome.exit_code == 1
    assert "1 row has no answer" in str(outcome.error)


@pytest.mark.parametrize(
    "error", [OSError(5, "Input/output error"), MemoryError(), RecursionError()]
)
def test_a_reader_that_dies(
    photos: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    running = Run(job_of(photos), engine=ScriptedEngine())
    whole = running.reader

    class Dying:
        counts = whole.counts

        def __iter__(self) -> Iterator[Any]:
            for number, item in enumerate(whole):
                if number == 90:
                    raise error
                yield item

        def estimate(self) -> int | None:
            return None

    running.reader = Dying()
    outcome = ends_with_what_was_finished(photos, running)
    assert outcome.error is error
    assert outcome.exit_code == 1


@pytest.mark.parametrize("after", [0, 49, COUNT - 1])
def test_a_writer_that_dies(photos: Path, monkeypatch: pytest.MonkeyPatch, after: int) -> None:
    running = Run(job_of(photos), engine=ScriptedEngine())
    write, written = running.writer.write, 0

    def dying(*values: Any, **named: Any) -> None:
        nonlocal written
        written += 1
        if written > after:
            while (
                written == COUNT and not running._threads.ending
            ):  # the last row is often written when everything else has ended
                threading.Event().wait(0.001)
            raise OutputError("the disk is gone")
        write(*values, **named)

    monkeypatch.setattr(running.writer, "write", dying)
    outcome = ends_with_what_was_finished(photos, running, after)
    assert str(outcome.error) == "the disk is gone"
    assert outcome.exit_code == 1


@pytest.mark.parametrize(
    "error",
    [MemoryError(), RecursionError("too deep"), OSError(5, "Input/output error"), KeyError("x")],
)
def test_an_error_that_nobody_foresaw_is_the_items_own(photos: Path, error: Exception) -> None:
    class Odd(ScriptedEngine):
        def prepare(self, conversation: Any, questions: Any) -> Any:
            if conversation.key == "077.png":
                raise error
            return super().prepare(conversation, questions)

    outcome = Run(job_of(photos), engine=Odd()).start()
    assert outcome.exit_code == 3
    rows = list(read_records(photos.parent / "out.jsonl"))
    assert len(rows) == COUNT
    assert [row["id"] for row in rows if row["status"] == "error"] == ["077.png"]
    assert rows[77]["error_type"] == "PrepareError"
    assert not isinstance(error, ItemError)
