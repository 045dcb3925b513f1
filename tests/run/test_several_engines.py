"""A list of engines: the first that opens begins OUTPUT, and continues it."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import CliRunner

from tests.media import write_picture
from vlmbatch.cli.main import cli
from vlmbatch.engine import open_engine, plan_engine
from vlmbatch.errors import EngineError, JobError, OtherSettingsError, OutOfMemoryError
from vlmbatch.job import Job
from vlmbatch.run.from_python import run
from vlmbatch.run.pipeline import Run
from vlmbatch.write import read_records

pytest.importorskip("onnxruntime")


@pytest.fixture
def values(broken_graphs: Path, tmp_path: Path) -> dict[str, Any]:
    for number in range(2):
        write_picture(tmp_path / "photos" / f"{number}.png", seed=number)
    (tmp_path / "photos" / "2.png").write_text("no picture")
    return {
        "inputs": [str(tmp_path / "photos")],
        "output": str(tmp_path / "out.jsonl"),
        "model": str(broken_graphs),
        "engine": "onnx,torch",
        "device": "cpu",
        "max_new_tokens": 3,
    }


def rows(job: Job) -> list[dict[str, Any]]:
    return list(read_records(Path(job.output_path)))


def engines(job: Job) -> list[str]:
    """The engine of each answer."""
    return [row["engine"] for row in rows(job) if row["status"] == "ok"]


def journal(job: Job) -> dict[str, Any]:
    """The settings that the journal beside OUTPUT begins with."""
    line = Path(f"{job.output_path}.journal").read_text().splitlines()[0]
    found: dict[str, Any] = json.loads(line.partition(" ")[2])["identity"]
    return found


def test_the_next_engine_answers_where_the_first_does_not_open(
    values: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    job = Job.from_dict(values)
    assert plan_engine(job).name == "onnx"  # its files are there
    outcome = Run(job).start()
    assert outcome.exit_code == 3  # the file that is no picture
    first, second = (record.getMessage() for record in caplog.records if "engine" in record.msg)
    assert "cannot be opened by ONNX Runtime" in first
    assert first.startswith("engine onnx: ")
    assert first.endswith("; trying torch")
    assert second == "engine torch answers"
    assert engines(job) == ["torch"] * 2
    assert outcome.summary["identity"]["engine"] == journal(job)["engine"] == "torch"
    assert outcome.summary["revision"] == journal(job)["revision"] == rows(job)[0]["revision"]


def test_the_engine_that_began_an_output_continues_it(
    values: dict[str, Any], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    job = Job.from_dict(values)
    Run(job).start()
    before = rows(job)
    caplog.clear()
    write_picture(tmp_path / "photos" / "3.png", seed=3)
    outcome = Run(job).start()
    assert (outcome.summary["rows"], outcome.exit_code) == (1, 0)
    assert "engine onnx: another one began OUTPUT; trying torch" in caplog.text
    assert "cannot be opened" not in caplog.text  # it is not tried
    assert rows(job)[:3] == before
    assert rows(job)[3]["engine"] == "torch"
    Run(
        Job.from_dict(values | {"engine": "torch"})
    ).writer.close()  # the engine alone continues it too
    with pytest.raises(OtherSettingsError, match="engine: torch there, onnx here"):
        Run(Job.from_dict(values | {"engine": "onnx"}))


def test_no_other_engine_continues_an_output(values: dict[str, Any], tmp_path: Path) -> None:
    begun = Job.from_dict(values | {"engine": "torch,transformers"})
    Run(begun).start()
    before = rows(begun)
    write_picture(tmp_path / "photos" / "3.png", seed=3)
    job = Job.from_dict(values | {"engine": "torch,transformers", "max_memory": "10kB"})
    outcome = Run(job).start()
    assert isinstance(outcome.error, OutOfMemoryError)
    said = "engine torch: .*; it began OUTPUT, which no other continues: --overwrite"
    with pytest.raises(OutOfMemoryError, match=said):
        raise outcome.error
    assert rows(job) == before
    run(Job.from_dict(values | {"engine": "torch,transformers", "max_errors": "50%"}))
    assert engines(job) == ["torch"] * 3


def test_overwrite_begins_with_whichever_opens(values: dict[str, Any]) -> None:
    transformers = {"engine": "transformers,torch", "detail": "low"}
    Run(Job.from_dict(values | transformers)).start()
    job = Job.from_dict(values | {"overwrite": True})
    Run(job).start()
    assert engines(job) == ["torch"] * 2
    assert (journal(job)["engine"], journal(job)["detail"]) == ("torch", "full")


def test_an_output_stays_as_it_was_where_no_engine_opens(values: dict[str, Any]) -> None:
    job = Job.from_dict(values | {"max_memory": "10kB"})
    outcome = Run(job).start()
    assert isinstance(outcome.error, EngineError)
    assert not Path(job.output_path).exists()
    Run(Job.from_dict(values)).start()
    before = rows(job)
    again = Run(Job.from_dict(values | {"max_memory": "10kB", "overwrite": True})).start()
    assert isinstance(again.error, EngineError)
    assert rows(job) == before


def test_redo_may_answer_with_another_engine(values: dict[str, Any]) -> None:
    Run(Job.from_dict(values | {"engine": "transformers"})).start()
    job = Job.from_dict(values | {"redo": ["cut-off"]})
    Run(job).start()
    assert engines(job) == ["torch"] * 2
    assert json.loads(rows(job)[0]["settings"])["engine"] == "torch"


def test_an_option_that_the_next_engine_lacks_is_named(values: dict[str, Any]) -> None:
    job = Job.from_dict(values | {"engine": "onnx,transformers", "task": "ocr", "per": "tile"})
    outcome = Run(job).start()
    assert isinstance(outcome.error, JobError)
    assert "the engine transformers does not cut pictures" in str(outcome.error)
    assert outcome.exit_code == 2


def test_a_job_file_may_name_several(values: dict[str, Any], tmp_path: Path) -> None:
    path = tmp_path / "job.yaml"
    path.write_text(yaml.safe_dump(values))
    done = CliRunner().invoke(cli, ["run", str(path)])
    assert done.exit_code == 3, done.output
    assert "engine torch answers" in done.output
    assert rows(Job.from_dict(values))[0]["engine"] == "torch"


def test_a_model_is_opened_with_the_first_that_opens(values: dict[str, Any]) -> None:
    with contextlib.closing(open_engine(Job.from_dict(values))) as engine:
        assert engine.name == "torch"
    with pytest.raises(OutOfMemoryError):
        open_engine(Job.from_dict(values | {"max_memory": "10kB"}))
