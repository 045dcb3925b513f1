"""Later requests continue what earlier ones left in the pool: chats and servers."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest

from tests.engine.reference import answers, build_engine, changed, run_all
from tests.engine.torch.test_parity import mixed_requests, open_tiny, picture
from tests.engine.torch.test_scheduling import FailingLanguage, budget_of_rows
from vlmbatch.core import Completion, Conversation, Part, Pixels, Question, Request, Turn
from vlmbatch.engine import open_engine
from vlmbatch.engine.torch.engine import TorchEngine
from vlmbatch.job import EngineOptions


def test_an_engine_is_opened_to_keep_prefixes_or_not(tiny: Path) -> None:
    options = EngineOptions(model=str(tiny), dtype="float32", device="cpu")
    for reuse_prefixes in (False, True):
        engine = open_engine(options, reuse_prefixes=reuse_prefixes)
        request = engine.prepare(Conversation((about(1),)), [question("What is here?")])
        first, second = ask(engine, request), ask(engine, request)
        assert first.cached_tokens == 0
        assert second.cached_tokens == (second.prompt_tokens - 1 if reuse_prefixes else 0)
        engine.close()
        assert engine.cache.allocated_bytes == 0


def reusing(folder: Path, **options: object) -> TorchEngine:
    """An engine that keeps prefixes, and shares pieces of any length."""
    engine = build_engine(folder, open_tiny(folder)[0], reuse_prefixes=True, **options)
    engine.cache.shared_tokens = 8
    return engine


def about(seed: int) -> Turn:
    pixels = Pixels([picture(np.random.default_rng(seed), 90, 60)])
    return Turn("user", (Part("picture", pixels=pixels), Part("text", text="Look. ")))


def question(text: str, tokens: int = 12) -> Question:
    return Question(text, max_new_tokens=tokens, ignore_eos=True)


def next_turn(request: Request, done: Completion, text: str) -> Request:
    """The request whose prompt goes on from another's prompt and answer, token by token."""
    payload = request.payload
    ids = [*payload.question_ids[0], *done.token_ids, *list(text.encode())]
    return changed(request, dataclasses.replace(payload, question_ids=[ids]))


def ask(engine: TorchEngine, request: Request) -> Completion:
    done = run_all(engine, [request])[0, 0]
    assert done.error is None
    return done


@pytest.mark.parametrize("shared_tokens", [8, 10**6], ids=["shared", "copied"])
def test_a_chat_goes_on_without_computing_its_past(tiny: Path, shared_tokens: int) -> None:
    engine, plain = reusing(tiny), open_tiny(tiny)[0]
    engine.cache.shared_tokens = shared_tokens
    request = engine.prepare(Conversation((about(1),)), [question("What is here?")])
    tiles, past = len(request.payload.tiles), 0
    for turn in range(5):
        before = dataclasses.replace(engine.stats)
        done = ask(engine, request)
        wanted = ask(plain, request)
        assert done.token_ids == wanted.token_ids
        assert done.prompt_tokens == wanted.prompt_tokens
        assert wanted.cached_tokens == 0
        assert done.image_tokens == tiles * engine.network.shape.tile_tokens
        encoded = engine.stats.tiles + engine.stats.tiles_reused
        encoded -= before.tiles + before.tiles_reused
        prefilled = engine.stats.prefill_tokens - before.prefill_tokens
        assert prefilled == done.prompt_tokens - done.cached_tokens
        if turn == 0:
            assert (done.cached_tokens, encoded) == (0, tiles)
        else:
            # Its past is the last prompt and answer; the answer's last token was never computed.
            assert done.cached_tokens == past - 1
            assert encoded == 0
        past = done.prompt_tokens + done.new_tokens
        request = next_turn(request, done, f" and {turn}?")


def test_chats_side_by_side_are_answered_as_alone(tiny: Path) -> None:
    engine, plain = reusing(tiny), open_tiny(tiny)[0]
    requests = [
        engine.prepare(Conversation((about(seed % 3),)), [question(f"{seed}?", 5 + seed)])
        for seed in range(7)
    ]
    for turn in range(3):
        found, wanted = run_all(engine, requests), run_all(plain, requests)
        for key, done in found.items():
            assert done.token_ids == wanted[key].token_ids
            assert (done.cached_tokens > 0) or turn == 0
        requests = [
            next_turn(request, found[number, 0], " so?") for number, request in enumerate(requests)
        ]


def test_questions_about_a_kept_picture_compute_themselves_alone(tiny: Path) -> None:
    engine = reusing(tiny)
    first = engine.prepare(Conversation((about(1),)), [question("What?")])
    ask(engine, first)
    again = engine.prepare(
        Conversation((about(1),)), [question("Why so?"), question("When?"), question("Who?")]
    )
    before = engine.stats.prefill_tokens
    found = run_all(engine, [again])
    prefix = len(again.payload.prefix_ids)
    assert [done.cached_tokens for done in found.values()] == [prefix] * 3
    assert engine.stats.prefill_tokens - before == sum(map(len, again.payload.question_ids))
    assert {key: done.token_ids for key, done in found.items()} == answers(
        open_tiny(tiny)[0], [again]
    )


def test_another_picture_in_the_same_words_is_another_prompt(tiny: Path) -> None:
    engine, plain = reusing(tiny), open_tiny(tiny)[0]
    for seed in (1, 2):
        request = engine.prepare(Conversation((about(seed),)), [question("What is here?")])
        done = ask(engine, request)
        assert done.token_ids == ask(plain, request).token_ids
        assert done.cached_tokens < 32  # no tile, at most the words before it


def test_tiles_without_a_digest_are_never_taken_for_others(tiny: Path) -> None:
    engine = reusing(tiny)
    request = engine.prepare(Conversation((about(1),)), [question("What is here?")])
    unnamed = changed(request, dataclasses.replace(request.payload, tile_keys=()))
    for _ in range(2):
        assert ask(engine, unnamed).cached_tokens == 0
    assert ask(engine, request).cached_tokens == 0


def test_batch_runs_keep_nothing(tiny: Path) -> None:
    engine, preparer = open_tiny(tiny)
    for _ in range(2):
        found = run_all(engine, mixed_requests(preparer))
        assert {done.cached_tokens for done in found.values()} == {0}
        assert engine.cache.allocated_bytes == 0


def test_memory_stays_within_its_budget_through_many_requests(tiny: Path) -> None:
    opened, _ = open_tiny(tiny)
    budget = budget_of_rows(opened, 900)
    engine = build_engine(tiny, opened, budget=budget, reuse_prefixes=True)
    engine.cache.shared_tokens = 8
    seen: list[int] = []

    def look(text: str) -> None:
        seen.append(engine.cache.allocated_bytes)

    drawn = np.random.default_rng(4)
    system = Turn("system", (Part("text", text="You are brief, kind and sure."),))
    tile = Turn("user", (Part("tile", pixels=Pixels([picture(drawn, 32, 32)])),))
    requests = []
    for number in range(200):
        turns = (system, tile) if number % 3 else (system,)
        asked = question(f"{drawn.integers(50)}?" * int(drawn.integers(1, 4)), 2)
        asked = dataclasses.replace(asked, on_text=look)
        requests.append(engine.prepare(Conversation(turns), [asked]))
    found = run_all(engine, requests)
    assert all(done.error is None for done in found.values())
    assert 0 < max(seen) <= budget.cache_bytes
    assert sum(done.cached_tokens > 0 for done in found.values()) > 50
    assert not engine.stats.oom_events


def test_kept_prefixes_go_before_a_request_waits(tiny: Path) -> None:
    opened, _ = open_tiny(tiny)
    engine = build_engine(tiny, opened, budget=budget_of_rows(opened, 512), reuse_prefixes=True)
    for number in range(30):
        done = ask(engine, engine.prepare(Conversation(), [question(f"{number} " * 40, 4)]))
        assert done.new_tokens == 4
    assert 0 < len(engine.cache.kept) < 30


def test_what_is_kept_takes_no_more_memory_than_the_weights_of_a_model(tiny: Path) -> None:
    opened, _ = open_tiny(tiny)
    most = opened.budget.kept_bytes
    assert most == max(opened.budget.weight_bytes, 32 << 20) < opened.budget.cache_bytes
    engine = build_engine(tiny, opened, reuse_prefixes=True)
    engine.cache.kept_bytes = lambda: 5 * 64 * engine.cache.pool.token_bytes
    engine.cache.clear()
    for number in range(30):
        request = engine.prepare(Conversation(), [question(f"{number}, is it?", 4)])
        assert ask(engine, request).cached_tokens < request.payload.prompt_tokens - 1
    assert len(engine.cache.kept) == 5
    assert engine.cache.kept.bytes == engine.cache.kept_bytes()
    assert ask(engine, request).cached_tokens == request.payload.prompt_tokens - 1


@pytest.mark.parametrize("phase", ["prefill", "decode"])
def test_a_sequence_that_loses_its_place_keeps_its_tokens_and_its_past(
    tiny: Path, phase: str
) -> None:
    engine, plain = reusing(tiny), open_tiny(tiny)[0]
    requests = [
        engine.prepare(Conversation((about(seed),)), [question("What?", 9)]) for seed in range(6)
    ]
    found = run_all(engine, requests)
    later = [next_turn(request, found[n, 0], " so?") for n, request in enumerate(requests)]
    object.__setattr__(
        engine.network, "language", FailingLanguage(engine.network.language, phase, first=3)
    )
    again = run_all(engine, later)
    assert engine.stats.oom_events
    assert {key: done.token_ids for key, done in again.items()} == answers(plain, later)
