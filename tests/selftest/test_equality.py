"""Equality of answers: what is counted, by hand."""

from __future__ import annotations

import math

import pytest

from vlmbatch.core import Completion, Conversation, Question, Request
from vlmbatch.selftest.equality import AnswerPair, Equality

REQUEST = Request(Conversation(), [Question("?")], None)


def said(text: str | None, ids: tuple[int, ...] = (), logprob: float | None = None) -> Completion:
    return Completion(REQUEST, 0, text=text, token_ids=ids, mean_logprob=logprob)


def test_tokens_are_compared_where_both_tell_them_and_words_elsewhere() -> None:
    by_ids = AnswerPair.of(said("a b", (1, 2, 9), -0.5), said("a c", (1, 3, 9), -0.25))
    assert by_ids == AnswerPair(False, 1, 3, -0.25)
    assert AnswerPair.of(said("a red dog"), said("a red cat", (1, 2, 3))) == AnswerPair(
        False, 2, 3, None
    )


def test_an_error_equals_nothing() -> None:
    assert not AnswerPair.of(said(None), said(None)).is_equal
    assert AnswerPair.of(said(""), said("")).is_equal


def test_figures_over_all_pairs() -> None:
    found = Equality.of(
        [
            AnswerPair(True, 4, 4, 0.1),
            AnswerPair(False, 1, 4, -0.3),
            AnswerPair(False, 3, 8, None),
            AnswerPair(True, 4, 4, 0.0),
        ]
    )
    assert (found.answers, found.equal, found.share_equal) == (4, 2, 0.5)
    assert (found.tokens, found.tokens_before, found.share_of_tokens) == (20, 12, 0.6)
    assert found.median_before == 2
    assert found.logprob_change == pytest.approx(-0.2 / 3)
    assert found.max_logprob_change == 0.3


def test_a_number_that_is_none_stays_visible() -> None:
    found = Equality.of([AnswerPair(True, 4, 4, 0.1), AnswerPair(True, 4, 4, math.nan)])
    assert found.max_logprob_change is not None
    assert math.isnan(found.max_logprob_change)
    assert found.describe()["max_logprob_change"] is None
    assert Equality.of([]).describe()["share_equal"] == 1.0
