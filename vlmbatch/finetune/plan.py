"""What a training learns from: the rows of DATA that are good, and those that are held out."""

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
from vlmbatch.finetune.rows import Data, Row, read_data

report = logging.getLogger("vlmbatch.report")


@dataclasses.dataclass(frozen=True)
class Plan:
    """What a training learns from.

    Attributes:
        maker: Makes the examples.
        held_out_maker: Makes those that are held out.
        rows: What is trained on.
        held_out: What is measured on.
        longest: Tokens of the longest row.
    """

    maker: ExampleMaker
    held_out_maker: ExampleMaker
    rows: Sequence[Row]
    held_out: Sequence[Row]
    longest: int

    def identity(self) -> dict[str, str]:
        """What of it the trained weights depend on."""
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
) -> Plan:
    """Reads and checks the rows, and says which are held out.

    Args:
        job: The job.
        checkpoint: What prepares them.
        verdict_file: Where what was found is kept for the next start; None for nowhere.
        stopped: Whether to give up.
        says: Whether this process keeps and tells what is found; of several, one does.

    Raises:
        JobError: A file cannot be read, or has bad rows that are not to be left out.
    """
    files = [job.data, *([job.eval_data] if job.eval_data else [])]
    data = [read_data(Path(file), job.video_job) for file in files]
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
    return Plan(
        makers[0], makers[-1], rows, held_out, max(verdict.tokens for verdict in verdicts.values())
    )


def split(rows: Sequence[Row], share: float, seed: int) -> tuple[list[Row], list[Row]]:
    """Holds out a share of the pictures and videos: all rows about one are on the same side, or
    what was trained on would be measured.

    Returns:
        Rows to train on and rows held out; none are held out of a single picture, and at least one
        picture otherwise.
    """
    files = sorted({row.path for row in rows})
    count = min(len(files) - 1, math.ceil(share * len(files)))
    chosen = set(random.Random(seed).sample(files, count))
    return [row for row in rows if row.path not in chosen], [
        row for row in rows if row.path in chosen
    ]


def _tell(file: str, data: Data, job: FinetuneJob) -> None:
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
