"""Folders that the environment names."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path

from vlmbatch.job import Job
from vlmbatch.urls import is_url


def with_user_folders(job: Job) -> Job:
    """Put the folders of the job, unless it names them, where the user keeps caches
    (XDG_CACHE_HOME).
    """
    cache = os.environ.get("XDG_CACHE_HOME")
    if not cache:
        return job
    if job.cache_dir is None:
        job = dataclasses.replace(job, cache_dir=str(Path(cache) / "vlmbatch"))
    if job.staging_dir is None and is_url(job.output_path):
        from vlmbatch.write import default_staging_root

        job = dataclasses.replace(job, staging_dir=str(default_staging_root(Path(cache))))
    return job
