"""Records, jobs and stores for the tests of write/."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from vlmbatch.core import Record
from vlmbatch.job import Job
from vlmbatch.write import CommitPolicy, OutputStore, read_records

SUFFIXES = ("jsonl", "parquet", "csv")
ONLY_WHEN_ASKED = CommitPolicy(rows=10**9, seconds=1e9, publish_seconds=1e9)
PROMPT = "Describe this image in one sentence."


def record(number: int, text: str | None = None, **changes: Any) -> Record:
    made = Record(
        id=f"{number:05d}.jpg",
        source=f"/data/{number:05d}.jpg",
        index=number,
        media="image",
        time_seconds=None,
        end_seconds=None,
        width=640,
        height=480,
        task="caption",
        prompt=PROMPT,
        text=f"picture {number}" if text is None else text,
        status="ok",
        error_type=None,
        error=None,
        similar_to=None,
        finish_reason="stop",
        mean_logprob=-0.123456,
        model="demo",
        revision="r1",
        engine="torch",
        device="cpu",
        dtype="float32",
        tiles=17,
        prompt_tokens=1100,
        new_tokens=20,
        batch_size=4,
        read_seconds=0.0123456,
        prepare_seconds=0.25,
        wait_seconds=0.5,
        vision_seconds=0.1,
        prefill_seconds=0.2,
        decode_seconds=0.3,
        compute_seconds=0.05,
        run_id="run",
        created_at="2026-01-31T12:00:00.123Z",
    )
    return dataclasses.replace(made, **changes)


def failed(number: int) -> Record:
    return record(
        number,
        status="error",
        error_type="DecodeError",
        error="not a picture",
        finish_reason=None,
        mean_logprob=None,
        new_tokens=0,
    )


COUNTS = ("tiles", "prompt_tokens", "new_tokens", "batch_size")
SECONDS = tuple(
    f"{phase}_seconds"
    for phase in ("read", "prepare", "wait", "vision", "prefill", "decode", "compute")
)


def bare(number: int, **changes: Any) -> Record:
    """The row of an engine that knows the text only."""
    unknown = dict.fromkeys((*COUNTS, *SECONDS, "finish_reason", "mean_logprob", "width", "height"))
    return record(number, **{**unknown, "revision": "", "device": "", "dtype": "", **changes})


def store(
    output: Path,
    identity: dict[str, Any] | None = None,
    policy: CommitPolicy = ONLY_WHEN_ASKED,
    clock: Any = None,
    **options: Any,
) -> OutputStore:
    """A store that commits when asked only."""
    job = Job(inputs=("pictures",), output=str(output), **{"model": "demo", **options})
    found = {**job.identity(), "revision": "r1", **(identity or {})}
    return OutputStore(output, job, found, policy=policy, **({"clock": clock} if clock else {}))


def is_done(open_store: OutputStore, made: Record, fingerprint: str = "") -> bool:
    return open_store.done(*made.key, made.source, fingerprint)


def texts(output: Path) -> list[str | None]:
    return [row["text"] for row in read_records(output)]


def ids(output: Path) -> list[str]:
    return [row["id"] for row in read_records(output)]
