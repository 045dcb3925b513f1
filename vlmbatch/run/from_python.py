"""``vlmbatch.run``: a job's run as one call, for Python programs."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Mapping
from types import FrameType
from typing import Any

from vlmbatch.engine import Engine
from vlmbatch.errors import JobError, VlmbatchError
from vlmbatch.job import Job
from vlmbatch.job.keys import note_keywords
from vlmbatch.run.outcome import Outcome
from vlmbatch.run.pipeline import Run
from vlmbatch.run.progress import ProgressReporter, is_watched
from vlmbatch.run.reporter import Reporter


def run(
    job: Job,
    *,
    engine: Engine | None = None,
    reporter: Reporter | None = None,
    progress: bool | None = None,
) -> dict[str, Any]:
    """Run a job to its end and return its summary.

        job = vlmbatch.Job(inputs=["photos"], output="photos.jsonl", model="demo")
        summary = vlmbatch.run(job)
        print(summary["status"])

    Args:
        job: The job.
        engine: An open engine, in place of the one that the job names. It is closed at the end.
        reporter: Is told of the progress, in place of a bar.
        progress: Whether to show a bar; None: if the job does not say, on a terminal and in a
            notebook.

    Raises:
        VlmbatchError: The run could not go on; everything finished is committed. Errors of single
            items are rows, not exceptions.
        KeyboardInterrupt: Ctrl-C, after everything finished is committed. A second one ends at
            once.
    """
    _check_job(job)
    if progress is None:
        progress = job.progress == "on" or (job.progress == "auto" and is_watched())
    try:
        if reporter is None and progress:
            with ProgressReporter(bar=True, lines=False) as bar:
                outcome = _start(Run(job, engine=engine, reporter=bar))
        else:
            outcome = _start(Run(job, engine=engine, reporter=reporter))
        if outcome.error is not None:
            raise outcome.error
    except VlmbatchError as error:
        note_keywords(error, Job)
        raise
    if outcome.interrupted:
        raise KeyboardInterrupt("everything finished is committed; the same job goes on from there")
    return outcome.summary


def _check_job(job: object) -> None:
    """Refuse what is no Job, and say how to make one of it.

    Raises:
        JobError: See above.
    """
    if isinstance(job, Job):
        return
    advice = ": vlmbatch.Job(inputs=…, output=…)"
    if isinstance(job, str | os.PathLike):
        advice = f": vlmbatch.Job.from_yaml({os.fspath(job)!r}) reads a job file"
    elif isinstance(job, Mapping):
        advice = ": vlmbatch.Job(**values) makes one of keywords"
    raise JobError(f"run takes a Job, not {type(job).__name__}{advice}")


def _start(run: Run) -> Outcome:
    """Run to the end. Ctrl-C stops it in order, unless the program handles SIGINT by itself."""
    is_ours = (
        threading.current_thread() is threading.main_thread()
        and signal.getsignal(signal.SIGINT) is signal.default_int_handler
    )
    if not is_ours:
        return run.start()

    def stop(number: int, frame: FrameType | None) -> None:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        run.stop()

    signal.signal(signal.SIGINT, stop)
    try:
        return run.start()
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)
