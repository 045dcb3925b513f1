"""An evaluation in words, and as JSON."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from vlmbatch.evaluate.bootstrap import LEVEL
from vlmbatch.evaluate.join import Names
from vlmbatch.evaluate.options import ERROR_RATES, EvalOptions
from vlmbatch.evaluate.score import Evaluation, Figure, Group, Score, Worst

NAME_WIDTH, PROMPT_WIDTH, TEXT_WIDTH, MOST_ANSWERS = 28, 60, 200, 3


def describe(found: Evaluation, options: EvalOptions, **files: str | None) -> dict[str, Any]:
    """The evaluation as plain JSON values.

    Args:
        found: The evaluation.
        options: What it was made with.
        files: ``output``, ``reference`` and ``against``, as the user named them.
    """
    counts = found.counts
    return {
        **files,
        "rows": {
            "output": counts.rows,
            "scored": counts.scored,
            "errors": counts.errors,
            "extra": _names(counts.extra),
            "reference": found.entries,
            "missing": _names(found.missing),
            "without_answer": found.without_answer,
            "answers_per_row": list(found.answers),
            **(
                {
                    "only_in_output": _names(counts.only_here),
                    "only_in_against": _names(counts.only_there),
                }
                if files.get("against")
                else {}
            ),
            **({"errors_in_against": counts.other_errors} if files.get("against") else {}),
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
    found: Evaluation, options: EvalOptions, *, output: str, reference: str, against: str | None
) -> Iterator[str]:
    """The evaluation as a person reads it."""
    counts = found.counts
    yield f"{output}{f' and {against}' if against else ''} against {reference}: {_count(counts.scored, 'row')} scored"
    yield from (f"  {note}" for note in _notes(found, options, against))
    if len(found.tasks) > 1:
        yield from _table("all tasks", found.overall)
    for task, group in found.tasks.items():
        yield from _table(task, group)
        asked = {prompt: each for (name, prompt), each in found.questions.items() if name == task}
        if len(asked) > 1 or found.more_questions:
            for prompt, each in asked.items():
                yield from _table(f"{task}: {_short(prompt, PROMPT_WIDTH)}", each)
    if found.more_questions:
        yield f"{_count(found.more_questions, 'more question')}: --max-questions {len(found.questions) + found.more_questions} scores each"
    if found.worst:
        yield ""
        yield f"worst by {found.worst_by}" + (f" compared with {against}" if against else "")
        for row in found.worst:
            yield from _worst_lines(row)


def _notes(found: Evaluation, options: EvalOptions, against: str | None) -> Iterator[str]:
    counts = found.counts
    if counts.errors:
        yield f"{_count(counts.errors, 'error row')} among these, each a wrong answer"
    if counts.other_errors:
        yield f"{_count(counts.other_errors, 'error row')} among these in {against}, each a wrong answer"
    if found.missing.count:
        yield f"{found.missing.count} of {_count(found.entries, 'right answer')} not in OUTPUT: {_some(found.missing)}"
    if counts.extra.count:
        yield f"{counts.extra.count} of {_count(counts.rows, 'row')} of OUTPUT not in the reference: {_some(counts.extra)}"
    if counts.only_here.count:
        yield f"{_count(counts.only_here.count, 'row')} not in {against}: {_some(counts.only_here)}"
    if counts.only_there.count:
        yield f"{_count(counts.only_there.count, 'row')} of {against} not in OUTPUT: {_some(counts.only_there)}"
    if found.without_answer:
        yield f"{_count(found.without_answer, 'row')} of the reference without an answer"
    for name, reason in found.left_out.items():
        yield f"{name} left out: {reason}"


def _table(title: str, group: Group) -> Iterator[str]:
    yield ""
    paired = any(score.there for score in group.scores.values())
    title = f"{title} ({_count(group.rows, 'row')})"
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
    values = f"{_value(score.here, digits):>10}{_value(score.there, digits):>10}{_value(difference, digits, sign):>12}"
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


def _worst_lines(row: Worst) -> Iterator[str]:
    pair = row.pair
    yield f"  {row.score:.4f}{'' if row.other is None else f' ({row.other:.4f})'}  {pair.id}  {_short(pair.prompt, PROMPT_WIDTH)}"
    yield f"    answer    {_said(pair.text)}"
    if row.other is not None:
        yield f"    other     {_said(pair.other)}"
    answers = list(dict.fromkeys(pair.answers))
    more = f" (and {len(answers) - MOST_ANSWERS} more)" if len(answers) > MOST_ANSWERS else ""
    yield f"    expected  {' | '.join(_short(answer, TEXT_WIDTH) for answer in answers[:MOST_ANSWERS])}{more}"


def _worst(row: Worst) -> dict[str, Any]:
    pair = row.pair
    found = {
        "id": pair.id,
        "task": pair.task,
        "prompt": pair.prompt,
        "score": row.score,
        "text": pair.text,
        "answers": pair.answers,
    }
    return (
        found
        if row.other is None
        else {**found, "against_score": row.other, "against_text": pair.other}
    )


def _group(group: Group) -> dict[str, Any]:
    return {
        "rows": group.rows,
        "errors": group.errors,
        "scores": {name: _json(score) for name, score in group.scores.items()},
    }


def _json(score: Score) -> dict[str, Any]:
    parts = {"against": score.there, "difference": score.difference}
    return {
        **_figure(score.here),
        **{name: _figure(figure) for name, figure in parts.items() if figure is not None},
    }


def _figure(figure: Figure) -> dict[str, Any]:
    return {
        "value": figure.value,
        "interval": None if figure.interval is None else list(figure.interval),
    }


def _names(names: Names) -> dict[str, Any]:
    return {"count": names.count, "first": names.first}


def _some(names: Names) -> str:
    return ", ".join(_short(name, PROMPT_WIDTH) for name in names.first) + (
        " …" if names.count > len(names.first) else ""
    )


def _said(text: str | None) -> str:
    return "(error)" if text is None else _short(text, TEXT_WIDTH) or "(nothing)"


def _short(text: str, width: int) -> str:
    text = " ".join(text.split())
    return text if len(text) <= width else text[: width - 1] + "…"


def _count(number: int, name: str) -> str:
    return f"{number} {name}{'' if number == 1 else 's'}"
