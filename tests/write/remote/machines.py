"""Machines with an OUTPUT behind a URL of fsspec's file system in memory."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

from fsspec.implementations.memory import MemoryFileSystem

from tests.write.rows import ONLY_WHEN_ASKED, record
from vlmbatch.job import Job
from vlmbatch.write import (
    CommitPolicy,
    StagedOutput,
    UploadPolicy,
    local_copy,
    read_records,
)

URL = "memory://bucket/run.jsonl"
ALL_THE_TIME = UploadPolicy(seconds=0)
ALWAYS = CommitPolicy(rows=1, seconds=0, publish_seconds=0, publish_share=float("inf"))


class Flaky(MemoryFileSystem):
    """A file system in memory whose next writes fail."""

    protocol = "flaky"
    store: ClassVar[dict[str, Any]] = {}
    pseudo_dirs: ClassVar[list[str]] = [""]
    failures: ClassVar[list[Exception]] = []
    cachable = False

    def put_file(self, *arguments: Any, **options: Any) -> Any:
        if self.failures:
            raise self.failures.pop(0)
        return super().put_file(*arguments, **options)


def staged(
    folder: Path,
    url: str = URL,
    *,
    policy: CommitPolicy = ONLY_WHEN_ASKED,
    identity: dict[str, Any] | None = None,
    **options: Any,
) -> StagedOutput:
    """An OUTPUT whose staging folder is that of one machine; it is uploaded at the end only."""
    seams = {
        name: options.pop(name)
        for name in ("uploads", "clock", "wait", "remote", "run_id")
        if name in options
    }
    job = Job(
        inputs=("pictures",), output=url, staging_dir=str(folder), **{"model": "demo", **options}
    )
    settings = {**job.identity(), "revision": "r1", **(identity or {})}
    return StagedOutput(
        job, settings, **{"policy": policy, "uploads": UploadPolicy(seconds=1e9), **seams}
    )


def rows_of(url: str = URL) -> list[dict[str, Any]]:
    with local_copy(url, allow_private=True) as path:
        return list(read_records(path))


def numbers(url: str = URL) -> list[int]:
    return [int(row["id"][:5]) for row in rows_of(url)]


def is_done(output: StagedOutput, number: int, fingerprint: str = "x") -> bool:
    made = record(number)
    return output.done(*made.key, made.source, fingerprint)


def parts(memory: MemoryFileSystem) -> list[str]:
    """Names of what was published beside OUTPUTs, in order."""
    found = [Path(name).name for name in memory.find("/bucket")]
    return sorted(name for name in found if ".part-" in name)
