"""What counts as equal, and what is said about what is not."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from vlmbatch.compare.agreement import END, Agreement, agreement
from vlmbatch.compare.answers import Answer, Figures, SideAnswers
from vlmbatch.core import TokenLogprob

FIGURES = Figures("torch", "demo", "", "cpu", "float32", 1.0, 2.0, 10**8, None)


def answer(
    text: str | None,
    ids: Sequence[int] = (),
    logprobs: Sequence[float] = (),
    *,
    number: int = 0,
    names: Sequence[str] = (),
    top: Sequence[dict[str, float]] = (),
    error: str | None = None,
) -> Answer:
    names = names or [f"t{each}" for each in ids]
    tops = top or [{}] * len(names)
    tokens = tuple(
        TokenLogprob(name, logprob, tuple(likely.items()))
        for name, logprob, likely in zip(names, logprobs, tops, strict=False)
    )
    return Answer(
        (number, 0), f"{number}.png", "?", text, error, len(ids), None, tuple(ids), tokens
    )


def agree(ours: Sequence[Answer], theirs: Sequence[Answer]) -> Agreement:
    a, b = (
        SideAnswers(name, FIGURES, {each.key: each for each in answers})
        for name, answers in (("a", ours), ("b", theirs))
    )
    return agreement(a, b)


def test_tokens_count_up_to_and_with_the_first_difference() -> None:
    found = agree(
        [answer("a b", [1, 2, 9], number=0), answer("a b c d", [1, 2, 3, 4, 9], number=1)],
        [answer("a b", [1, 2, 9], number=0), answer("a x c", [1, 7, 3, 9], number=1)],
    )
    assert (found.equal_answers, found.answers, found.answer_share) == (1, 2, 0.5)
    assert (found.equal, found.compared, found.not_compared) == (4, 5, 3)
    assert (found.unit, found.token_share) == ("tokens", 0.8)
    (difference,) = found.differences
    assert (difference.equal, difference.token_a, difference.token_b) == (1, "2", "7")
    assert difference.margin_a is difference.margin_b is None


def test_a_margin_is_how_much_likelier_a_side_found_its_own_token() -> None:
    ours = answer("a", [1, 2], [-0.1, -0.7], top=[{}, {"t2": -0.7, "t3": -0.72}])
    theirs = answer("b", [1, 3], [-0.2, -0.5], top=[{}, {"t3": -0.5, "t2": -0.9}])
    found = agree([ours], [theirs])
    (difference,) = found.differences
    assert difference.margin_a == pytest.approx(0.02)
    assert difference.margin_b == pytest.approx(0.4)
    assert difference.is_near_tie
    assert found.change is not None
    assert found.change.tokens == 1
    assert found.change.mean == pytest.approx(-0.1)
    assert found.change.mean_size == found.change.largest == pytest.approx(0.1)


def test_the_clearest_difference_comes_first_and_a_token_beyond_the_likeliest_is_clearest() -> None:
    pairs = [
        (
            answer("a", [1], [-1.0], number=number, top=[top]),
            answer("b", [2], [-1.0], number=number),
        )
        for number, top in enumerate([{"t2": -1.1}, {}, {"t2": -2.0}])
    ]
    found = agree(*zip(*pairs, strict=True))
    assert [each.a.id for each in found.differences] == ["1.png", "2.png", "0.png"]
    assert not any(each.is_near_tie for each in found.differences)


def test_an_answer_that_goes_on_differs_where_the_other_ends() -> None:
    found = agree([answer("a", [1])], [answer("a b", [1, 2])])
    (difference,) = found.differences
    assert (difference.token_a, difference.token_b) == (END, "2")
    assert (found.equal, found.compared) == (1, 2)


def test_an_end_that_one_engine_does_not_count_is_no_difference() -> None:
    found = agree([answer("a", [1, 9])], [answer("a", [1])])
    assert (found.equal, found.compared, found.differences) == (1, 1, ())


def test_tokens_that_differ_without_a_trace_in_the_text_are_a_difference() -> None:
    tops = [{"": -1.0, "x": -2.0}]
    ours = answer("", [7, 8], [-1.0, -1.0], names=["", ""], top=tops * 2)
    theirs = answer("", [7, 9], [-1.0, -1.0], names=["", ""], top=tops * 2)
    found = agree([ours], [theirs])
    assert (found.equal_answers, found.equal, found.compared) == (1, 1, 2)
    (difference,) = found.differences
    assert difference.margin_a is difference.margin_b is None


def test_other_vocabularies_are_compared_by_the_texts_of_tokens() -> None:
    ours = answer("red dog", [1, 2], [-1.0, -1.0], names=["red", " dog"])
    theirs = answer("red dog", [2, 5], [-1.0, -1.0], names=["red", " dog"])
    assert agree([ours], [theirs]).equal == 2


def test_words_are_compared_where_tokens_are_not_known() -> None:
    found = agree([answer("a red dog", [1, 2, 3])], [answer("a blue dog")])
    assert (found.unit, found.equal, found.compared) == ("words", 1, 2)
    assert found.change is None
    assert [(each.token_a, each.token_b) for each in found.differences] == [("red", "blue")]


def test_an_error_of_one_side_is_not_equal_and_one_of_both_is_not_compared() -> None:
    broken = [answer(None, number=number, error="DecodeError: broken") for number in (0, 1)]
    found = agree([broken[0], broken[1]], [broken[0], answer("a", [1], number=1)])
    assert (found.answers, found.equal_answers, found.answer_share) == (1, 0, 0.0)
    assert [each.id for each in found.errors] == ["0.png"]
    assert found.token_share is None


def test_nothing_answered_has_no_share() -> None:
    assert agree([], []).answer_share is None
