"""Agreement of the answers of two sides: whole answers, tokens up to the first difference, and
log-probabilities.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Literal

from vlmbatch.compare.answers import Answer, SideAnswers
from vlmbatch.core import TokenLogprob
from vlmbatch.engine.first_difference import tokens_before_difference

Unit = Literal["tokens", "words"]
Pair = tuple[Answer, Answer]
NEAR_TIE = 0.05
"""Difference of two log-probabilities up to which the tokens count as nearly equally likely."""
END = "(end)"


@dataclasses.dataclass(frozen=True)
class Difference:
    """The first difference of two answers.

    Attributes:
        a, b: The answers.
        equal: Number of tokens (or words) before it.
        token_a, token_b: The tokens (or words) that differ; ``(end)`` where an answer has ended.
        margin_a: Log-probability of A's own token minus that of B's token, both as A found them;
            None where that is not known, as B's is not among A's most likely ones.
        margin_b: The same for B.
    """

    a: Answer
    b: Answer
    equal: int
    token_a: str
    token_b: str
    margin_a: float | None
    margin_b: float | None

    @property
    def is_near_tie(self) -> bool:
        """Whether A found both tokens nearly equally likely."""
        return self.margin_a is not None and self.margin_a <= NEAR_TIE


@dataclasses.dataclass(frozen=True)
class Change:
    """Change of the log-probabilities of equal tokens, B minus A.

    Attributes:
        mean: Mean; above 0 if B is surer.
        mean_size: Mean without the signs.
        largest: The largest without its sign.
        tokens: Number of tokens.
    """

    mean: float
    mean_size: float
    largest: float
    tokens: int


@dataclasses.dataclass(frozen=True)
class Agreement:
    """The agreement of two sides.

    Attributes:
        answers: Questions that both sides were asked and at least one answered.
        equal_answers: Those with the same text.
        unit: What is counted up to the first difference: tokens, or words where tokens are not
            known.
        compared: Tokens of both answers that stand at the same place, up to and with the first
            difference.
        equal: The equal ones of these.
        not_compared: Tokens of A after a first difference: what follows has other words before it.
        change: Change of log-probabilities; None where they are not known.
        differences: The first differences, the least near to a tie first.
        errors: Answers that are an error on both sides.
    """

    answers: int
    equal_answers: int
    unit: Unit
    compared: int
    equal: int
    not_compared: int
    change: Change | None
    differences: tuple[Difference, ...]
    errors: tuple[Answer, ...]

    @property
    def answer_share(self) -> float | None:
        """Share of equal answers; None if there are none."""
        return self.equal_answers / self.answers if self.answers else None

    @property
    def token_share(self) -> float | None:
        """Share of equal tokens; None if there are none."""
        return self.equal / self.compared if self.compared else None


def agreement(a: SideAnswers, b: SideAnswers) -> Agreement:
    """Compare two sides. An answer that only one side has is not equal."""
    keys = sorted({*a.answers, *b.answers})
    pairs = [(_of(a, key), _of(b, key)) for key in keys]
    judged = [pair for pair in pairs if pair[0].error is None or pair[1].error is None]
    whole = [pair for pair in judged if pair[0].error is None and pair[1].error is None]
    spell = _speller(whole)
    differences: list[Difference] = []
    changes: list[float] = []
    compared = equal = not_compared = 0
    for one, other in whole:
        ours, theirs = spell(one), spell(other)
        same = tokens_before_difference(ours, theirs)
        equal += same
        # An engine may leave out the token that ends an answer: the shorter one is then all equal.
        if one.text == other.text and same == min(len(ours), len(theirs)):
            compared += same
        else:
            compared += same + 1
            not_compared += max(0, len(ours) - same - 1)
            differences.append(_difference(one, other, same, ours, theirs))
        changes += _changes(one, other, same)
    differences.sort(key=lambda each: _rank(each.margin_a), reverse=True)
    return Agreement(
        len(judged),
        sum(one.text == other.text for one, other in whole),
        "words" if spell is _words else "tokens",
        compared,
        equal,
        not_compared,
        _summary(changes),
        tuple(differences),
        tuple(one for one, other in pairs if one.error is not None and other.error is not None),
    )


def _of(said: SideAnswers, key: tuple[tuple[int, int], str]) -> Answer:
    place, question = key
    return said.answers.get(key) or Answer(place, "", question, error="not asked")


def _speller(pairs: Sequence[Pair]) -> Callable[[Answer], Sequence[Any]]:
    """Return what turns an answer into the pieces to compare: ids of tokens, texts of tokens where
    the vocabularies are not the same, words where tokens are not known.
    """
    answers = [answer for pair in pairs for answer in pair]
    if all(answer.ids or not answer.text for answer in answers) and _is_one_vocabulary(answers):
        return _ids
    if all(answer.tokens or not answer.text for answer in answers):
        return _texts
    return _words


def _is_one_vocabulary(answers: Sequence[Answer]) -> bool:
    """Whether an id stands for the same text in all answers, as far as they tell."""
    texts: dict[int, str] = {}
    return all(
        texts.setdefault(number, token.token) == token.token
        for answer in answers
        for number, token in zip(answer.ids, answer.tokens, strict=False)
    )


def _ids(answer: Answer) -> Sequence[Any]:
    return answer.ids


def _texts(answer: Answer) -> Sequence[Any]:
    return [token.token for token in answer.tokens]


def _words(answer: Answer) -> Sequence[Any]:
    return (answer.text or "").split()


def _difference(
    a: Answer, b: Answer, place: int, ours: Sequence[Any], theirs: Sequence[Any]
) -> Difference:
    own, other = (each.tokens[place] if place < len(each.tokens) else None for each in (a, b))
    return Difference(
        a,
        b,
        place,
        _name(own, ours, place),
        _name(other, theirs, place),
        _margin(own, other),
        _margin(other, own),
    )


def _name(token: TokenLogprob | None, pieces: Sequence[Any], place: int) -> str:
    if token is not None:
        return token.token
    return str(pieces[place]) if place < len(pieces) else END


def _margin(own: TokenLogprob | None, other: TokenLogprob | None) -> float | None:
    """Return the log-probability of a side's own token minus that of the other side's token."""
    if own is None or other is None:
        return None
    found = [logprob for text, logprob in own.top if text == other.token]
    # Several tokens may have one text, such as parts of characters: which one it is, is not known.
    is_known = len(found) == 1 and own.token != other.token
    return own.logprob - found[0] if is_known else None


def _changes(a: Answer, b: Answer, equal: int) -> Iterator[float]:
    for one, other in zip(a.tokens[:equal], b.tokens[:equal], strict=False):
        yield other.logprob - one.logprob


def _summary(changes: Sequence[float]) -> Change | None:
    if not changes:
        return None
    sizes = [abs(change) for change in changes]
    count = len(changes)
    return Change(math.fsum(changes) / count, math.fsum(sizes) / count, max(sizes), count)


def _rank(margin: float | None) -> float:
    return math.inf if margin is None else margin
