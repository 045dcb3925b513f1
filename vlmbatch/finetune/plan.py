"""Choose the rows of a training: good ones to train on, and held-out ones."""

from __future__ import annotations

import dataclasses
import hashlib
import logging
import math
import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from vlmbatch.checkpoint import Checkpoint
from vlmbatch.finetune.check import check_rows, read_verdicts, sort_out, write_verdicts
from vlmbatch.finetune.examples import ExampleMaker
from vlmbatch.finetune.job import FinetuneJob
from vlmbatch.finetune.rows import TrainingData, TrainingRow
from vlmbatch.finetune.text_folder import read_any_data

report = logging.getLogger("vlmbatch.report")


@dataclasses.dataclass(frozen=True)
class TrainingPlan:
    """Rows of a training.

    Attributes:
        maker: Makes examples of ``rows``.
        held_out_maker: Makes examples of ``held_out``.
        rows: Rows to train on.
        held_out: Rows to evaluate on.
        longest: Number of tokens of the longest row.
    """

    maker: ExampleMaker
    held_out_maker: ExampleMaker
    rows: Sequence[TrainingRow]
    held_out: Sequence[TrainingRow]
    longest: int

    def identity(self) -> dict[str, str]:
        """Return digests of the rows, which the trained weights depend on."""
        sides = {"rows": self.rows, "held_out": self.held_out}
        return {
            name: hashlib.sha256("".join(row.key() for row in rows).encode()).hexdigest()
            for name, rows in sides.items()
        }


def make_plan(
    job: FinetuneJob,
    checkpoint: Checkpoint,
    verdict_file: Path | None,
    stopped: Callable[[], bool] = lambda: False,
    *,
    says: bool = True,
) -> TrainingPlan:
    """Read and check the rows, and hold some out.

    Args:
        job: The job.
        checkpoint: The checkpoint that prepares them.
        verdict_file: File of the verdicts, kept for the next start; None for none.
        stopped: Tells whether to give up.
        says: Whether this process writes and logs the verdicts; one of several does.

    Raises:
        JobError: A file cannot be read, or has bad rows and the job does not skip them.
    """
    files = [job.data, *([job.eval_data] if job.eval_data else [])]
    data = [read_any_data(Path(file), job.prompt, job.video_job) for file in files]
    makers = [ExampleMaker(checkpoint, job.detail, part.video_job, job.max_pixels) for part in data]
    if says:
        for file, part in zip(files, data, strict=True):
            _tell(file, part, job)
    known = read_verdicts(verdict_file) if verdict_file else {}
    verdicts: dict[str, Any] = {}
    for part, maker in zip(data, makers, strict=True):
        verdicts |= check_rows(part.rows, maker, known, stopped)
    if says and verdict_file and verdicts != known:
        write_verdicts(verdict_file, verdicts)
    named = zip(data, makers, files if says else [None] * len(files), strict=True)
    good = [
        sort_out(part.rows, verdicts, maker, skip_bad=job.skip_bad, name=name)
        for part, maker, name in named
    ]
    rows, held_out = (
        (good[0], good[1]) if job.eval_data else split(good[0], job.eval_share, job.seed)
    )
    return TrainingPlan(
        makers[0], makers[-1], rows, held_out, max(verdict.tokens for verdict in verdicts.values())
    )


def split(
    rows: Sequence[TrainingRow], share: float, seed: int
) -> tuple[list[TrainingRow], list[TrainingRow]]:
    """Hold out a share of the pictures and videos; all rows about one are on the same side.

    Returns:
        Rows to train on and held-out rows: at least one picture, but none of a single picture.
    """
    files = sorted({row.path for row in rows})
    count = min(len(files) - 1, math.ceil(share * len(files)))
    chosen = set(random.Random(seed).sample(files, count))
    return [row for row in rows if row.path not in chosen], [
        row for row in rows if row.path in chosen
    ]


def _tell(file: str, data: TrainingData, job: FinetuneJob) -> None:
    if data.left_out:
        report.info(
            "%s: %d rows without a text of their own are left out (status error or similar)",
            file,
            data.left_out,
        )
    if data.detail not in (None, job.detail):
        report.warning(
            "%s was made with --detail %s; this trains with --detail %s",
            file,
            data.detail,
            job.detail,
        )
