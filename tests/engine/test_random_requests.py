"""300 random requests in one run: each answer is that of the request alone, whatever the others
want and whatever becomes of them.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from tests.engine.reference import Key, run_all
from tests.engine.torch.test_constrained_steps import CONSTRAINTS
from tests.engine.torch.test_parity import open_tiny, picture
from vlmbatch.core import Completion, Conversation, Part, Pixels, Question, Request, Turn
from vlmbatch.engine import RequestQueue
from vlmbatch.engine.torch.engine import TorchEngine
from vlmbatch.errors import GenerateError, IncompleteAnswer

COUNT = 300
WORDS = ["What is here?", "Why?", "Describe the picture.", "é 🙂", "12:30", "", "Read  it.\n"]


def random_conversation(rng: np.random.Generator, key: str) -> Conversation:
    """Text alone, a picture, two of them, a clip or a tile, sometimes with turns before."""

    def pixels(frames: int = 1) -> Pixels:
        width, height = (int(edge) for edge in rng.integers(10, 130, 2))
        times = tuple(1.5 * number for number in range(frames)) if frames > 1 else ()
        return Pixels([picture(rng, width, height) for _ in range(frames)], times, 9.0)

    kind = rng.choice(["none", "text", "image", "image", "image", "two", "clip", "tile"])
    if kind == "none":
        return Conversation(key=key)
    media = {
        "text": (Part("text", text="It is late. "),),
        "image": (Part("picture", pixels=pixels()),),
        "two": (Part("picture", pixels=pixels()), Part("picture", pixels=pixels())),
        "clip": (Part("clip", pixels=pixels(int(rng.integers(2, 5)))),),
        "tile": (Part("tile", pixels=Pixels([picture(rng, 32, 32)])),),
    }[str(kind)]
    turns = [Turn("user", media)]
    if rng.random() < 0.2:
        turns.insert(0, Turn("system", (Part("text", text="Be short."),)))
    if rng.random() < 0.2:
        said = Turn("assistant", (Part("text", text="A cat."),))
        turns = [*turns[:-1], Turn("user", (*media, Part("text", text="What?"))), said]
    return Conversation(tuple(turns), key)


def random_question(rng: np.random.Generator) -> Question:
    letters = [bytes([int(byte)]).decode() for byte in rng.integers(33, 127, 3)]
    sampled = rng.random() < 0.5
    stop = tuple(letters[: int(rng.integers(0, 4))])
    ignore_eos = bool(rng.random() < 0.3)
    constraint = None if stop or ignore_eos else CONSTRAINTS[int(rng.integers(0, len(CONSTRAINTS)))]
    return Question(
        str(rng.choice(WORDS)),
        max_new_tokens=int(rng.integers(1, 25)),
        temperature=float(rng.choice([0.3, 1.0, 3.0])) if sampled else 0.0,
        top_p=float(rng.choice([0.5, 0.9, 1.0])),
        seed=int(rng.integers(0, 1000)),
        stop=stop,
        constraint=constraint,
        logprobs=None if rng.random() < 0.6 else int(rng.integers(0, 4)),
        ignore_eos=ignore_eos,
    )


@dataclasses.dataclass
class Asked:
    """A request of the run, and what is done to it.

    Attributes:
        conversation, questions: What is asked.
        end: What is done to a question, by its number: ``cancel`` or ``raise`` at its piece of the
            number beside it, 0 before the run.
        is_malconstrained: Whether its payload holds a token that is not in the vocabulary.
    """

    conversation: Conversation
    questions: list[Question]
    end: dict[int, tuple[str, int]]
    is_malconstrained: bool


@pytest.fixture(scope="module")
def asked() -> list[Asked]:
    rng = np.random.default_rng(12)
    found = []
    for number in range(COUNT):
        questions = [random_question(rng) for _ in range(int(rng.integers(1, 4)))]
        end = {
            question: (str(rng.choice(["cancel", "raise"])), int(rng.integers(0, 6)))
            for question in range(len(questions))
            if rng.random() < 0.2
        }
        conversation = random_conversation(rng, f"{number}.png")
        found.append(Asked(conversation, questions, end, bool(rng.random() < 0.04)))
    return found


def prepare_plainly(engine: TorchEngine, each: Asked) -> Request:
    request = engine.prepare(each.conversation, each.questions)
    if each.is_malconstrained:
        ids = [*request.payload.prefix_ids, 10**6]
        request.payload = dataclasses.replace(request.payload, prefix_ids=ids)
    return request


@pytest.fixture(scope="module")
def alone(tiny: Path, asked: list[Asked]) -> dict[Key, Completion]:
    """Each request by itself: the next is put when the last one is answered."""
    engine, _ = open_tiny(tiny)
    queue = RequestQueue(1)
    requests = iter([prepare_plainly(engine, each) for each in asked])
    found: dict[Key, Completion] = {}

    def put_next(number: int) -> Iterator[int]:
        request = next(requests, None)
        if request is None:
            queue.close()
            return
        request.tag = number
        queue.put(request)
        yield from range(len(request.questions))

    number, left = 0, set(put_next(0))
    for done in engine.run(queue):
        assert done.request.tag == number
        found[number, done.question] = done
        left.remove(done.question)
        if not left:
            number += 1
            left = set(put_next(number))
    assert number == COUNT
    return found


class Listener:
    """Hears the pieces of an answer, and ends it as it was told to."""

    def __init__(self, end: tuple[str, int] | None) -> None:
        self.end, self.pieces = end, list[str]()
        self.request: Request | None = None
        self.question = 0

    def __call__(self, piece: str) -> None:
        self.pieces.append(piece)
        if self.end is None or len(self.pieces) < self.end[1]:
            return
        if self.end[0] == "raise":
            raise RuntimeError("nobody listens any more")
        assert self.request is not None
        self.request.cancel(self.question)


@pytest.mark.parametrize("batch_size", [None, 5])
def test_every_answer_is_that_of_the_request_alone(
    tiny: Path, asked: list[Asked], alone: dict[Key, Completion], batch_size: int | None
) -> None:
    engine, _ = open_tiny(tiny, batch_size=batch_size)
    listeners: dict[Key, Listener] = {}
    requests = []
    for number, each in enumerate(asked):
        questions = []
        for place, question in enumerate(each.questions):
            if place in each.end or number % 3:
                listener = listeners[number, place] = Listener(each.end.get(place))
                question = dataclasses.replace(question, on_text=listener)
            questions.append(question)
        request = prepare_plainly(engine, dataclasses.replace(each, questions=questions))
        for place in range(len(questions)):
            if (number, place) in listeners:
                listeners[number, place].request = request
                listeners[number, place].question = place
            if each.end.get(place) == ("cancel", 0):
                request.cancel(place)
        requests.append(request)
    found = run_all(engine, requests)
    assert found.keys() == alone.keys()
    reasons, constrained, incomplete = set(), 0, 0
    for key, done in found.items():
        wanted, ended = alone[key], asked[key[0]].end.get(key[1])
        if asked[key[0]].is_malconstrained:
            assert isinstance(done.error, GenerateError)
            assert isinstance(wanted.error, GenerateError)
            continue
        if isinstance(wanted.error, IncompleteAnswer) and done.finish_reason != "cancelled":
            assert isinstance(done.error, IncompleteAnswer)
            incomplete += 1
            continue
        assert done.error is None
        reasons.add(done.finish_reason)
        tokens = tuple(done.token_ids)
        heard = "".join(listeners[key].pieces) if key in listeners else done.text
        assert done.text is not None
        if done.finish_reason == "cancelled":
            assert ended is not None
            assert wanted.error or tokens == tuple(wanted.token_ids)[: len(tokens)]
            assert heard is not None
            assert done.text.startswith(heard)
            continue
        assert wanted.error is None
        constrained += done.request.questions[key[1]].constraint is not None
        assert tokens == tuple(wanted.token_ids)
        assert (done.text, done.finish_reason) == (wanted.text, wanted.finish_reason)
        assert heard == done.text
        assert (done.new_tokens, done.prompt_tokens) == (len(tokens), wanted.prompt_tokens)
        assert done.mean_logprob == pytest.approx(wanted.mean_logprob, abs=1e-4)
        assert_same_logprobs(done, wanted)
    assert reasons == {"stop", "length", "cancelled"}
    assert min(constrained, incomplete) > 10
    assert engine.stats.max_sequences == (batch_size or engine.budget.caps.short_sequences)


def assert_same_logprobs(done: Completion, wanted: Completion) -> None:
    asked_for = done.request.questions[done.question].logprobs
    assert len(done.logprobs) == (0 if asked_for is None else len(done.token_ids))
    for found, expected in zip(done.logprobs, wanted.logprobs, strict=True):
        assert found.token == expected.token
        assert found.logprob == pytest.approx(expected.logprob, abs=1e-4)
        assert len(found.top) == asked_for
        values = [value for _, value in found.top]
        assert values == sorted(values, reverse=True)
        assert values == pytest.approx([value for _, value in expected.top], abs=1e-4)
