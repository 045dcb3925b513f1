"""An engine without a model, for tests: it answers deterministically, runs out of memory on demand
and fails on demand.

engine = ScriptedEngine(answer=lambda key, question: f"{key}: {question}", fail=lambda key: "poison"
in key) summary = vlmbatch.run(job, engine=engine)
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence

import numpy as np

from vlmbatch.core import Completion, Conversation, Request, Timing
from vlmbatch.engine.base import EngineStats, RequestQueue
from vlmbatch.errors import EngineError, GenerateError


def _default_answer(key: str, question: str) -> str:
    return f"{key}: {question}"


class ScriptedEngine:
    """Follows a script instead of a model. See ``Engine`` for the contract.

    Attributes:
        prepared: Keys of the conversations that were prepared, in order.
        answered: (key, question) of every answer, in order.
    """

    name = "scripted"
    device = "cpu"
    dtype = "float32"

    def __init__(
        self,
        answer: Callable[[str, str], str] = _default_answer,
        *,
        fail: Callable[[str], bool] = lambda key: False,
        die_after: int | None = None,
        oom_above: int | None = None,
        batch_size: int = 4,
        seconds: float = 0.0,
        gate: threading.Event | None = None,
    ) -> None:
        """Writes the script.

        Args:
            answer: Gives the answer to (key, question).
            fail: Says of which keys every question becomes a GenerateError.
            die_after: Raise an EngineError after so many answers.
            oom_above: Batches larger than this run out of memory once; then the batch is halved.
            batch_size: Requests that are answered together, the last first.
            seconds: Busy time of an answer.
            gate: Waits for this event before the first answer.
        """
        self._answer, self._fail, self._die_after, self._oom_above = (
            answer,
            fail,
            die_after,
            oom_above,
        )
        self._batch_size, self._seconds, self._gate = batch_size, seconds, gate
        self.stats = EngineStats()
        self.prepared: list[str] = []
        self.answered: list[tuple[str, str]] = []

    def prepare(self, conversation: Conversation, questions: Sequence[str]) -> Request:
        """One empty tile a frame; the questions travel as their own text in ``seeds``' place."""
        self.prepared.append(conversation.key)
        tiles = np.zeros((len(conversation.pixels.frames), 3, 1, 1), np.uint8)
        request = _ScriptedRequest(tiles, [0], [[0]] * len(questions))
        request.key, request.texts = conversation.key, list(questions)
        return request

    def run(self, source: RequestQueue) -> Iterator[Completion]:
        """See ``Engine``."""
        if self._gate is not None:
            self._gate.wait()
        while not source.ended:
            batch: list[Request] = []
            while (
                len(batch) < self._batch_size
                and (request := source.get(wait=not batch)) is not None
            ):
                batch.append(request)
            if self._oom_above is not None and len(batch) > self._oom_above:
                self._batch_size = max(1, self._batch_size // 2)
                self.stats.oom_events.append(
                    {
                        "phase": "scripted",
                        "size": len(batch),
                        "action": f"at most {self._batch_size}",
                        "message": "scripted",
                    }
                )
            for request in reversed(batch):
                yield from self._complete(request, len(batch))
                if source.stopped:
                    return

    def close(self) -> None:
        """Nothing to give back."""

    def _complete(self, request: Request, batch_size: int) -> Iterator[Completion]:
        assert isinstance(request, _ScriptedRequest)
        for number, question in enumerate(request.texts):
            if self._die_after is not None and len(self.answered) >= self._die_after:
                raise EngineError("the scripted engine died, as it was told to")
            if self._seconds:
                time.sleep(self._seconds)
            self.stats.busy_seconds += self._seconds
            self.stats.max_sequences = max(self.stats.max_sequences, batch_size)
            if self._fail(request.key):
                yield Completion(request, number, error=GenerateError("failed, as it was told to"))
                continue
            self.answered.append((request.key, question))
            text = self._answer(request.key, question)
            timing = Timing(compute_seconds=self._seconds)
            yield Completion(
                request,
                number,
                text,
                prompt_tokens=1,
                new_tokens=len(text.split()),
                finish_reason="stop",
                mean_logprob=0.0,
                batch_size=batch_size,
                timing=timing,
            )


class _ScriptedRequest(Request):
    key: str
    texts: list[str]
