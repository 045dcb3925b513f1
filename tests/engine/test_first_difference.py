"""The first difference of two answers."""

from __future__ import annotations

from vlmbatch.engine.first_difference import tokens_before_difference


def test_tokens_are_counted_up_to_the_first_difference() -> None:
    assert tokens_before_difference([1, 2, 3], [1, 2, 4]) == 2
    assert tokens_before_difference([1, 2], [1, 2, 4]) == 2
    assert tokens_before_difference([], [1]) == 0
