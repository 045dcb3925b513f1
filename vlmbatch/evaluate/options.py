"""What the user asked of an evaluation."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Literal, get_args

from vlmbatch.errors import JobError

Metric = Literal["exact", "normalized", "vqa", "anls", "cer", "wer", "chrf"]
METRICS: tuple[Metric, ...] = get_args(Metric)

ERROR_RATES = frozenset(("cer", "wer"))
"""Metrics of which less is better."""

COVERAGE = "coverage"
"""The share of the reference's rows that OUTPUT answers: no measure of a row, but ``--fail-under``
knows it.
"""


@dataclasses.dataclass(frozen=True)
class Columns:
    """Which columns of a reference hold what; empty for the usual names.

    Attributes:
        id: The item.
        prompt: The question or instruction.
        answers: The right answers, one or more columns.
    """

    id: str | None = None
    prompt: str | None = None
    answers: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class EvalOptions:
    """Settings of an evaluation.

    Attributes:
        metrics: What is measured; empty for everything that applies.
        task: Only rows of this task.
        columns: Where the reference keeps what.
        id_prefix: Put before the ids of OUTPUT to make them the reference's.
        ignore_prompt: Join by id alone, whatever was asked.
        resamples: Bootstrap resamples for the intervals.
        seed: Of the resampling.
        worst: How many of the worst rows are shown.
        worst_by: The metric that says which rows are worst.
        max_questions: How many questions get figures of their own, the most frequent first.
        fail_under: The worst value of a metric that is still good enough.
    """

    metrics: tuple[str, ...] = ()
    task: str | None = None
    columns: Columns = Columns()
    id_prefix: str = ""
    ignore_prompt: bool = False
    resamples: int = 1000
    seed: int = 0
    worst: int = 10
    worst_by: str | None = None
    max_questions: int = 20
    fail_under: Mapping[str, float] = dataclasses.field(default_factory=dict)

    def __post_init__(self) -> None:
        for name in (*self.metrics, *([self.worst_by] if self.worst_by else [])):
            if name not in METRICS:
                raise JobError(f"no metric {name!r}; there are {', '.join(METRICS)}")
        if self.resamples < 100:
            raise JobError(f"--resamples {self.resamples}: an interval needs 100 or more")
        for name in ("worst", "max_questions", "seed"):
            if getattr(self, name) < 0:
                raise JobError(
                    f"--{name.replace('_', '-')} {getattr(self, name)}: it cannot be negative"
                )
        if self.ignore_prompt and self.columns.prompt:
            raise JobError("--prompt-column and --ignore-prompt exclude each other")

    @property
    def asked_for(self) -> tuple[str, ...]:
        """Metrics that must be measured, in the order of ``METRICS``; empty when the user named
        none.
        """
        named = {*self.metrics, *self.fail_under, *([self.worst_by] if self.worst_by else [])}
        return tuple(name for name in METRICS if name in named)


def parse_limits(texts: tuple[str, ...]) -> dict[str, float]:
    """``METRIC=VALUE`` to numbers.

    Raises:
        JobError: It has another form, or there is no such metric.
    """
    limits: dict[str, float] = {}
    for text in texts:
        name, _, value = text.partition("=")
        if name not in (*METRICS, COVERAGE):
            raise JobError(
                f"--fail-under {text}: write METRIC=VALUE with one of {', '.join((*METRICS, COVERAGE))}"
            )
        if name in limits:
            raise JobError(f"--fail-under {text}: {name} is given twice")
        try:
            limits[name] = float(value)
        except ValueError:
            limits[name] = math.nan
        if not math.isfinite(limits[name]):
            raise JobError(f"--fail-under {text}: {value!r} is not a number")
    return limits
