"""The result as a table to read and as JSON."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Sequence
from typing import Any

from vlmbatch.compare.agreement import NEAR_TIE, Agreement, Difference
from vlmbatch.compare.answers import Answer, Figures, SideAnswers
from vlmbatch.wording import number_of, shortened

SHOWN = 5
"""Differences and errors in the table; JSON has all."""
LABEL, COLUMN = 24, 24
TEXT_WIDTH = 90


def lines(a: SideAnswers, b: SideAnswers, found: Agreement, job: dict[str, Any]) -> Iterator[str]:
    """Yield the lines of the table."""
    items = len({place for said in (a, b) for place, _ in said.answers})
    yield (
        f"{number_of(items, 'item')}, {number_of(found.answers + len(found.errors), 'answer')}; "
        f"{job['task']}, at most {job['max_new_tokens']} new tokens"
    )
    rows = [("", "A", "B"), ("", a.name, b.name), *_rows(a, b)]
    width = max(COLUMN, *(len(own) for _, own, _ in rows))
    for label, own, other in rows:
        yield f"{label:<{LABEL}}{own:<{width}}  {other}".rstrip()
    yield ""
    yield from _agreement_lines(found)
    yield from _difference_lines(found.differences)
    yield from _error_lines(found.errors)


def _rows(a: SideAnswers, b: SideAnswers) -> Iterator[tuple[str, str, str]]:
    sides = (a, b)
    for label, values in {
        "engine": [side.figures.engine for side in sides],
        "model": [side.figures.model for side in sides],
        "number format": [side.figures.dtype or "not known" for side in sides],
        "device": [side.figures.device or "not known" for side in sides],
        "loading": [f"{side.figures.load_seconds:.1f} s" for side in sides],
        "answering": [f"{side.figures.seconds:.2f} s" for side in sides],
        "answers a second": [_rate(side, len(_good(side))) for side in sides],
        "new tokens a second": [_rate(side, _new_tokens(side)) for side in sides],
        "peak memory": [_size(side.figures.memory_bytes) for side in sides],
        "peak device memory": [_size(side.figures.device_bytes) for side in sides],
        "mean log-probability": [_number(_mean_logprob(side)) for side in sides],
        "errors": [str(len(side.answers) - len(_good(side))) for side in sides],
    }.items():
        if label != "peak device memory" or any(side.figures.device_bytes for side in sides):
            yield label, values[0], values[1]


def _agreement_lines(found: Agreement) -> Iterator[str]:
    yield f"{'equal answers':<{LABEL}}{_share(found.equal_answers, found.answers)}"
    after = f"; {found.not_compared} after one are not compared" if found.not_compared else ""
    yield (
        f"{'equal ' + found.unit:<{LABEL}}{_share(found.equal, found.compared)}, up to and with "
        f"the first difference of an answer{after}"
    )
    change = found.change
    said = (
        "not known"
        if change is None
        else f"{_number(change.mean)} (B - A), without signs {_number(change.mean_size)}, at most "
        f"{_number(change.largest)}; over {change.tokens} equal tokens"
    )
    yield f"{'log-probability':<{LABEL}}{said}"
    if found.differences:
        ties = sum(each.is_near_tie for each in found.differences)
        yield (
            f"{'near ties':<{LABEL}}{ties} of {number_of(len(found.differences), 'difference')}: A "
            f"found both tokens equally likely, to {NEAR_TIE}"
        )


def _difference_lines(differences: Sequence[Difference]) -> Iterator[str]:
    if differences:
        yield ""
        yield "first differences, the clearest first:"
    for each in differences[:SHOWN]:
        yield f"{each.a.id}: {shortened(each.a.question, TEXT_WIDTH)}"
        margins = "".join(
            f"; {name} by {_number(margin)}"
            for name, margin in (("A", each.margin_a), ("B", each.margin_b))
            if margin is not None
        )
        yield f"  after {each.equal}: A {each.token_a!r}, B {each.token_b!r}{margins}"
        yield f"  A: {shortened(each.a.text or '', TEXT_WIDTH)}"
        yield f"  B: {shortened(each.b.text or '', TEXT_WIDTH)}"
    yield from _more(len(differences))


def _error_lines(errors: Sequence[Answer]) -> Iterator[str]:
    if errors:
        yield ""
        yield "not compared, as neither side answered:"
    for each in errors[:SHOWN]:
        yield f"{each.id}: {each.error}"
    yield from _more(len(errors))


def _more(count: int) -> Iterator[str]:
    if count > SHOWN:
        yield f"… and {count - SHOWN} more: --json has all"


def describe(
    a: SideAnswers, b: SideAnswers, found: Agreement, job: dict[str, Any]
) -> dict[str, Any]:
    """Return everything as plain JSON values."""
    return {
        "a": _side(a),
        "b": _side(b),
        "settings": job,
        "items": len({place for said in (a, b) for place, _ in said.answers}),
        "answers": found.answers,
        "equal_answers": found.equal_answers,
        "answer_share": found.answer_share,
        "unit": found.unit,
        "compared": found.compared,
        "equal": found.equal,
        "token_share": found.token_share,
        "not_compared": found.not_compared,
        "logprob_change": found.change and dataclasses.asdict(found.change),
        "near_tie": NEAR_TIE,
        "near_ties": sum(each.is_near_tie for each in found.differences),
        "differences": [
            {
                "id": each.a.id,
                "question": each.a.question,
                "a": each.a.text,
                "b": each.b.text,
                "equal": each.equal,
                "token_a": each.token_a,
                "token_b": each.token_b,
                "margin_a": each.margin_a,
                "margin_b": each.margin_b,
            }
            for each in found.differences
        ],
        "errors": [
            {"id": each.id, "question": each.question, "side": name, "error": each.error}
            for name, said in (("a", a), ("b", b))
            for each in said.answers.values()
            if each.error is not None
        ],
    }


def _side(said: SideAnswers) -> dict[str, Any]:
    answers, seconds = len(_good(said)), said.figures.seconds
    tokens = _new_tokens(said)
    return {
        "name": said.name,
        **dataclasses.asdict(said.figures),
        "answers": answers,
        "errors": len(said.answers) - answers,
        "new_tokens": tokens,
        "answers_per_second": answers / seconds,
        "new_tokens_per_second": None if tokens is None else tokens / seconds,
        "mean_logprob": _mean_logprob(said),
    }


def _good(said: SideAnswers) -> list[Answer]:
    return [answer for answer in said.answers.values() if answer.error is None]


def _new_tokens(said: SideAnswers) -> int | None:
    counts = [answer.new_tokens for answer in _good(said)]
    return None if None in counts else sum(count or 0 for count in counts)


def _mean_logprob(said: SideAnswers) -> float | None:
    """Mean of the answers' means."""
    known = [each.mean_logprob for each in _good(said) if each.mean_logprob is not None]
    return math.fsum(known) / len(known) if known else None


def _rate(said: SideAnswers, count: int | None) -> str:
    figures: Figures = said.figures
    return "not known" if count is None else f"{count / figures.seconds:.2f}"


def _number(value: float | None) -> str:
    return "not known" if value is None else f"{value:.3g}"


def _size(value: int | None) -> str:
    return "not known" if value is None else f"{value / 1e6:,.0f} MB"


def _share(part: int, whole: int) -> str:
    return f"{part} of {whole} ({100 * part / whole:.1f} %)" if whole else "none to compare"
