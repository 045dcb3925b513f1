"""Folders that the environment names."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path
from typing import TypeVar

from vlmbatch.job import Job, ResourceOptions
from vlmbatch.urls import is_url

T = TypeVar("T", bound=ResourceOptions)


def with_user_folders(job: T) -> T:
    """Put the folders of a job, unless it names them, where the user keeps caches
    (XDG_CACHE_HOME).
    """
    cache = os.environ.get("XDG_CACHE_HOME")
    if not cache:
        return job
    if job.cache_dir is None:
        job = dataclasses.replace(job, cache_dir=str(Path(cache) / "vlmbatch"))
    if isinstance(job, Job) and job.staging_dir is None and is_url(job.output_path):
        from vlmbatch.write import default_staging_root

        job = dataclasses.replace(job, staging_dir=str(default_staging_root(Path(cache))))
    return job
