"""Equality of answers with a reference's answers to the same questions: equal texts, tokens before
the first difference, change of log-probability.
"""

from __future__ import annotations

import dataclasses
import math
import statistics
from collections.abc import Hashable, Iterable, Sequence
from typing import Any

from vlmbatch.core import Completion
from vlmbatch.engine.first_difference import tokens_before_difference


@dataclasses.dataclass(frozen=True, slots=True)
class AnswerPair:
    """An answer beside the reference's answer to the same question.

    Attributes:
        is_equal: Whether the texts are equal.
        tokens_before: Tokens before the first difference; all of the reference's if there is none.
        tokens: Tokens of the reference's answer. Where an engine tells no tokens, words count.
        logprob_change: Mean log-probability minus the reference's; None where one is unknown.
    """

    is_equal: bool
    tokens_before: int
    tokens: int
    logprob_change: float | None

    @classmethod
    def of(cls, found: Completion, reference: Completion) -> AnswerPair:
        """Compare two answers; one without a text, which has an error, equals none."""
        own, other = units(found, reference)
        logprobs = (found.mean_logprob, reference.mean_logprob)
        change = logprobs[0] - logprobs[1] if None not in logprobs else None  # type: ignore[operator]
        is_equal = found.text is not None and found.text == reference.text
        return cls(is_equal, tokens_before_difference(own, other), len(other), change)


def units(first: Completion, second: Completion) -> tuple[Sequence[Hashable], Sequence[Hashable]]:
    """Return the tokens of two answers: by id, or by text where an engine tells no ids; or their
    words where either engine tells no tokens.
    """
    if first.token_ids and second.token_ids:
        return first.token_ids, second.token_ids
    if first.logprobs and second.logprobs:
        return [row.token for row in first.logprobs], [row.token for row in second.logprobs]
    return (first.text or "").split(), (second.text or "").split()


@dataclasses.dataclass(frozen=True, slots=True)
class Equality:
    """Figures over all pairs.

    Attributes:
        answers: Number of pairs.
        equal: Pairs with equal texts.
        tokens: Tokens of the reference's answers.
        tokens_before: Of these, tokens before the first difference of their answer.
        median_before: Median tokens before the first difference, of the answers that differ; None
            if none does.
        logprob_change: Mean change of the mean log-probability, signed; None if none is known. NaN
            if an engine gave no finite number.
        max_logprob_change: Largest change without its sign.
    """

    answers: int
    equal: int
    tokens: int
    tokens_before: int
    median_before: float | None
    logprob_change: float | None
    max_logprob_change: float | None

    @classmethod
    def of(cls, pairs: Iterable[AnswerPair]) -> Equality:
        """Sum up pairs."""
        pairs = list(pairs)
        changes = [pair.logprob_change for pair in pairs if pair.logprob_change is not None]
        differing = [pair.tokens_before for pair in pairs if not pair.is_equal]
        is_finite = all(map(math.isfinite, changes))
        return cls(
            len(pairs),
            len(pairs) - len(differing),
            sum(pair.tokens for pair in pairs),
            sum(pair.tokens_before for pair in pairs),
            statistics.median(differing) if differing else None,
            statistics.fmean(changes) if changes else None,
            (max(map(abs, changes)) if is_finite else math.nan) if changes else None,
        )

    @property
    def share_equal(self) -> float:
        """Share of equal answers; 1 if there is none to compare."""
        return self.equal / self.answers if self.answers else 1.0

    @property
    def share_of_tokens(self) -> float:
        """Share of the reference's tokens that stand before the first difference."""
        return self.tokens_before / self.tokens if self.tokens else 1.0

    def describe(self) -> dict[str, Any]:
        """Return the figures as JSON values; what is not finite is None."""
        found = {
            **dataclasses.asdict(self),
            "share_equal": self.share_equal,
            "share_of_tokens": self.share_of_tokens,
        }
        return {
            name: None if isinstance(value, float) and not math.isfinite(value) else value
            for name, value in found.items()
        }
