"""What one request brings, or does wrong, is its own: the others are answered as ever."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest

from tests.engine.reference import Key, Reference, changed, run_all
from tests.engine.torch.test_parity import MAX_NEW_TOKENS, mixed_requests, open_tiny
from vlmbatch.core import Conversation, Part, Question, Request, Turn
from vlmbatch.engine.torch.engine import TorchEngine
from vlmbatch.errors import GenerateError, PrepareError
from vlmbatch.prepare import Payload

Plain = dict[Key, Sequence[int]]
EDGE = 32


def text_alone(engine: TorchEngine, *questions: str) -> Request:
    said = Conversation((Turn("user", (Part("text", text="It is late."),)),))
    return engine.prepare(said, [Question(text, MAX_NEW_TOKENS) for text in questions])


@pytest.mark.parametrize("batch_size", [None, 1])
def test_text_alone_is_answered_as_transformers_answers_it(
    tiny: Path, plain: Plain, batch_size: int | None
) -> None:
    engine, preparer = open_tiny(tiny, batch_size=batch_size)
    requests = mixed_requests(preparer)
    words = text_alone(engine, "Why?", "How late is it?")
    assert (words.tiles, words.payload_bytes) == (0, 0)
    found = run_all(engine, [*requests, words, words_only(engine)])
    assert {key: found[key].token_ids for key in plain} == plain
    reference = Reference(tiny)
    for number, request in ((len(requests), words), (len(requests) + 1, words_only(engine))):
        wanted = reference.answer(request.conversation, request.questions)
        for question, answer in enumerate(wanted):
            assert found[number, question].token_ids == answer.token_ids


def words_only(engine: TorchEngine) -> Request:
    """A question without a conversation."""
    return engine.prepare(Conversation(), [Question("Who are you?", MAX_NEW_TOKENS)])


def with_tiles(tiles: np.ndarray) -> Callable[[Payload], object]:
    return lambda payload: dataclasses.replace(payload, tiles=tiles, tile_keys=())


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda payload: None, "not prepared by this engine"),
        (lambda payload: "text", "not prepared by this engine"),
        (with_tiles(np.zeros((1, 3, 8, 8), np.uint8)), "tiles are uint8"),
        (with_tiles(np.zeros((1, 3, EDGE, EDGE), np.float32)), "tiles are uint8"),
        (with_tiles(np.zeros((99, 3, EDGE, EDGE), np.uint8)), "image tokens for 99 tiles"),
        (
            lambda payload: dataclasses.replace(payload, prefix_ids=[10**9, *payload.prefix_ids]),
            "not in the vocabulary",
        ),
        (
            lambda payload: dataclasses.replace(payload, prefix_ids=[*payload.prefix_ids, -1]),
            "not in the vocabulary",
        ),
        (
            lambda payload: dataclasses.replace(
                payload, prefix_ids=[*payload.prefix_ids, *[5] * 2048]
            ),
            "the context is 2048",
        ),
        (
            lambda payload: dataclasses.replace(payload, question_ids=[[5]] * 9),
            "9 prompts for",
        ),
        (lambda payload: dataclasses.replace(payload, seeds=[1] * 9), "prompts for"),
        (
            lambda payload: dataclasses.replace(
                payload, question_ids=[[] for _ in payload.question_ids]
            ),
            "not words",
        ),
        (
            lambda payload: dataclasses.replace(
                payload, question_ids=[[10**9] for _ in payload.question_ids]
            ),
            "not words",
        ),
    ],
)
def test_a_malformed_payload_ends_that_request_alone(
    tiny: Path, plain: Plain, spoil: Callable[[Payload], Payload], message: str
) -> None:
    engine, preparer = open_tiny(tiny, batch_size=4)
    requests = mixed_requests(preparer)
    requests[4].payload = spoil(requests[4].payload)
    found = run_all(engine, requests)
    assert found.keys() == plain.keys()
    for key, done in found.items():
        if key[0] == 4:
            assert isinstance(done.error, GenerateError)
            assert message in str(done.error)
            assert (done.text, done.finish_reason) == (None, None)
        else:
            assert done.token_ids == plain[key]


def test_a_question_whose_ids_are_no_words_leaves_the_others_of_its_request_alone(
    tiny: Path, plain: Plain
) -> None:
    engine, preparer = open_tiny(tiny)
    requests = mixed_requests(preparer)
    ids = list(requests[5].payload.question_ids)
    ids[1] = [10**9]
    requests[5].payload = dataclasses.replace(requests[5].payload, question_ids=ids)
    found = run_all(engine, requests)
    assert isinstance(found.pop((5, 1)).error, GenerateError)
    assert {key: done.token_ids for key, done in found.items()} == {
        key: tokens for key, tokens in plain.items() if key != (5, 1)
    }


def test_a_request_without_questions_is_owed_nothing(tiny: Path, plain: Plain) -> None:
    engine, preparer = open_tiny(tiny)
    requests = mixed_requests(preparer)
    empty = Request(Conversation(), [], requests[0].payload)
    found = run_all(engine, [*requests, empty])
    assert {key: done.token_ids for key, done in found.items()} == plain


@pytest.mark.parametrize("at", [1, 3])
def test_a_listener_that_raises_ends_its_question_alone(tiny: Path, plain: Plain, at: int) -> None:
    engine, preparer = open_tiny(tiny)
    requests = mixed_requests(preparer)
    pieces: list[str] = []

    def listen(piece: str) -> None:
        pieces.append(piece)
        if len(pieces) == at:
            raise BrokenPipeError("the reader has gone")

    first, second, third = requests[5].questions
    questions = [first, dataclasses.replace(second, on_text=listen), third]
    requests[5] = Request(requests[5].conversation, questions, requests[5].payload)
    found = run_all(engine, requests)
    assert found.keys() == plain.keys()
    broken = found.pop((5, 1))
    assert (broken.error, broken.finish_reason) == (None, "cancelled")
    assert len(pieces) == at
    assert (broken.text or "").startswith("".join(pieces))
    assert tuple(broken.token_ids) == tuple(plain[5, 1])[: broken.new_tokens]
    assert 0 < (broken.new_tokens or 0) < MAX_NEW_TOKENS
    for key, done in found.items():
        assert done.token_ids == plain[key]
        assert done.finish_reason != "cancelled"


def test_requests_cancelled_before_their_turn_get_their_completions(
    tiny: Path, plain: Plain
) -> None:
    engine, preparer = open_tiny(tiny, batch_size=1)
    requests = mixed_requests(preparer)
    requests[0] = changed(
        requests[0], on_text=lambda piece: [request.cancel() for request in requests[1:]]
    )
    found = run_all(engine, requests)
    assert found.keys() == plain.keys()
    assert found[0, 0].token_ids == plain[0, 0]
    others = [done for key, done in found.items() if key[0]]
    assert {(done.finish_reason, done.text, done.new_tokens) for done in others} == {
        ("cancelled", "", 0)
    }
    assert engine.stats.max_sequences == 1


@pytest.mark.parametrize(
    "options",
    [
        {"max_new_tokens": 0},
        {"temperature": -1.0},
        {"temperature": float("nan")},
        {"top_p": 0.0},
        {"top_p": 1.5},
        {"stop": ("",)},
        {"logprobs": -1},
        {"text": "\ud800"},
    ],
    ids=str,
)
def test_options_that_cannot_be_are_refused_when_a_request_is_prepared(
    tiny: Path, options: dict[str, object]
) -> None:
    engine, _ = open_tiny(tiny)
    question = dataclasses.replace(Question("Why?"), **options)  # type: ignore[arg-type]
    with pytest.raises(PrepareError):
        engine.prepare(Conversation(), [Question("Fine?"), question])


def test_limits_are_each_questions_own(tiny: Path) -> None:
    engine, preparer = open_tiny(tiny)
    request = next(each for each in mixed_requests(preparer) if len(each.questions) == 3)
    questions = [
        dataclasses.replace(question, max_new_tokens=limit, ignore_eos=True)
        for question, limit in zip(request.questions, (1, 7, 19), strict=True)
    ]
    request = Request(request.conversation, questions, request.payload)
    found = run_all(engine, [request])
    assert [found[0, number].new_tokens for number in range(3)] == [1, 7, 19]


def test_the_most_likely_tokens_are_reported_where_they_are_wanted(tiny: Path) -> None:
    engine, preparer = open_tiny(tiny)
    requests = [
        changed(mixed_requests(preparer)[0], logprobs=logprobs) for logprobs in (None, 0, 3)
    ]
    found = run_all(engine, requests)
    assert found[0, 0].logprobs == []
    for number, count in ((1, 0), (2, 3)):
        done = found[number, 0]
        assert len(done.logprobs) == done.new_tokens
        assert {len(token.top) for token in done.logprobs} == {count}
        total = sum(token.logprob for token in done.logprobs)
        assert total / len(done.logprobs) == pytest.approx(done.mean_logprob)
    # A greedy answer takes the most likely token.
    assert all(token.top[0] == (token.token, token.logprob) for token in found[2, 0].logprobs)
