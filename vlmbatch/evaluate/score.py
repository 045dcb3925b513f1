"""Scores of an OUTPUT: over all rows, by task and by question, with intervals, and its worst rows."""

from __future__ import annotations

import array
import collections
import dataclasses
import heapq
import math
from collections.abc import Iterable, Mapping

import numpy as np
import numpy.typing as npt

from vlmbatch.errors import JobError, MissingDependencyError
from vlmbatch.evaluate.bootstrap import FloatArray, interval, resampled_sums
from vlmbatch.evaluate.join import Answers, Counts, Names, Pair, Row, index_answers, join
from vlmbatch.evaluate.measures import MEASURES, VQA_ANSWERS, Measure
from vlmbatch.evaluate.options import COVERAGE, ERROR_RATES, EvalOptions
from vlmbatch.evaluate.reference import Reference

RANKED_BY = ("anls", "chrf", "cer", "wer", "vqa", "normalized", "exact")
"""What says which rows are worst when the user does not: the first that is measured, those first
that tell near from far.
"""


@dataclasses.dataclass(frozen=True)
class Figure:
    """A value and the interval that holds it in 95 of 100 resamples; None where there is nothing to
    measure, or one row only.
    """

    value: float | None
    interval: tuple[float, float] | None


@dataclasses.dataclass(frozen=True)
class Score:
    """OUTPUT's figure, and with another OUTPUT that one's and the difference (this one less the
    other, over paired resamples).
    """

    here: Figure
    there: Figure | None = None
    difference: Figure | None = None


@dataclasses.dataclass(frozen=True)
class Group:
    """The scores of some rows, by metric.

    Attributes:
        rows: How many.
        errors: Error rows among them.
        scores: By name of the metric.
    """

    rows: int
    errors: int
    scores: Mapping[str, Score]


@dataclasses.dataclass(frozen=True)
class Worst:
    """A row that is far from right, or with another OUTPUT far behind that one's.

    Attributes:
        score: By the metric that ranks; ANLS before its threshold.
        other: The other OUTPUT's.
        pair: The row.
    """

    score: float
    other: float | None
    pair: Pair


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """All that is known about an OUTPUT.

    Attributes:
        counts: Rows, and what has no partner.
        missing: Entries of the reference that OUTPUT does not answer.
        entries: All of them.
        without_answer: Rows of the reference without an answer.
        answers: The fewest and the most right answers of an entry.
        overall: Over all rows.
        tasks: By task.
        questions: By task and prompt, the most frequent first.
        more_questions: Questions without figures of their own.
        worst_by: The metric that ranks the rows.
        worst: The worst first.
        left_out: Metrics that were not asked for by name and could not be measured, and why.
    """

    counts: Counts
    missing: Names
    entries: int
    without_answer: int
    answers: tuple[int, int]
    overall: Group
    tasks: Mapping[str, Group]
    questions: Mapping[tuple[str, str], Group]
    more_questions: int
    worst_by: str
    worst: tuple[Worst, ...]
    left_out: Mapping[str, str]

    @property
    def coverage(self) -> float:
        """The share of the reference's entries that OUTPUT answers."""
        return (self.entries - self.missing.count) / self.entries

    def below(self, limits: Mapping[str, float]) -> list[str]:
        """Which limits are not held, in words: a value under the limit, or over it for an error
        rate; nothing to measure holds none.
        """
        found = []
        for name, limit in limits.items():
            value = self.coverage if name == COVERAGE else self.overall.scores[name].here.value
            rising = name not in ERROR_RATES
            if value is None or (value < limit if rising else value > limit):
                found.append(
                    f"{name} is {'nothing' if value is None else f'{value:.4f}'}, {'under' if rising else 'over'} {limit:g}"
                )
        return found


def evaluate(
    rows: Iterable[Row],
    reference: Reference,
    options: EvalOptions,
    other_rows: Iterable[Row] | None = None,
) -> Evaluation:
    """Scores the rows of an OUTPUT.

    Args:
        rows: The rows, with ``join.ROW_COLUMNS``; read once, and kept as numbers.
        reference: What is right.
        options: What to measure, and how.
        other_rows: Another OUTPUT's; then only rows that both have are scored.

    Raises:
        JobError: Nothing can be joined, or a metric that was asked for has no meaning here.
        MissingDependencyError: A metric that was asked for needs a package that is not installed.
    """
    measures, left_out = choose_measures(reference, options)
    counts = Counts()
    other: Answers | None = (
        None if other_rows is None else index_answers(other_rows, reference, options)
    )
    tally = Tally(measures, options, paired=other is not None)
    for pair in join(rows, reference, options, counts, other):
        tally.add(pair)
    missing, names_prompts = Names(), reference.names_prompts
    for (id, prompt), entry in reference.entries.items():
        if not entry.seen:
            missing.add(id, prompt if names_prompts else None)
    overall, tasks, questions = tally.groups()
    return Evaluation(
        counts=counts,
        missing=missing,
        entries=len(reference.entries),
        without_answer=reference.without_answer,
        answers=reference.answers_per_row,
        overall=overall,
        tasks=tasks,
        questions=questions,
        more_questions=len(tally.questions) - len(questions),
        worst_by=tally.worst_by,
        worst=tally.worst(),
        left_out=left_out,
    )


def choose_measures(
    reference: Reference, options: EvalOptions
) -> tuple[dict[str, Measure], dict[str, str]]:
    """The measures that were asked for, or else all that apply; and which of these are left out,
    with the reason.

    Raises:
        JobError: A metric that was asked for has no meaning here.
        MissingDependencyError: A metric that was asked for needs a package that is not installed.
    """
    measures: dict[str, Measure] = {}
    left_out: dict[str, str] = {}
    everything = not options.metrics
    for name, make in MEASURES.items():
        required = name in options.asked_for
        if not (everything or required):
            continue
        try:
            if name == "vqa" and reference.answers_per_row[0] < VQA_ANSWERS:
                raise JobError(
                    f"vqa needs {VQA_ANSWERS} or more right answers to every question; this reference has {reference.answers_per_row[0]} to some"
                )
            measures[name] = make()
        except (JobError, MissingDependencyError) as error:
            if required:
                raise
            left_out[name] = str(error)
    return measures, left_out


class Tally:
    """The rows as numbers: one array a measure and OUTPUT, and which task and question each row
    belongs to.
    """

    def __init__(
        self, measures: Mapping[str, Measure], options: EvalOptions, *, paired: bool
    ) -> None:
        self.measures, self.options, self.paired = measures, options, paired
        self.worst_by = options.worst_by or next(name for name in RANKED_BY if name in measures)
        self.questions: dict[tuple[str, str], int] = {}
        self._question_of = array.array("q")
        self._errors = array.array("b")
        self._here = {name: array.array("d") for name in measures}
        self._there = {name: array.array("d") for name in measures}
        self._worst: list[tuple[float, int, Worst]] = []

    def add(self, pair: Pair) -> None:
        """Takes a row."""
        self._question_of.append(
            self.questions.setdefault((pair.task, pair.prompt), len(self.questions))
        )
        self._errors.append(pair.text is None)
        for name, measure in self.measures.items():
            here = measure.row(pair.text, pair.answers)
            there = measure.row(pair.other, pair.answers) if self.paired else None
            self._here[name].extend(here)
            if there is not None:
                self._there[name].extend(there)
            if name == self.worst_by:
                self._rank(
                    measure.rank(here),
                    None if there is None else measure.rank(there),
                    measure.best,
                    pair,
                )

    def _rank(self, here: float, there: float | None, best: float, pair: Pair) -> None:
        """Keeps the row when it is among the worst; never one that is right, or not behind the
        other OUTPUT.
        """
        behind = (best if there is None else there) - here
        if behind <= 0 or not self.options.worst:
            return
        sign = -1.0 if self.worst_by in ERROR_RATES else 1.0
        row = Worst(sign * here, None if there is None else sign * there, pair)
        entry = (behind, -len(self._errors), row)
        if len(self._worst) < self.options.worst:
            heapq.heappush(self._worst, entry)
        else:
            heapq.heappushpop(self._worst, entry)

    def worst(self) -> tuple[Worst, ...]:
        """The worst rows, the worst first, and in the order of OUTPUT where they are equal."""
        return tuple(row for _, _, row in sorted(self._worst, reverse=True))

    def groups(self) -> tuple[Group, dict[str, Group], dict[tuple[str, str], Group]]:
        """The scores over all rows, by task, and by question for the most frequent ones."""
        question_of = np.asarray(self._question_of)
        errors = np.asarray(self._errors).astype(bool)
        here = [
            np.asarray(self._here[name]).reshape(-1, measure.columns)
            for name, measure in self.measures.items()
        ]
        there = (
            [
                np.asarray(self._there[name]).reshape(-1, measure.columns)
                for name, measure in self.measures.items()
            ]
            if self.paired
            else []
        )
        numbers = np.concatenate([*here, *there], axis=1)
        task_of = {question: task for (task, _), question in self.questions.items()}
        overall = self._group(numbers, errors)
        tasks: dict[str, Group] = {}
        for task in dict.fromkeys(task_of.values()):
            chosen = np.isin(
                question_of, [question for question, name in task_of.items() if name == task]
            )
            tasks[task] = overall if chosen.all() else self._group(numbers[chosen], errors[chosen])
        frequent = collections.Counter(self._question_of).most_common(self.options.max_questions)
        keys = list(self.questions)
        questions = {}
        for question, count in frequent:
            chosen = question_of == question
            whole = tasks[task_of[question]]
            questions[keys[question]] = (
                whole if whole.rows == count else self._group(numbers[chosen], errors[chosen])
            )
        return overall, tasks, questions

    def _group(self, numbers: FloatArray, errors: npt.NDArray[np.bool_]) -> Group:
        rows = len(numbers)
        total = numbers.sum(axis=0, keepdims=True)
        drawn = (
            resampled_sums(numbers, self.options.resamples, self.options.seed)
            if rows > 1
            else numbers[:0]
        )
        scores, start, there = {}, 0, numbers.shape[1] // 2
        for name, measure in self.measures.items():
            stop = start + measure.columns
            value, values = (measure.combine(sums[:, start:stop], rows) for sums in (total, drawn))
            if self.paired:
                other, others = (
                    measure.combine(sums[:, there + start : there + stop], rows)
                    for sums in (total, drawn)
                )
                scores[name] = Score(
                    _figure(value, values),
                    _figure(other, others),
                    _figure(value - other, values - others),
                )
            else:
                scores[name] = Score(_figure(value, values))
            start = stop
        return Group(rows, int(errors.sum()), scores)


def _figure(value: FloatArray, values: FloatArray) -> Figure:
    number = float(value[0])
    return Figure(number, interval(values)) if math.isfinite(number) else Figure(None, None)
