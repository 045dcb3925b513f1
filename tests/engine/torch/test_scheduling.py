"""Continuous batching, sampling, streaming, cancelling, and memory: what fits, and what happens
when it does not.
"""

from __future__ import annotations

import dataclasses
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.engine.reference import answers, build_engine, changed, run_all
from tests.engine.torch.test_parity import Asker, mixed_requests, open_tiny, picture
from vlmbatch.checkpoint import find_checkpoint
from vlmbatch.core import Conversation, Pixels, Request
from vlmbatch.engine import RequestQueue
from vlmbatch.engine.torch.budget import CAPS, MemoryBudget
from vlmbatch.engine.torch.cache import DecodeAttention, slot_capacity
from vlmbatch.engine.torch.cache.features import FeatureCache
from vlmbatch.engine.torch.engine import TorchEngine
from vlmbatch.engine.torch.shape import ModelShape
from vlmbatch.errors import GenerateError, OutOfMemoryError


def test_a_place_is_refilled_while_others_go_on(tiny: Path) -> None:
    engine, preparer = open_tiny(tiny, batch_size=4)
    drawn = [request for request in mixed_requests(preparer) if len(request.questions) == 1] * 6
    requests = [
        changed(request, max_new_tokens=2 if number else 40, ignore_eos=True)
        for number, request in enumerate(drawn)
    ]
    found = list(run_all(engine, requests).values())
    # One answer of 40 tokens and 17 of two: static batches of four would take 40 + 4 x 2 steps and
    # more.
    assert sum(completion.new_tokens for completion in found) == 40 + 2 * (len(found) - 1)
    assert engine.stats.decode_steps <= 41
    assert found[-1].new_tokens == 40  # the long one comes last


def test_questions_about_one_item_share_encode_and_prefix(tiny: Path) -> None:
    engine, preparer = open_tiny(tiny)
    request = next(request for request in mixed_requests(preparer) if len(request.questions) == 3)
    run_all(engine, [request])
    assert engine.stats.tiles == len(request.payload.tiles)
    assert engine.stats.prefill_tokens == len(request.payload.prefix_ids) + sum(
        map(len, request.payload.question_ids)
    )


def test_more_questions_than_places_share_a_kept_prefix(
    tiny: Path, plain: dict[tuple[int, int], Sequence[int]]
) -> None:
    engine, preparer = open_tiny(tiny, batch_size=2)
    requests = mixed_requests(preparer)
    assert answers(engine, requests) == plain
    prompts = sum(
        len(request.payload.prefix_ids) + sum(map(len, request.payload.question_ids))
        for request in requests
    )
    assert engine.stats.prefill_tokens == prompts


def test_sampling_depends_on_the_seed_and_not_on_the_batch(tiny: Path) -> None:
    def sample(**settings: object) -> dict[tuple[int, int], Sequence[int]]:
        engine, preparer = open_tiny(tiny, temperature=1.0, top_p=0.9, **settings)
        return answers(engine, mixed_requests(preparer)[:6])

    once = sample()
    assert sample(batch_size=1) == once
    engine, preparer = open_tiny(tiny)
    assert answers(engine, mixed_requests(preparer)[:6]) != once


def test_text_streams_piece_by_piece(tiny: Path) -> None:
    engine, preparer = open_tiny(tiny)
    requests = mixed_requests(preparer)[:2]
    pieces: list[str] = []
    requests[0] = changed(requests[0], on_text=pieces.append)
    found = run_all(engine, requests)
    assert "".join(pieces) == found[0, 0].text
    assert len(pieces) > 3


def test_a_cancelled_request_is_completed_as_that_and_the_others_go_on(
    tiny: Path, plain: dict[tuple[int, int], Sequence[int]]
) -> None:
    engine, preparer = open_tiny(tiny)
    requests = mixed_requests(preparer)
    requests[2] = changed(requests[2], on_text=lambda text: requests[2].cancel())
    requests[5].cancel()
    requests[8].cancel(1)
    found = run_all(engine, requests)
    assert found.keys() == plain.keys()
    dropped = {(2, 0), (2, 1), (2, 2), (5, 0), (5, 1), (5, 2), (8, 1)}
    for key, completion in found.items():
        assert completion.error is None
        assert (completion.finish_reason == "cancelled") == (key in dropped)
        tokens = tuple(completion.token_ids)
        assert tokens == tuple(plain[key])[: len(tokens) if key in dropped else None]
    assert found[2, 0].new_tokens > 0
    assert [(found[5, number].text, found[5, number].new_tokens) for number in range(3)] == [
        ("", 0)
    ] * 3


def test_a_stopped_queue_ends_the_run(tiny: Path) -> None:
    engine, preparer = open_tiny(tiny, batch_size=1)
    queue = RequestQueue(20)
    for request in mixed_requests(preparer):
        queue.put(request)
    found = []
    for completion in engine.run(queue):
        found.append(completion)
        queue.stop()
    assert len(found) == 1


def test_the_engine_waits_for_requests_that_come_late(
    tiny: Path, plain: dict[tuple[int, int], Sequence[int]]
) -> None:
    engine, preparer = open_tiny(tiny)
    requests = mixed_requests(preparer)[:2]
    queue = RequestQueue(4)
    found = {}
    queue.put(requests[0])
    answered = threading.Event()

    def late() -> None:
        answered.wait(60)
        queue.put(requests[1])
        queue.close()

    thread = threading.Thread(target=late)
    thread.start()
    for completion in engine.run(queue):
        key = requests.index(completion.request), completion.question
        found[key] = completion.token_ids
        answered.set()
    thread.join()
    assert found == {key: tokens for key, tokens in plain.items() if key[0] < 2}


@pytest.mark.parametrize("most", [1, 3, 7])
def test_out_of_memory_in_vision_halves_the_call(
    tiny: Path, plain: dict[tuple[int, int], Sequence[int]], most: int
) -> None:
    engine, preparer = open_tiny(tiny)
    vision = engine.network.vision
    fake = _FailingVision(vision, most)
    object.__setattr__(engine.network, "vision", fake)
    assert answers(engine, mixed_requests(preparer)) == plain
    assert engine.stats.oom_events
    assert all(event["phase"] == "vision" for event in engine.stats.oom_events)
    assert (engine.scheduler.max_tiles or 0) <= most
    assert fake.calls_that_failed <= 12  # the limit is remembered


def test_a_request_that_fails_alone_is_an_error_and_the_others_go_on(
    tiny: Path, plain: dict[tuple[int, int], Sequence[int]]
) -> None:
    engine, preparer = open_tiny(tiny)
    requests = mixed_requests(preparer)
    poison = requests[3].payload.tiles[0].copy()
    object.__setattr__(
        engine.network, "vision", _FailingVision(engine.network.vision, 1000, poison)
    )
    found = run_all(engine, requests)
    assert found.keys() == plain.keys()
    for key, completion in found.items():
        if key[0] == 3:
            assert isinstance(completion.error, GenerateError)
            assert "out of memory" in str(completion.error)
        else:
            assert completion.token_ids == plain[key]


def of_mixed(opened: tuple[TorchEngine, Asker]) -> tuple[TorchEngine, list[Request]]:
    engine, preparer = opened
    return engine, mixed_requests(preparer)


@pytest.mark.parametrize("phase", ["prefill", "decode"])
def test_out_of_memory_in_the_language_model_halves_the_batch(
    tiny: Path, plain: dict[tuple[int, int], Sequence[int]], phase: str
) -> None:
    engine, preparer = open_tiny(tiny)
    language = engine.network.language
    object.__setattr__(engine.network, "language", FailingLanguage(language, phase))
    assert answers(engine, mixed_requests(preparer)) == plain
    assert {event["phase"] for event in engine.stats.oom_events} == {phase}
    assert engine.stats.cleanups >= len(engine.stats.oom_events)


@pytest.mark.parametrize("temperature", [0.0, 0.9])
def test_a_sequence_that_loses_its_place_keeps_its_tokens_and_streams_nothing_twice(
    tiny: Path, temperature: float
) -> None:
    settings = {"temperature": temperature}
    expected = answers(*of_mixed(open_tiny(tiny, **settings)))
    engine, preparer = open_tiny(tiny, **settings)
    # Memory runs out in the middle of the answers.
    language = FailingLanguage(engine.network.language, "decode", first=8)
    object.__setattr__(engine.network, "language", language)
    pieces: dict[tuple[int, int], list[str]] = {key: [] for key in expected}
    requests = []
    for number, request in enumerate(mixed_requests(preparer)):
        questions = [
            dataclasses.replace(asked, on_text=pieces[number, question].append)
            for question, asked in enumerate(request.questions)
        ]
        requests.append(Request(request.conversation, questions, request.payload))
    found = run_all(engine, requests)
    assert "wait for a place" in engine.stats.oom_events[0]["action"]
    assert {key: done.token_ids for key, done in found.items()} == expected
    assert {key: "".join(said) for key, said in pieces.items()} == {
        key: done.text for key, done in found.items()
    }


def budget_of_rows(engine: TorchEngine, tokens: int) -> MemoryBudget:
    """A budget whose cache holds so many tokens."""
    budget = engine.budget
    allowed = tokens * engine.network.shape.kv_bytes(4)
    limit = budget.weight_bytes + allowed * 4 // 3 + 1
    return dataclasses.replace(budget, limit=limit, tile_bytes=1)


def test_the_cache_stays_within_its_budget(
    tiny: Path, plain: dict[tuple[int, int], Sequence[int]]
) -> None:
    opened, preparer = open_tiny(tiny)
    seen: list[int] = []
    requests = [
        changed(request, on_text=lambda text: seen.append(engine.cache.allocated_bytes))
        for request in mixed_requests(preparer)
    ]
    longest = slot_capacity(max(request.payload.prompt_tokens for request in requests) + 24)
    budget = budget_of_rows(opened, 3 * longest)
    engine = build_engine(tiny, opened, budget=budget)
    assert answers(engine, requests) == plain
    assert 0 < max(seen) <= budget.cache_bytes
    assert engine.stats.max_sequences < 20
    assert not engine.stats.oom_events


def test_a_model_that_cannot_fit_is_refused_with_sizes_and_a_smaller_one() -> None:
    from vlmbatch.engine.torch.shape import TextShape, VisionShape

    vision = VisionShape(768, 12, 12, 3072, 512, 16, 1e-6)
    text = TextShape(960, 32, 15, 5, 64, 2560, 49280, 8192, 1e-5, 1e5)
    shape = ModelShape(vision, text, 4, 49190, False)
    assert shape.parameters == pytest.approx(507.5e6, rel=0.001)
    assert shape.kv_bytes(2) == 40_960
    with pytest.raises(OutOfMemoryError, match=r"GiB of weights.*SmolVLM2-256M") as error:
        MemoryBudget(shape, 4, int(1.6 * 2**30), CAPS["cpu"]).check("big", 64)
    assert "\n" not in str(error.value)
    MemoryBudget(shape, 4, 4 * 2**30, CAPS["cpu"]).check("big", 64)


def test_the_shape_counts_the_weights_that_are_there(tiny: Path) -> None:
    from vlmbatch.engine.torch.weights import tensor_shapes

    shape = ModelShape.from_checkpoint(find_checkpoint(str(tiny)))
    assert shape.parameters == sum(int(np.prod(size)) for size in tensor_shapes(shape).values())


def test_row_capacities_waste_little() -> None:
    for tokens in range(1, 9000, 7):
        assert tokens <= slot_capacity(tokens) <= max(64, tokens * 1.13 + 64)


class _FailingVision:
    """Runs out of memory above a number of tiles, or whenever a certain tile is among them."""

    def __init__(self, vision: Any, most: int, poison: np.ndarray | None = None) -> None:
        self.vision, self.most = vision, most
        self.poison = None if poison is None else torch.from_numpy(poison)
        self.calls_that_failed = 0

    def __call__(self, tiles: torch.Tensor) -> torch.Tensor:
        if len(tiles) > self.most or (
            self.poison is not None and any(torch.equal(tile, self.poison) for tile in tiles)
        ):
            self.calls_that_failed += 1
            raise torch.OutOfMemoryError("CUDA out of memory. (scripted)")
        return self.vision(tiles)


class FailingLanguage:
    """Runs out of memory in large prefills, or in decode steps of many sequences."""

    def __init__(self, language: Any, phase: str, first: int = 0) -> None:
        self.language, self.phase = language, phase
        self.steps_left = first  # decode steps before the first that fails

    def __getattr__(self, name: str) -> Any:
        return getattr(self.language, name)

    def __call__(self, x: torch.Tensor, positions: torch.Tensor, attend: Any) -> torch.Tensor:
        decoding = isinstance(attend, DecodeAttention)
        self.steps_left -= decoding
        if self.phase == "decode" and decoding and len(x) > 3 and self.steps_left < 0:
            raise RuntimeError(
                "[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can't allocate memory: "
                "you tried to allocate 1 bytes."
            )
        if self.phase == "prefill" and not decoding and len(attend.segments) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory. (scripted)")
        return self.language(x, positions, attend)


class _PoisonedLanguage:
    """Gives logits that are not finite from a position of a decode step on."""

    def __init__(self, language: Any, place: int) -> None:
        self.language, self.place = language, place
        self.is_poisoned = torch.zeros(0, dtype=torch.bool)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.language, name)

    def __call__(self, x: torch.Tensor, positions: torch.Tensor, attend: Any) -> torch.Tensor:
        is_decode = isinstance(attend, DecodeAttention)
        self.is_poisoned = positions >= self.place if is_decode else torch.zeros(0, dtype=bool)
        return self.language(x, positions, attend)

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        found = self.language.logits(hidden)
        found[self.is_poisoned.nonzero()[:, 0], 5] = float("nan")
        return found


@pytest.mark.parametrize("temperature", [0.0, 0.7])
def test_numbers_that_are_not_finite_are_an_error_of_that_request_alone(
    tiny: Path, temperature: float
) -> None:
    engine, preparer = open_tiny(tiny, temperature=temperature)
    requests = mixed_requests(preparer)[:4]
    about = Conversation.about("image", Pixels([picture(np.random.default_rng(1), 90, 60)]), "x")
    requests.append(preparer.prepare(about, ["Why" + " so" * 60 + "?", "When?"]))
    expected = answers(engine, requests)
    # The last but one prompt is the longest: no other sequence comes to its positions.
    payload = requests[-1].payload
    place = len(payload.prefix_ids) + len(payload.question_ids[0]) + 2
    assert place > 24 + max(
        len(request.payload.prefix_ids) + len(ids)
        for number, request in enumerate(requests)
        for question, ids in enumerate(request.payload.question_ids)
        if (number, question) != (4, 0)
    )
    object.__setattr__(
        engine.network, "language", _PoisonedLanguage(engine.network.language, place)
    )
    found = run_all(engine, requests)
    assert found.keys() == expected.keys()
    for key, completion in found.items():
        if key == (4, 0):
            assert isinstance(completion.error, GenerateError)
            assert "--dtype float32" in str(completion.error)
        else:
            assert completion.token_ids == expected[key]


def test_a_request_too_large_for_the_cache_leaves_the_limits_alone(
    tiny: Path, plain: dict[tuple[int, int], Sequence[int]]
) -> None:
    opened, preparer = open_tiny(tiny)
    requests = mixed_requests(preparer)
    largest = max(range(len(requests)), key=lambda number: requests[number].payload.prompt_tokens)
    others = max(
        request.payload.prompt_tokens
        for number, request in enumerate(requests)
        if request.payload.prompt_tokens < requests[largest].payload.prompt_tokens - 30
    )
    budget = budget_of_rows(opened, slot_capacity(others + 24))
    engine = build_engine(tiny, opened, budget=budget)
    found = run_all(engine, requests)
    assert found.keys() == plain.keys()
    failed = {key[0] for key, completion in found.items() if completion.error is not None}
    assert largest in failed
    assert len(failed) < len(requests)
    assert not engine.stats.oom_events
    assert all(
        completion.token_ids == plain[key]
        for key, completion in found.items()
        if completion.error is None
    )


@pytest.mark.parametrize("phase", ["vision", "prefill", "decode"])
def test_shares_of_the_busy_time_add_up_even_when_memory_runs_out(tiny: Path, phase: str) -> None:
    engine, preparer = open_tiny(tiny)
    if phase == "vision":
        object.__setattr__(engine.network, "vision", _FailingVision(engine.network.vision, 3))
    else:
        object.__setattr__(
            engine.network, "language", FailingLanguage(engine.network.language, phase)
        )
    found = run_all(engine, mixed_requests(preparer))
    assert engine.stats.oom_events
    assert sum(completion.timing.compute_seconds for completion in found.values()) == pytest.approx(
        engine.stats.busy_seconds, rel=1e-3
    )


def test_equal_tiles_are_encoded_once_and_answered_the_same(tiny: Path) -> None:
    engine, preparer = open_tiny(tiny)
    rng = np.random.default_rng(5)
    page = np.full((96, 128, 3), 255, np.uint8)
    page[:24, :32] = rng.integers(0, 256, (24, 32, 3), dtype=np.uint8)
    other = picture(rng, 120, 90)
    drawn = [page, other, page, page]
    requests = [
        preparer.prepare(Conversation.about("image", Pixels([pixels]), f"{number}.png"), ["Why?"])
        for number, pixels in enumerate(drawn)
    ]
    distinct = {tile.tobytes() for request in requests for tile in request.payload.tiles}
    found = run_all(engine, requests)
    assert engine.stats.tiles == len(distinct)
    assert engine.stats.tiles + engine.stats.tiles_reused == sum(
        len(request.payload.tiles) for request in requests
    )
    assert found[0, 0].text == found[2, 0].text == found[3, 0].text != found[1, 0].text
    plain = open_tiny(tiny)[0]
    without_keys = [
        changed(request, dataclasses.replace(request.payload, tile_keys=())) for request in requests
    ]
    again = run_all(plain, without_keys)
    assert plain.stats.tiles_reused == 0
    assert {key: answer.text for key, answer in again.items()} == {
        key: answer.text for key, answer in found.items()
    }


def test_the_features_used_last_are_kept_within_their_room() -> None:
    kept = FeatureCache(max_bytes=3 * 16)
    for name in (b"a", b"b", b"c"):
        kept.put(name, torch.full((4,), float(ord(name))))
    assert kept.get(b"a") is not None
    kept.put(b"d", torch.zeros(4))
    kept.put(b"", torch.zeros(4))
    kept.put(b"large", torch.zeros(100))
    assert [
        name for name in (b"a", b"b", b"c", b"d", b"", b"large") if kept.get(name) is not None
    ] == [b"a", b"c", b"d"]
    assert kept.bytes == 48
    few = FeatureCache(max_tiles=2)
    for name in (b"a", b"b", b"c"):
        few.put(name, torch.zeros(4))
    assert [name for name in (b"a", b"b", b"c") if few.get(name) is not None] == [b"b", b"c"]
    assert few.bytes == 32
