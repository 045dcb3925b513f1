"""Print an evaluation in words, and as JSON."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

from vlmbatch.evaluate.bootstrap import LEVEL
from vlmbatch.evaluate.ids import IdMatch
from vlmbatch.evaluate.join import Names
from vlmbatch.evaluate.options import ERROR_RATES, EvalOptions
from vlmbatch.evaluate.score import Evaluation
from vlmbatch.evaluate.tally import Figure, Group, Score, WorstRow
from vlmbatch.wording import number_of, shortened

NAME_WIDTH, PROMPT_WIDTH, TEXT_WIDTH = 28, 60, 200
NUM_ANSWERS, NUM_STARTS = 3, 3


def describe(found: Evaluation, options: EvalOptions, **files: str | None) -> dict[str, Any]:
    """Return the evaluation as plain JSON values.

    Args:
        found: The evaluation.
        options: Its options.
        files: ``output``, ``reference`` and ``against``, as the user named them.
    """
    counts = found.counts
    compared = {
        "only_in_output": dataclasses.asdict(counts.only_here),
        "only_in_against": dataclasses.asdict(counts.only_there),
        "errors_in_against": counts.other_errors,
    }
    return {
        **files,
        "rows": {
            "output": counts.rows,
            "scored": counts.scored,
            "errors": counts.errors,
            "extra": dataclasses.asdict(counts.extra),
            "reference": len(found.reference.entries),
            "missing": dataclasses.asdict(found.missing),
            "without_answer": found.reference.without_answer,
            "answers_per_row": list(found.reference.answers_per_row),
            "ids_by_path_end": len(found.ids.by_path_end),
            **(compared if files.get("against") else {}),
        },
        "coverage": found.coverage,
        "bootstrap": {"resamples": options.resamples, "seed": options.seed, "level": LEVEL},
        "left_out": dict(found.left_out),
        "all": _group(found.overall),
        "tasks": {task: _group(group) for task, group in found.tasks.items()},
        "questions": [
            {"task": task, "prompt": prompt, **_group(group)}
            for (task, prompt), group in found.questions.items()
        ],
        "more_questions": found.more_questions,
        "worst_by": found.worst_by,
        "worst": [_worst(row) for row in found.worst],
    }


def lines(
    found: Evaluation, *, output: str | None, reference: str | None, against: str | None
) -> Iterator[str]:
    """Yield the lines of the evaluation for people.

    Args:
        found: The evaluation.
        output: OUTPUT, as the user named it.
        reference: The reference.
        against: The other OUTPUT, if there is one.
    """
    counts = found.counts
    both = f"{output} and {against}" if against else output
    yield f"{both} against {reference}: {number_of(counts.scored, 'row')} scored"
    yield from (f"  {note}" for note in _notes(found, against))
    if len(found.tasks) > 1:
        yield from _table("all tasks", found.overall)
    for task, group in found.tasks.items():
        yield from _table(task, group)
        asked = {prompt: each for (name, prompt), each in found.questions.items() if name == task}
        if len(asked) > 1 or found.more_questions:
            for prompt, each in asked.items():
                yield from _table(f"{task}: {shortened(prompt, PROMPT_WIDTH)}", each)
    if found.more_questions:
        all_questions = len(found.questions) + found.more_questions
        more = number_of(found.more_questions, "more question")
        yield f"{more}: --max-questions {all_questions} scores each"
    if found.worst:
        yield ""
        yield f"worst by {found.worst_by}" + (f" compared with {against}" if against else "")
        for row in found.worst:
            yield from _worst_lines(row)


def _notes(found: Evaluation, against: str | None) -> Iterator[str]:
    counts, missing, extra = found.counts, found.missing, found.counts.extra
    here, there = counts.only_here, counts.only_there
    if found.is_own:
        yield "what the model said, against the corrected texts"
    yield from _id_notes(found.ids)
    wrong, wrong_there = (
        number_of(number, "error row") for number in (counts.errors, counts.other_errors)
    )
    entries, rows = (
        number_of(len(found.reference.entries), "right answer"),
        number_of(counts.rows, "row"),
    )
    without = number_of(found.reference.without_answer, "row")
    notes = (
        (counts.errors, f"{wrong} among these, each a wrong answer"),
        (counts.other_errors, f"{wrong_there} among these in {against}, each a wrong answer"),
        (missing.count, f"{missing.count} of {entries} not in OUTPUT: {_some(missing)}"),
        (extra.count, f"{extra.count} of {rows} of OUTPUT not in the reference: {_some(extra)}"),
        (here.count, f"{number_of(here.count, 'row')} not in {against}: {_some(here)}"),
        (
            there.count,
            f"{number_of(there.count, 'row')} of {against} not in OUTPUT: {_some(there)}",
        ),
        (found.reference.without_answer, f"{without} of the reference without an answer"),
    )
    yield from (note for count, note in notes if count)
    for name, reason in found.left_out.items():
        yield f"{name} left out: {reason}"


def _id_notes(ids: IdMatch) -> Iterator[str]:
    """Say that ids were joined by the end of the path, and how the two sides begin."""
    if not ids.by_path_end:
        return
    number = number_of(len(ids.by_path_end), "id")
    yield f"no id is the same on both sides: joined {number} by the end of the path"
    for removed, added, count in ids.differences()[:NUM_STARTS]:
        side, start = ("the reference", added) if added else ("OUTPUT", removed)
        yield f"  {number_of(count, 'id')} of {side} begin{'s' * (count == 1)} with {start}"


def _table(title: str, group: Group) -> Iterator[str]:
    yield ""
    paired = any(score.there for score in group.scores.values())
    title = f"{title} ({number_of(group.rows, 'row')})"
    if len(title) > NAME_WIDTH:
        yield title
        title = ""
    yield f"{title:<{NAME_WIDTH}}" + (
        f"{'OUTPUT':>10}{'other':>10}{'difference':>12}   95 % interval"
        if paired
        else f"{'score':>10}   95 % interval"
    )
    for name, score in group.scores.items():
        digits = 2 if name == "chrf" else 4
        note = "  (less is better)" if name in ERROR_RATES else ""
        yield f"  {name:<{NAME_WIDTH - 2}}{_score(score, digits)}{note}".rstrip()


def _score(score: Score, digits: int) -> str:
    if score.there is None or score.difference is None:
        return f"{_value(score.here, digits):>10}   {_interval(score.here, digits):<18}"
    difference = score.difference
    sign = "+" if difference.value is not None else ""
    values = (
        f"{_value(score.here, digits):>10}{_value(score.there, digits):>10}"
        f"{_value(difference, digits, sign):>12}"
    )
    sure = difference.interval is not None and (
        difference.interval[0] > 0 or difference.interval[1] < 0
    )
    return f"{values}   {_interval(difference, digits, '+') + (' *' if sure else ''):<20}"


def _value(figure: Figure, digits: int, sign: str = "") -> str:
    return "-" if figure.value is None else f"{figure.value:{sign}.{digits}f}"


def _interval(figure: Figure, digits: int, sign: str = "") -> str:
    return (
        "-"
        if figure.interval is None
        else f"{figure.interval[0]:{sign}.{digits}f} to {figure.interval[1]:{sign}.{digits}f}"
    )


def _worst_lines(row: WorstRow) -> Iterator[str]:
    pair = row.pair
    other = "" if row.other is None else f" ({row.other:.4f})"
    yield f"  {row.score:.4f}{other}  {pair.id}  {shortened(pair.prompt, PROMPT_WIDTH)}"
    yield f"    answer    {_said(pair.text)}"
    if row.other is not None:
        yield f"    other     {_said(pair.other)}"
    answers = list(dict.fromkeys(pair.answers))
    shown = " | ".join(shortened(answer, TEXT_WIDTH) for answer in answers[:NUM_ANSWERS])
    more = f" (and {len(answers) - NUM_ANSWERS} more)" if len(answers) > NUM_ANSWERS else ""
    yield f"    expected  {shown}{more}"


def _worst(row: WorstRow) -> dict[str, Any]:
    pair = row.pair
    compared = {} if row.other is None else {"against_score": row.other, "against_text": pair.other}
    return {
        "id": pair.id,
        "task": pair.task,
        "prompt": pair.prompt,
        "score": row.score,
        "text": pair.text,
        "answers": pair.answers,
        **compared,
    }


def _group(group: Group) -> dict[str, Any]:
    return {
        "rows": group.rows,
        "errors": group.errors,
        "scores": {name: _json(score) for name, score in group.scores.items()},
    }


def _json(score: Score) -> dict[str, Any]:
    others = {"against": score.there, "difference": score.difference}
    return dataclasses.asdict(score.here) | {
        name: dataclasses.asdict(figure) for name, figure in others.items() if figure is not None
    }


def _some(names: Names) -> str:
    return ", ".join(shortened(name, PROMPT_WIDTH) for name in names.first) + (
        " …" if names.count > len(names.first) else ""
    )


def _said(text: str | None) -> str:
    return "(error)" if text is None else shortened(text, TEXT_WIDTH) or "(nothing)"
