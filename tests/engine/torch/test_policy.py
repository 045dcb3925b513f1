"""The scheduler's policy on a scripted clock: neither encoding nor decoding starves, and nothing is
encoded that has no place.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from tests.engine.torch.test_parity import open_tiny
from vlmbatch.core import Conversation, Question, Request
from vlmbatch.engine.answer_text import AnswerText
from vlmbatch.engine.torch.budget import SHORT_TOKENS, Caps, MemoryBudget
from vlmbatch.engine.torch.pace import SHARE, Pace, Pending
from vlmbatch.engine.torch.scheduler import LiveSequence, Scheduler, Work
from vlmbatch.engine.torch.shape import ModelShape
from vlmbatch.prepare import Payload

VISION_SECONDS_PER_TILE, PREFILL_SECONDS, DECODE_SECONDS = 1.0, 0.2, 0.05


@dataclasses.dataclass
class Played:
    """What a scripted run took."""

    first_answer: float = 0.0

    rounds: int = 0
    seconds: float = 0.0
    longest_pause: float = 0.0
    most_unplaced: int = 0
    most_live: int = 0
    finished: int = 0
    live_seconds: float = 0.0


@pytest.fixture(scope="module")
def shape(tiny: Path) -> ModelShape:
    return open_tiny(tiny)[0].network.shape


def sequence(work: Work, number: int, max_tokens: int) -> LiveSequence:
    text = AnswerText(Question("?"), lambda tokens: "")
    return LiveSequence(work, number, None, text, max_tokens, tokens=[0])


def play(
    shape: ModelShape,
    requests: list[Request],
    answer_tokens: list[int],
    places: int,
    tiles: int,
    short_places: int | None = None,
    pace: Pace | None = None,
    step_seconds: Callable[[int], float] = lambda rows: DECODE_SECONDS,
) -> Played:
    """Drives a scheduler as the engine does, with phases that take scripted seconds."""
    caps = Caps(
        sequences=places,
        patches=tiles * shape.vision.patches,
        prefill_tokens=10**6,
        short_sequences=short_places or places,
    )
    scheduler = Scheduler(MemoryBudget(shape, 4, 10**12, caps), None)
    source, lengths, played = iter(requests), iter(answer_tokens), Played()
    last_token: dict[int, float] = {}
    more = True
    while more or not scheduler.is_idle:
        assert played.rounds < 10_000  # or it would go on for ever
        played.rounds += 1
        while more and scheduler.wants_more():
            request = next(source, None)
            more = request is not None
            if request is not None:
                scheduler.add(request)
        runs = scheduler.next_tiles()
        waits = bool(runs and pace and pace.wants_step(scheduler.pending_answers()))
        encoded = 0 if waits else sum(run.end - run.begin for run in runs)
        for run in () if waits else runs:
            run.work.encoded = run.end
        played.seconds += VISION_SECONDS_PER_TILE * encoded
        if pace and encoded:
            pace.encoded(encoded, VISION_SECONDS_PER_TILE * encoded)
        played.most_unplaced = max(
            played.most_unplaced,
            len(scheduler.live) + sum(len(w.pending) for w in scheduler.waiting if w.is_encoded),
        )
        if started := scheduler.next_questions():
            played.seconds += PREFILL_SECONDS
            live = [sequence(work, number, next(lengths)) for work, number in started]
            scheduler.start(live)
            last_token |= {id(alive): played.seconds for alive in live}
        if scheduler.live:
            seconds = step_seconds(len(scheduler.live))
            played.seconds += seconds
            played.live_seconds += seconds
            if pace:
                pace.decoded(seconds, was_extra=waits)
        played.most_live = max(played.most_live, len(scheduler.live))
        for alive in list(scheduler.live):
            pause = played.seconds - last_token[id(alive)]
            played.longest_pause = max(played.longest_pause, pause)
            last_token[id(alive)] = played.seconds
            alive.tokens.append(0)
            if len(alive.tokens) >= alive.max_tokens:
                scheduler.live.remove(alive)
                played.finished += 1
                played.first_answer = played.first_answer or played.seconds
                if pace:
                    pace.answered()
    return played


def pictures(count: int, tiles: int, questions: int = 1, prefix_tokens: int = 10) -> list[Request]:
    payload = Payload(
        np.zeros((tiles, 1), np.uint8), [0] * prefix_tokens, [[1]] * questions, [0] * questions
    )
    asked = [Question("?")] * questions
    return [Request(Conversation(), asked, payload) for _ in range(count)]


def test_decoding_goes_on_while_pictures_wait(shape: ModelShape) -> None:
    played = play(shape, pictures(100, tiles=13), [48] * 100, places=32, tiles=4)
    assert played.finished == 100
    # Between two tokens of an answer lies at most one encoder call, one prefill and the decode step
    # itself.
    assert (
        played.longest_pause
        <= 4 * VISION_SECONDS_PER_TILE + PREFILL_SECONDS + DECODE_SECONDS + 1e-9
    )


def test_encoding_goes_on_while_answers_are_decoded(shape: ModelShape) -> None:
    count, tiles, tokens = 100, 13, 48
    played = play(shape, pictures(count, tiles), [tokens] * count, places=32, tiles=4)
    vision = count * tiles * VISION_SECONDS_PER_TILE
    # The encoder is the bottleneck here: all that the answers add is their prefill and one decode
    # step an encoder call, and the last answers' tail.
    assert (
        played.seconds
        <= vision * (1 + DECODE_SECONDS / 4)
        + count * PREFILL_SECONDS
        + tokens * DECODE_SECONDS
        + 1e-9
    )
    assert played.most_live >= 10  # answers are decoded together, not one by one


def test_nothing_is_encoded_that_has_no_place(shape: ModelShape) -> None:
    played = play(shape, pictures(60, tiles=1, questions=3), [100] * 180, places=6, tiles=4)
    assert played.finished == 180
    assert played.most_live == 6
    # Vision runs ahead by one encoder call at most: its last picture may bring more questions than
    # there are places.
    assert played.most_unplaced <= 6 + 3 - 1


def test_text_alone_behind_a_picture_does_not_keep_it_from_being_encoded(
    shape: ModelShape,
) -> None:
    words = pictures(20, tiles=0)
    mixed = [*pictures(1, tiles=3), *words, *pictures(1, tiles=3), *words]
    for places in (1, 4):
        assert play(shape, mixed, [5] * len(mixed), places, tiles=4).finished == len(mixed)


def test_one_long_answer_does_not_hold_short_ones(shape: ModelShape) -> None:
    lengths = [400] + [8] * 63
    played = play(shape, pictures(64, tiles=1), lengths, places=4, tiles=4)
    static = sum(max(lengths[begin : begin + 4]) for begin in range(0, 64, 4)) * DECODE_SECONDS
    assert played.finished == 64
    assert played.live_seconds < 0.85 * static


def test_more_are_alive_while_all_prompts_are_short(shape: ModelShape) -> None:
    long = pictures(1, tiles=1, prefix_tokens=SHORT_TOKENS)
    assert (
        play(shape, pictures(40, tiles=1), [50] * 40, places=4, tiles=4, short_places=8).most_live
        == 8
    )
    assert play(shape, long * 40, [50] * 40, places=4, tiles=4, short_places=8).most_live == 4
    assert (
        play(
            shape,
            pictures(20, tiles=1) + long + pictures(20, tiles=1),
            [50] * 41,
            places=4,
            tiles=4,
            short_places=8,
        ).finished
        == 41
    )


def test_a_long_prompt_that_waits_or_lives_leaves_fewer_places_but_not_than_were_asked_for(
    shape: ModelShape,
) -> None:
    (short,), (long,) = pictures(1, tiles=0), pictures(1, tiles=0, prefix_tokens=SHORT_TOKENS)
    for batch_size, most, fewer in ((None, 8, 4), (6, 6, 6), (2, 2, 2)):
        scheduler = Scheduler(MemoryBudget(shape, 4, 10**12, Caps(4, 10**6, 10**6, 8)), batch_size)
        scheduler.add(short)
        assert scheduler.capacity == most
        waiting = scheduler.add(long)
        assert scheduler.capacity == fewer
        scheduler.start([sequence(waiting, 0, 9)])
        assert scheduler.capacity == fewer
        scheduler.max_sequences = 1  # as when memory ran out
        assert scheduler.capacity == 1
        scheduler.live.clear()
        assert scheduler.capacity == 1


def step_of(rows: int) -> float:
    """Seconds of a decode step beside tiles of a second each, about as on two cores."""
    return 0.03 + 0.002 * rows


def test_where_encoding_dominates_the_first_answer_comes_early_and_the_run_as_soon(
    shape: ModelShape,
) -> None:
    count, tokens = 40, 48

    def photos(number: int, pace: Pace | None) -> Played:
        lengths = [tokens] * number
        return play(
            shape, pictures(number, tiles=13), lengths, 32, 4, pace=pace, step_seconds=step_of
        )

    alone, before, after = photos(1, None), photos(count, None), photos(count, Pace())
    assert before.first_answer > 8 * alone.seconds
    assert after.first_answer <= 1.5 * alone.seconds
    assert after.seconds <= 1.03 * before.seconds
    assert after.finished == count


@pytest.mark.parametrize("tiles", [1, 2])
def test_where_answers_take_as_long_as_pictures_the_encoder_goes_first(
    shape: ModelShape, tiles: int
) -> None:
    found = [
        play(shape, pictures(64, tiles), [48] * 64, 32, 4, pace=pace, step_seconds=step_of)
        for pace in (None, Pace())
    ]
    assert found[1] == found[0]


def test_a_pace_waits_for_nothing_before_costs_are_known() -> None:
    pace = Pace()
    live = [Pending(tiles=13, max_tokens=48, tokens=1)]
    assert not pace.wants_step(live)
    pace.encoded(4, 4.0)
    assert not pace.wants_step(live)
    pace.encoded(9, 9.0)
    pace.decoded(0.02, was_extra=False)
    assert pace.wants_step(live)
    assert not pace.wants_step([])
    assert not pace.wants_step([*live, Pending(tiles=1, max_tokens=48, tokens=1)])


@pytest.mark.parametrize("first", [0, 48])
def test_decode_steps_take_their_share_of_encoding_that_of_the_first_answer_counts(
    first: int,
) -> None:
    pace = Pace()
    live = [Pending(tiles=13, max_tokens=48, tokens=1)]
    pace.encoded(100, 100.0)
    pace.decoded(0.02, was_extra=False)
    for _ in range(first):
        pace.decoded(0.02, was_extra=True)
    pace.answered()
    extra = first
    while pace.wants_step(live):
        pace.decoded(0.02, was_extra=True)
        extra += 1
    assert extra == pytest.approx(SHARE * 100 / 0.02, abs=1)
    pace.encoded(4, 4.0)
    assert pace.wants_step(live)


def test_a_device_with_memory_decodes_more_sequences_together(shape: ModelShape) -> None:
    caps = Caps(4, 10**6, 10**6, 8, most_sequences=64)
    small, large = (MemoryBudget(shape, 4, limit, caps) for limit in (10**6, 10**12))
    assert [small.max_sequences(is_short=short) for short in (False, True)] == [4, 8]
    assert [large.max_sequences(is_short=short) for short in (False, True)] == [64, 64]
    assert Scheduler(large, None).capacity == 64
    assert Scheduler(large, 3).capacity == 3
    held = dataclasses.replace(large, graph_bytes=10**9)
    assert held.workspace_bytes == large.workspace_bytes - 10**9
    assert held.cache_bytes == large.cache_bytes
