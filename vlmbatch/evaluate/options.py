"""Options of an evaluation."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Literal, get_args

from vlmbatch.errors import JobError

Metric = Literal["exact", "normalized", "vqa", "anls", "cer", "wer", "chrf"]
METRICS: tuple[Metric, ...] = get_args(Metric)

ERROR_RATES = frozenset(("cer", "wer"))
"""Metrics where less is better."""

COVERAGE = "coverage"
"""Share of the reference that OUTPUT answers: no metric of a row, but ``--fail-under`` takes it."""


@dataclasses.dataclass(frozen=True)
class Columns:
    """Columns of a reference; None or empty for the usual names.

    Attributes:
        id: Column of the item's id.
        prompt: Column of the question or instruction.
        answers: Columns of right answers.
    """

    id: str | None = None
    prompt: str | None = None
    answers: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class EvalOptions:
    """Settings of an evaluation.

    Attributes:
        metrics: Metrics to measure; empty for all that apply.
        task: Only rows of this task.
        columns: Columns of the reference.
        id_prefix: Text before the ids of OUTPUT that makes them the reference's.
        ignore_prompt: Join by id alone.
        resamples: Number of bootstrap resamples.
        seed: Seed of the resampling.
        worst: Number of worst rows to show.
        worst_by: Metric that ranks the worst rows.
        max_questions: Number of questions with scores of their own, the most frequent first.
        fail_under: Lowest accepted value of a metric.
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
        """Metrics that the user named, in the order of ``METRICS``."""
        named = {*self.metrics, *self.fail_under, *([self.worst_by] if self.worst_by else [])}
        return tuple(name for name in METRICS if name in named)


def parse_limits(texts: tuple[str, ...]) -> dict[str, float]:
    """Parse ``METRIC=VALUE`` texts.

    Raises:
        JobError: One has another form, or there is no such metric.
    """
    limits: dict[str, float] = {}
    for text in texts:
        name, _, value = text.partition("=")
        if name not in (*METRICS, COVERAGE):
            raise JobError(
                f"--fail-under {text}: write METRIC=VALUE with one of "
                f"{', '.join((*METRICS, COVERAGE))}"
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
