"""First difference of two answers: what a model said up to it can be compared, what follows cannot,
as other words stand before it.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence


def tokens_before_difference(first: Sequence[Hashable], second: Sequence[Hashable]) -> int:
    """Count the tokens that two sequences begin with in common."""
    count = 0
    for own, other in zip(first, second, strict=False):
        if own != other:
            break
        count += 1
    return count
