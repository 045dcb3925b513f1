"""Packets that are left out are never needed: random streams with reordered frames, open groups and
irregular times.
"""

from __future__ import annotations

import dataclasses
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vlmbatch.read.video.skipping import (
    MAX_HELD_BYTES,
    MarkedPacket,
    Sieve,
    Unsure,
    leave_out,
    mark,
)


@dataclasses.dataclass(frozen=True)
class Packet:
    """A packet that is only its number in decoding order."""

    number: int
    size: int = 1000


def stream(seed: int, groups: int, cut_leading: bool) -> list[MarkedPacket]:
    """Packets in decoding order: key frames, each with frames shown before it (unless cut off at
    the start), then groups of P and its B-frames.
    """
    rng = random.Random(seed)
    steps: list[MarkedPacket] = []
    clock = 0

    def later() -> int:
        nonlocal clock
        clock += rng.randint(1, 400)
        return clock

    def add(pts: int, is_key: bool = False) -> None:
        steps.append(MarkedPacket(Packet(len(steps)), pts, is_key, is_shown=True))

    for group in range(groups):
        leading = [later() for _ in range(rng.choice([0, 0, 2]))] if group or cut_leading else []
        add(later(), is_key=True)
        for pts in leading:
            add(pts)
        for _ in range(rng.randint(0, 6)):
            between = [later() for _ in range(rng.randint(0, 3))]
            add(later())
            for pts in rng.sample(between, len(between)):
                add(pts)
    return steps


def decode(steps: list[MarkedPacket], fed: list[MarkedPacket]) -> set[int]:
    """Times of the frames that come out whole: those for which all was decoded since a key frame
    that is not shown after them.
    """
    whole: set[int] = set()
    since: int | None = None
    previous: int | None = None
    for step in fed:
        if step.fresh or since is None:
            assert step.is_key, "decoding starts at a key frame"
            since = step.packet.number
        else:
            assert step.packet.number == previous + 1, "nothing is missing in between"
        previous = step.packet.number
        keys = [
            other
            for other in steps[since : step.packet.number + 1]
            if other.is_key and other.pts <= step.pts
        ]
        if keys:
            whole.add(step.pts)
    return whole


@given(
    seed=st.integers(0, 10_000),
    groups=st.integers(1, 6),
    share=st.sampled_from([0.02, 0.1, 0.5, 1.0]),
    from_start=st.booleans(),
)
def test_what_is_wanted_comes_out_whole(
    seed: int, groups: int, share: float, from_start: bool
) -> None:
    steps = stream(seed, groups, cut_leading=not from_start)
    shown = sorted(step.pts for step in steps)
    rng = random.Random(seed)
    asked = {pts for pts in shown if rng.random() < share and (from_start or pts >= steps[0].pts)}
    seen: list[int] = []

    def wanted(step: MarkedPacket, next_pts: int | None, is_first: bool) -> bool:
        seen.append(step.pts)
        assert next_pts == next((pts for pts in shown if pts > step.pts), None)
        assert is_first == (from_start and step.pts <= steps[0].pts)
        return step.pts in asked

    fed = list(leave_out(mark(steps, wanted, from_start=from_start)))
    assert seen == shown
    whole = decode(steps, fed)
    assert asked <= whole
    assert {step.pts for step in fed if step.wanted} == asked
    assert len(fed) <= len(steps)


def test_only_what_leads_to_a_wanted_frame_is_decoded() -> None:
    steps = [
        MarkedPacket(Packet(number), number, number % 10 == 0, is_shown=True)
        for number in range(100)
    ]
    fed = list(
        leave_out(
            mark(
                steps, lambda step, next_pts, is_first: step.pts in (3, 42, 45, 80), from_start=True
            )
        )
    )
    assert [step.pts for step in fed] == [0, 1, 2, 3, 40, 41, 42, 43, 44, 45, 80]
    assert [step.pts for step in fed if step.fresh] == [40, 80]


def test_packets_are_not_held_without_end() -> None:
    steps = [
        MarkedPacket(Packet(number, MAX_HELD_BYTES // 10), number, number == 0, is_shown=True)
        for number in range(40)
    ]
    fed = list(leave_out(mark(steps, lambda step, next_pts, is_first: False, from_start=True)))
    assert len(fed) == 33


@pytest.mark.parametrize("times", [[0, 5, 5], [0, *range(100, 140), 50]])
def test_times_that_repeat_or_run_backwards_are_not_trusted(times: list[int]) -> None:
    steps = [
        MarkedPacket(Packet(number), pts, number == 0, is_shown=True)
        for number, pts in enumerate(times)
    ]
    with pytest.raises(Unsure):
        list(mark(steps, lambda step, next_pts, is_first: True, from_start=True))


def test_a_sieve_keeps_what_is_wanted_and_misses_what_is_missing() -> None:
    def sieve(*steps: MarkedPacket) -> Sieve:
        made = Sieve()
        for step in steps:
            made.expect(step)
        return made

    key = MarkedPacket(Packet(0), 0, is_key=True, is_shown=True, fresh=True)
    other, last = (
        MarkedPacket(Packet(number), number * 10, is_key=False, is_shown=True, wanted=number == 2)
        for number in (1, 2)
    )
    good = sieve(key, other, last)
    assert [good.keeps(pts, is_key=pts == 0, is_corrupt=False) for pts in (0, 10, 20)] == [
        False,
        False,
        True,
    ]
    good.end()
    with pytest.raises(Unsure, match="did not come out"):
        sieve(key, last).keeps(20, is_key=False, is_corrupt=False)
    with pytest.raises(Unsure, match="did not come out"):
        sieve(key, last).end()
    with pytest.raises(Unsure, match="cannot start"):
        sieve(key, last).keeps(0, is_key=False, is_corrupt=False)
    with pytest.raises(Unsure, match="cannot start"):
        sieve(last).keeps(20, is_key=False, is_corrupt=True)
    with pytest.raises(Unsure, match="no time"):
        sieve(key).keeps(None, is_key=True, is_corrupt=False)
