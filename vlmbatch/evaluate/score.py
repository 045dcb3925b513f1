"""Score an OUTPUT against a reference, alone or compared with another OUTPUT."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path

from vlmbatch.errors import JobError, MissingDependencyError
from vlmbatch.evaluate.ids import IdMatch
from vlmbatch.evaluate.join import (
    ROW_COLUMNS,
    JoinCounts,
    Names,
    OutputRow,
    index_texts,
    join,
    match_rows,
)
from vlmbatch.evaluate.measures import MEASURES, VQA_ANSWERS, Measure
from vlmbatch.evaluate.options import COVERAGE, ERROR_RATES, EvalOptions
from vlmbatch.evaluate.reference import Reference, read_reference
from vlmbatch.evaluate.tally import Group, Tally, WorstRow
from vlmbatch.evaluate.text_folder import read_text_folder
from vlmbatch.write import local_copy, read_records
from vlmbatch.write.columns import TEXT_ORIGINAL

ReadRows = Callable[[], Iterable[OutputRow]]
"""Reads the rows of an OUTPUT, with ``join.ROW_COLUMNS``, from the beginning."""


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """Scores of an OUTPUT.

    Attributes:
        counts: Numbers of rows with and without a partner.
        ids: Translation of OUTPUT's ids to the reference's.
        missing: Entries of the reference that OUTPUT does not answer.
        reference: The right answers.
        overall: Scores of all rows.
        tasks: Scores by task.
        questions: Scores by task and prompt, the most frequent first.
        more_questions: Number of questions without scores of their own.
        worst_by: Metric that ranks the rows.
        worst: Worst rows, the worst first.
        left_out: Reasons by metric that applies by default and could not be measured.
        is_own: Whether OUTPUT is its own reference: texts of the model against the corrections.
    """

    counts: JoinCounts
    ids: IdMatch
    missing: Names
    reference: Reference
    overall: Group
    tasks: Mapping[str, Group]
    questions: Mapping[tuple[str, str], Group]
    more_questions: int
    worst_by: str
    worst: tuple[WorstRow, ...]
    left_out: Mapping[str, str]
    is_own: bool = False

    @property
    def coverage(self) -> float:
        """Share of the reference that OUTPUT answers."""
        entries = len(self.reference.entries)
        return (entries - self.missing.count) / entries

    def below(self, limits: Mapping[str, float]) -> list[str]:
        """Describe the limits that are not held.

        A value must not be under its limit, or over it for an error rate. A metric without any row
        to measure holds no limit.
        """
        found = []
        for name, limit in limits.items():
            value = self.coverage if name == COVERAGE else self.overall.scores[name].here.value
            rising = name not in ERROR_RATES
            if value is None or (value < limit if rising else value > limit):
                shown = "nothing" if value is None else f"{value:.4f}"
                found.append(f"{name} is {shown}, {'under' if rising else 'over'} {limit:g}")
        return found


def evaluate_files(
    output: str, reference: Path, options: EvalOptions, against: str | None = None
) -> Evaluation:
    """Score the rows of an OUTPUT, a file or a URL.

    Args:
        output: The OUTPUT.
        reference: The file of right answers, or a folder of ``.txt`` files beside pictures.
        options: What to measure, and how.
        against: Another OUTPUT; then only rows that both have are scored.

    Raises:
        JobError: The reference cannot be understood, nothing can be joined, or a metric of the
            user's choice has no meaning here.
        MissingDependencyError: A metric of the user's choice needs a package that is not installed.
        OutputError: An OUTPUT cannot be read.
    """
    with contextlib.ExitStack() as copies:

        def reader(name: str) -> ReadRows:
            path = copies.enter_context(local_copy(name, allow_private=True))
            return functools.partial(read_records, path, ROW_COLUMNS)

        read = reader(output)
        is_own = reference.is_file() and Path(output).is_file() and reference.samefile(output)
        if is_own:
            read = functools.partial(_model_texts, Path(output))
        right = (
            read_text_folder(reference, read(), options)
            if reference.is_dir()
            else read_reference(reference, options.columns, ignore_prompt=options.ignore_prompt)
        )
        found = evaluate(read, right, options, reader(against) if against else None)
        return dataclasses.replace(found, is_own=is_own)


def _model_texts(output: Path) -> Iterator[OutputRow]:
    """Yield the rows of a corrected OUTPUT with the texts that the model gave.

    Raises:
        JobError: Nothing was corrected.
    """
    first = next(read_records(output), {})
    if TEXT_ORIGINAL not in first:
        raise JobError(
            f"{output} is OUTPUT and reference at once, and has no corrections: put them in with "
            "`vlmbatch correct`, or give another reference"
        )
    for row in read_records(output, (*ROW_COLUMNS, TEXT_ORIGINAL)):
        yield row if row[TEXT_ORIGINAL] is None else {**row, "text": row[TEXT_ORIGINAL]}


def evaluate(
    read: ReadRows, reference: Reference, options: EvalOptions, read_other: ReadRows | None = None
) -> Evaluation:
    """Score the rows of an OUTPUT.

    Args:
        read: Reads the rows; called twice.
        reference: The right answers.
        options: What to measure, and how.
        read_other: Reads another OUTPUT; then only rows that both have are scored.

    Raises:
        JobError: Nothing can be joined, or a metric of the user's choice has no meaning here.
        MissingDependencyError: A metric of the user's choice needs a package that is not installed.
    """
    measures, left_out = choose_measures(reference, options)
    counts, ids = JoinCounts(), match_rows(read(), reference, options)
    other = None
    if read_other is not None:
        other_ids = match_rows(read_other(), reference, options)
        other = index_texts(read_other(), reference, options, other_ids)
    tally = Tally(measures, options, paired=other is not None)
    for pair in join(read(), reference, options, ids, counts, other):
        tally.add(pair)
    missing, names_prompts = Names(), reference.names_prompts
    for (id, prompt), right in reference.entries.items():
        if not right.seen:
            missing.add(id, prompt if names_prompts else None)
    overall, tasks, questions = tally.groups()
    return Evaluation(
        counts=counts,
        ids=ids,
        missing=missing,
        reference=reference,
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
    """Return the measures of the user's choice, or else all that apply.

    Returns:
        The measures by name, and for those that are left out the reason.

    Raises:
        JobError: A metric of the user's choice has no meaning here.
        MissingDependencyError: A metric of the user's choice needs a package that is not installed.
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
                    f"vqa needs {VQA_ANSWERS} or more right answers to every question; this "
                    f"reference has {reference.answers_per_row[0]} to some"
                )
            measures[name] = make()
        except (JobError, MissingDependencyError) as error:
            if required:
                raise
            left_out[name] = str(error)
    return measures, left_out
