"""Jobs on the scripted engine, and their rows."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from vlmbatch.engine.scripted import ScriptedEngine
from vlmbatch.job import Job
from vlmbatch.run.pipeline import Outcome, Run
from vlmbatch.write import read_records


def job(folder: Path, **values: object) -> Job:
    return Job.from_dict(
        {"inputs": [str(folder)], "output": str(folder.parent / "out.jsonl"), **values}
    )


def rows(job: Job) -> list[dict[str, Any]]:
    return list(read_records(Path(job.output_path)))


def start(job: Job, engine: ScriptedEngine | None = None) -> tuple[Outcome, ScriptedEngine]:
    engine = engine or ScriptedEngine()
    return Run(job, engine=engine).start(), engine
