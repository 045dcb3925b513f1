"""The explanation of a run that found nothing to ask about: which option left how much."""

from __future__ import annotations

from collections.abc import Iterator

from vlmbatch.job import Job
from vlmbatch.read import Counts
from vlmbatch.urls import without_credentials


def explain_nothing(job: Job, counts: Counts, unasked: int = 0) -> str:
    """Return why nothing was found, and what to do about it.

    Args:
        job: The job.
        counts: The reader's, after the last item.
        unasked: Items without a question.
    """
    kind = "image" if job.media == "image" else "video"
    inputs = ", ".join(without_credentials(text) for text in job.inputs[:3])
    more = f" and {len(job.inputs) - 3} more" if len(job.inputs) > 3 else ""
    reasons = "; ".join(_reasons(job, counts, unasked)) or (
        "check the path, and whether its disk is mounted"
    )
    return (
        f"nothing to ask about: no {kind} found in {inputs}{more}: {reasons}; "
        "--allow-empty makes this no error"
        if not unasked and not counts.unchosen
        else f"nothing to ask about: {reasons}; --allow-empty makes this no error"
    )


def _reasons(job: Job, counts: Counts, unasked: int) -> Iterator[str]:
    if counts.filtered:
        names = [f"--{name}" for name in ("include", "exclude") if getattr(job, name)]
        yield f"{' and '.join(names)} left 0 of {counts.filtered:,}"
    if counts.unchosen:
        more = f" and {counts.unchosen - 1:,} more" if counts.unchosen > 1 else ""
        yield f"{counts.example}{more}"
    if counts.other_media:
        other, command = ("video", "video") if job.media == "image" else ("image", "caption")
        plural = "" if counts.other_media == 1 else "s"
        yield (f"{counts.other_media:,} {other}{plural} left alone (use `vlmbatch {command}`)")
    if counts.without_suffix:
        plural = "" if counts.without_suffix == 1 else "s"
        yield (
            f"{counts.without_suffix:,} picture{plural} without a suffix left alone (rename, or "
            "give each as INPUT)"
        )
    if unasked:
        file = f" in {job.questions_file}" if job.questions_file else ""
        plural = "" if unasked == 1 else "s"
        yield f"{unasked:,} item{plural} without a question{file}"
