"""What the user asked for."""

from __future__ import annotations

from vlmbatch.job.job import (
    DEFAULT_FPS,
    DEFAULT_SKIP_SIMILAR,
    Detail,
    Job,
    Kind,
    Per,
    job_key,
    option,
)

__all__ = [
    "DEFAULT_FPS",
    "DEFAULT_SKIP_SIMILAR",
    "Detail",
    "Job",
    "Kind",
    "Per",
    "job_key",
    "option",
]
