"""Compare two sides: each in a process of its own, one after the other."""

from __future__ import annotations

from collections.abc import Callable

from vlmbatch.compare.answers import SideAnswers
from vlmbatch.compare.process import SideProcess
from vlmbatch.compare.sides import Side


def compare(
    a: Side, b: Side, progress: Callable[[], None] = lambda: None
) -> tuple[SideAnswers, SideAnswers]:
    """Ask both sides.

    Args:
        a: The first side.
        b: The other one.
        progress: Called after each answer.

    Raises:
        VlmbatchError: A side cannot answer; the message begins with it.
    """
    with SideProcess(a) as first, SideProcess(b) as second:
        first.wait()
        second.wait()
        return first.ask(progress), second.ask(progress)
