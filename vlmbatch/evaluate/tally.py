"""Collect rows as numbers, and score them overall, by task and by question."""

from __future__ import annotations

import array
import collections
import dataclasses
import heapq
import math
from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

from vlmbatch.evaluate.bootstrap import FloatArray, interval, resampled_sums
from vlmbatch.evaluate.join import Pair
from vlmbatch.evaluate.measures import Measure
from vlmbatch.evaluate.options import ERROR_RATES, EvalOptions

RANKED_BY = ("anls", "chrf", "cer", "wer", "vqa", "normalized", "exact")
"""Default metrics to rank rows by; first those that tell near from far. The first measured counts.
"""


@dataclasses.dataclass(frozen=True)
class Figure:
    """A value and its 95 % interval over resamples.

    Attributes:
        value: None if there is nothing to measure.
        interval: None for one row or none.
    """

    value: float | None
    interval: tuple[float, float] | None


@dataclasses.dataclass(frozen=True)
class Score:
    """Score by one metric.

    Attributes:
        here: Of OUTPUT.
        there: Of the other OUTPUT, if there is one.
        difference: ``here`` minus ``there``, over paired resamples.
    """

    here: Figure
    there: Figure | None = None
    difference: Figure | None = None


@dataclasses.dataclass(frozen=True)
class Group:
    """Scores of a group of rows.

    Attributes:
        rows: Number of rows.
        errors: Number of error rows among them.
        scores: Scores by metric.
    """

    rows: int
    errors: int
    scores: Mapping[str, Score]


@dataclasses.dataclass(frozen=True)
class WorstRow:
    """A row far from right or, compared with another OUTPUT, far behind the other's row.

    Attributes:
        score: Score by the ranking metric; ANLS before its threshold.
        other: Score of the other OUTPUT's row.
        pair: The row.
    """

    score: float
    other: float | None
    pair: Pair


class Tally:
    """Rows as numbers: one array for each measure and OUTPUT, and the question of each row."""

    def __init__(
        self, measures: Mapping[str, Measure], options: EvalOptions, *, paired: bool
    ) -> None:
        self.measures, self.options = measures, options
        self.worst_by = options.worst_by or next(name for name in RANKED_BY if name in measures)
        self.questions: dict[tuple[str, str], int] = {}
        self._question_of = array.array("q")
        self._errors = array.array("b")
        self._num_sides = 2 if paired else 1
        self._numbers = {
            name: [array.array("d") for _ in range(self._num_sides)] for name in measures
        }
        self._worst: list[tuple[float, int, WorstRow]] = []

    def add(self, pair: Pair) -> None:
        """Add a row."""
        self._question_of.append(
            self.questions.setdefault((pair.task, pair.prompt), len(self.questions))
        )
        self._errors.append(pair.text is None)
        texts = (pair.text, pair.other)[: self._num_sides]
        for name, measure in self.measures.items():
            rows = [measure.row(text, pair.answers) for text in texts]
            for numbers, row in zip(self._numbers[name], rows, strict=True):
                numbers.extend(row)
            if name == self.worst_by:
                self._rank(pair, measure.best, *map(measure.rank, rows))

    def _rank(self, pair: Pair, best: float, here: float, there: float | None = None) -> None:
        """Keep a row if it is among the worst, but never one that is right or not behind."""
        behind = (best if there is None else there) - here
        if behind <= 0 or not self.options.worst:
            return
        sign = -1.0 if self.worst_by in ERROR_RATES else 1.0
        row = WorstRow(sign * here, None if there is None else sign * there, pair)
        entry = (behind, -len(self._errors), row)
        if len(self._worst) < self.options.worst:
            heapq.heappush(self._worst, entry)
        else:
            heapq.heappushpop(self._worst, entry)

    def worst(self) -> tuple[WorstRow, ...]:
        """Return the worst rows, the worst first, equal ones in the order of OUTPUT."""
        return tuple(row for _, _, row in sorted(self._worst, reverse=True))

    def groups(self) -> tuple[Group, dict[str, Group], dict[tuple[str, str], Group]]:
        """Score all rows, the rows of each task, and those of the most frequent questions."""
        question_of = np.asarray(self._question_of)
        errors = np.asarray(self._errors).astype(bool)
        numbers = np.concatenate(
            [
                np.asarray(side).reshape(-1, measure.columns)
                for name, measure in self.measures.items()
                for side in self._numbers[name]
            ],
            axis=1,
        )
        overall = self._group(numbers, errors)

        def group(chosen: npt.NDArray[np.bool_]) -> Group:
            return overall if chosen.all() else self._group(numbers[chosen], errors[chosen])

        keys = list(self.questions)
        task_of = np.array([task for task, _ in keys], dtype=object)[question_of]
        tasks = {task: group(task_of == task) for task in dict.fromkeys(task for task, _ in keys)}
        frequent = collections.Counter(self._question_of).most_common(self.options.max_questions)
        questions = {keys[number]: group(question_of == number) for number, _ in frequent}
        return overall, tasks, questions

    def _group(self, numbers: FloatArray, errors: npt.NDArray[np.bool_]) -> Group:
        rows = len(numbers)
        total = numbers.sum(axis=0, keepdims=True)
        drawn = (
            resampled_sums(numbers, self.options.resamples, self.options.seed)
            if rows > 1
            else numbers[:0]
        )
        scores, start = {}, 0
        for name, measure in self.measures.items():
            sides = []
            for _ in range(self._num_sides):
                columns = slice(start, start + measure.columns)
                sides.append([measure.combine(sums[:, columns], rows) for sums in (total, drawn)])
                start += measure.columns
            if len(sides) == 2:
                sides.append([here - there for here, there in zip(*sides, strict=True)])
            scores[name] = Score(*(_figure(*side) for side in sides))
        return Group(rows, int(errors.sum()), scores)


def _figure(value: FloatArray, values: FloatArray) -> Figure:
    number = float(value[0])
    return Figure(number, interval(values)) if math.isfinite(number) else Figure(None, None)
