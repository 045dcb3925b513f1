"""Asking an engine, and counting what it owes: one answer a question."""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import threading
import time
from collections.abc import Callable, Iterator, Sequence

from vlmbatch.core import Completion, Conversation, Question, Request
from vlmbatch.engine import Engine, EngineStats
from vlmbatch.engine.timing import closed_queue, difference
from vlmbatch.errors import GenerateError, ItemError

Say = Callable[[str], None]
"""Takes what is done now, for the user."""
SAY_SECONDS = 15.0
"""Time after which it is said again how far an engine is."""


@dataclasses.dataclass(frozen=True)
class Asked:
    """A conversation and the questions about it."""

    conversation: Conversation
    questions: tuple[Question, ...]


@dataclasses.dataclass
class Round:
    """Answers of one run of the engine.

    Attributes:
        answers: For each ``Asked`` the answer to each of its questions, in order.
        seconds: Wall time.
        stats: The engine's counts in this run.
        owed: Number of questions that the engine took.
        lost: Of these, those that got no answer.
        doubled: Answers beyond the first of a question.
    """

    answers: list[list[Completion]]
    seconds: float
    stats: EngineStats
    owed: int
    lost: int
    doubled: int

    @property
    def flat(self) -> list[Completion]:
        """All answers in one list."""
        return [one for answers in self.answers for one in answers]


def ask(
    engine: Engine,
    asked: Sequence[Asked],
    say: Say,
    every_seconds: float = SAY_SECONDS,
) -> Round:
    """Put all questions into one queue, and wait for the answers. What cannot be prepared, or is
    lost, is an answer with an error.

    Args:
        engine: The engine.
        asked: The conversations and questions.
        say: Called with what is done so far, on a thread of its own.
        every_seconds: Time between two of these calls.

    Raises:
        EngineError: The engine cannot go on.
    """
    begun = time.perf_counter()
    before = dataclasses.replace(engine.stats)
    prepared = [_prepare(engine, each) for each in asked]
    requests = [each for each in prepared if isinstance(each, Request)]
    found: dict[tuple[int, int], Completion] = {}
    counts: collections.Counter[tuple[int, int]] = collections.Counter()
    if requests:
        with telling(engine, say, every_seconds):
            for done in engine.run(closed_queue(requests)):
                key = (id(done.request), done.question)
                found[key] = done
                counts[key] += 1
    answers = [
        [
            _failed(each.questions, number, one)
            if isinstance(one, ItemError)
            else found.get((id(one), number))
            or _failed(each.questions, number, GenerateError("no answer came"))
            for number in range(len(each.questions))
        ]
        for each, one in zip(asked, prepared, strict=True)
    ]
    owed = sum(len(request.questions) for request in requests)
    return Round(
        answers,
        time.perf_counter() - begun,
        difference(before, engine.stats),
        owed,
        lost=owed - len(found),
        doubled=counts.total() - len(found),
    )


@contextlib.contextmanager
def telling(engine: Engine, say: Say, every_seconds: float) -> Iterator[None]:
    """Say at intervals what an engine has done since the block began: on a CPU, the first answer
    of a large model takes minutes.
    """
    before = dataclasses.replace(engine.stats)
    ended = threading.Event()

    def tell() -> None:
        while not ended.wait(every_seconds):
            done = difference(before, engine.stats)
            say(f"{done.tiles} tiles encoded, {done.decode_tokens} tokens decoded")

    teller = threading.Thread(target=tell, name="telling", daemon=True)
    teller.start()
    try:
        yield
    finally:
        ended.set()
        teller.join()


def _prepare(engine: Engine, asked: Asked) -> Request | ItemError:
    try:
        return engine.prepare(asked.conversation, asked.questions)
    except ItemError as error:
        return error


def _failed(questions: Sequence[Question], number: int, error: Exception) -> Completion:
    return Completion(Request(Conversation(), questions, None), number, error=error)
