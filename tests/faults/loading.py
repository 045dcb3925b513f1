"""A process that loads every Item of the files it is given, and tells what came of them: ``python
-m tests.faults.loading`` with a path a line on stdin.

A file that takes too long ends the process: the alarm's own action needs no Python, so that a hang
inside a decoder ends too.
"""

from __future__ import annotations

import json
import logging
import resource
import signal
import sys
import warnings
from pathlib import Path
from typing import Any

from vlmbatch.errors import ItemError, JobError
from vlmbatch.job import Job
from vlmbatch.read import open_reader
from vlmbatch.read.files.kinds import media_of
from vlmbatch.sample import make_sampler

CPU_SECONDS = 10
WALL_SECONDS = 120
"""A file that waits for ever takes no processor time."""

WAYS: tuple[dict[str, Any], ...] = ({"every": 1}, {"fps": 2.0}, {"num_frames": 3, "per": "clip"})


def job_for(path: str, number: int) -> Job:
    """The job that reads a file: pages and frames too, ways of sampling by turns."""
    if media_of(path) == "video":
        return Job(inputs=(path,), media="video", **WAYS[number % len(WAYS)])
    return Job(inputs=(path,), pages="all" if number % 2 else None)


def load(job: Job) -> tuple[int, int]:
    """Loads all Items of a job.

    Returns:
        How many could be loaded, and how many are errors.
    """
    good = bad = 0
    for item in open_reader(job, sampler=make_sampler(job) if job.media == "video" else None):
        try:
            for pixels in item.load().arrays():
                assert pixels.dtype == "uint8"
                assert pixels.ndim == 3
                assert pixels.shape[2] == 3
                assert pixels.size
            good += 1
        except ItemError:
            bad += 1
    return good, bad


def peak_bytes() -> int:
    """The most memory that this process held since ``forget_peak``."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM"):
            return int(line.split()[1]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def forget_peak() -> None:
    """Starts to measure anew, where the system can."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return


def main() -> None:
    """Loads the files; a line of JSON each."""
    warnings.simplefilter("ignore")
    logging.disable()
    for number, line in enumerate(sys.stdin):
        path = line.rstrip("\n")
        print(json.dumps({"begun": path}), flush=True)
        signal.setitimer(signal.ITIMER_PROF, CPU_SECONDS)
        signal.setitimer(signal.ITIMER_REAL, WALL_SECONDS)
        forget_peak()
        before = peak_bytes()
        said: dict[str, Any] = {}
        try:
            said["good"], said["bad"] = load(job_for(path, number))
        except JobError as error:
            said["refused"] = str(error)
        except BaseException as error:
            said["raised"] = f"{type(error).__name__}: {error}"
        print(json.dumps({"ended": path, "bytes": peak_bytes() - before, **said}), flush=True)


if __name__ == "__main__":
    main()
