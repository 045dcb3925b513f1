"""OUTPUT belongs to the engine and the model that made it, and its rows name what really ran."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from tests.media import write_picture
from vlmbatch.core import Completion, Conversation, Question, Record, Request
from vlmbatch.engine import RequestQueue
from vlmbatch.engine.scripted import ScriptedEngine
from vlmbatch.errors import JobError, OutputError
from vlmbatch.job import Job
from vlmbatch.run.from_python import run
from vlmbatch.run.pipeline import Run
from vlmbatch.write import read_records


class Other(ScriptedEngine):
    """Another engine, on a device of its own."""

    name = "other"
    device = "abacus"
    dtype = "int4"


@pytest.fixture
def job(tmp_path: Path) -> Job:
    for number in range(3):
        write_picture(tmp_path / "photos" / f"{number}.png", seed=number)
    return Job.from_dict(
        {"inputs": [str(tmp_path / "photos")], "output": str(tmp_path / "out.jsonl")}
    )


def rows(job: Job) -> list[dict[str, Any]]:
    return list(read_records(Path(job.output_path)))


def test_rows_name_the_model_that_ran(job: Job) -> None:
    engine = Other(model="abacus-7")
    engine.revision = "r5"
    summary = run(job, engine=engine)
    names = ("engine", "model", "revision", "device", "dtype")
    assert {tuple(row[name] for name in names) for row in rows(job)} == {
        ("other", "abacus-7", "r5", "abacus", "int4")
    }
    assert {name: summary["identity"][name] for name in names[:3]} == {
        "engine": "other",
        "model": "abacus-7",
        "revision": "r5",
    }
    assert summary["revision"] == "r5"


def test_another_engine_is_refused_with_the_difference_named(job: Job) -> None:
    run(job, engine=ScriptedEngine())
    before = rows(job)
    with pytest.raises(OutputError, match=r"engine: scripted there, other here.*--overwrite"):
        run(job, engine=Other())
    assert rows(job) == before
    again = ScriptedEngine()
    run(job, engine=again)
    assert again.prepared == []


def test_another_model_or_revision_is_refused_with_the_difference_named(job: Job) -> None:
    run(job, engine=ScriptedEngine(model="first"))
    with pytest.raises(OutputError, match="model: first there, second here"):
        run(job, engine=ScriptedEngine(model="second"))


def test_another_revision_is_refused_with_the_difference_named(job: Job) -> None:
    older, newer = ScriptedEngine(), ScriptedEngine()
    older.revision, newer.revision = "r5", "r6"
    run(job, engine=older)
    with pytest.raises(OutputError, match="revision: r5 there, r6 here"):
        run(job, engine=newer)


def test_an_output_of_an_engine_is_not_continued_by_the_one_that_the_job_names(
    job: Job, tiny: Path
) -> None:
    run(job, engine=Other(model=str(tiny)))
    with pytest.raises(OutputError, match="engine: other there, torch here"):
        Run(dataclasses.replace(job, model=str(tiny)))


def test_counts_that_an_engine_cannot_tell_are_none_in_its_records(
    job: Job, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Silent(Other):
        def run(self, source: RequestQueue) -> Any:
            for done in super().run(source):
                timing = done.timing
                timing.vision_seconds = timing.prefill_seconds = timing.compute_seconds = None
                done.prompt_tokens = done.new_tokens = done.batch_size = None
                yield done

        def prepare(self, conversation: Conversation, questions: Sequence[Question]) -> Request:
            request = super().prepare(conversation, questions)
            request.tiles = None
            return request

    running = Run(job, engine=Silent())
    write, records = running.writer.write, []

    def watched(record: Record, *values: Any, **named: Any) -> None:
        records.append(record)
        write(record, *values, **named)

    monkeypatch.setattr(running.writer, "write", watched)
    assert running.start().exit_code == 0
    names = ("tiles", "prompt_tokens", "new_tokens", "batch_size", "vision_seconds")
    assert {tuple(getattr(each, name) for name in names) for each in records} == {(None,) * 5}


def test_a_cancelled_question_is_an_error_row(job: Job) -> None:
    class Cancelling(ScriptedEngine):
        def run(self, source: RequestQueue) -> Any:
            for done in super().run(source):
                if done.request.conversation.key == "1.png":
                    done = Completion(done.request, done.question, "", finish_reason="cancelled")
                yield done

    outcome = Run(job, engine=Cancelling()).start()
    assert outcome.exit_code == 3
    found = rows(job)
    assert [row["status"] for row in found] == ["ok", "error", "ok"]
    assert (found[1]["text"], found[1]["error_type"]) == (None, "GenerateError")


def test_an_engine_without_forms_of_answers_is_refused(job: Job) -> None:
    with pytest.raises(JobError, match="engine scripted has no --choices; the torch engine has"):
        Run(dataclasses.replace(job, choices=("red", "blue")), engine=ScriptedEngine())
    assert not Path(job.output_path).exists()
