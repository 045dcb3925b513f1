"""An engine without a model, for tests: it answers deterministically, runs out of memory on demand
and fails on demand.

engine = ScriptedEngine(answer=lambda key, question: f"{key}!", fail=lambda key: "poison" in key)
summary = vlmbatch.run(job, engine=engine)
"""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Callable, Iterator, Sequence

from vlmbatch.core import Completion, Conversation, FinishReason, Question, Request, Timing
from vlmbatch.engine.answer_text import AnswerText
from vlmbatch.engine.base import EngineStats
from vlmbatch.engine.options import check_questions
from vlmbatch.engine.queue import RequestQueue
from vlmbatch.errors import EngineError, GenerateError


def _default_answer(key: str, question: str) -> str:
    return f"{key}: {question}"


class ScriptedEngine:
    """Follow a script instead of a model. See ``Engine`` for the contract.

    A word of the answer, with the white space before it, is a token.

    Attributes:
        prepared: Keys of the prepared conversations, in order.
        answered: (key, question) of every answer, in order.
    """

    name = "scripted"
    revision = ""
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
        model: str = "script",
    ) -> None:
        """Write the script.

        Args:
            answer: The answer to (key, question).
            fail: True for keys whose questions all end in a GenerateError.
            die_after: Raise an EngineError after this many answers.
            oom_above: Batches larger than this run out of memory once; then the batch is halved.
            batch_size: Requests that are answered together, the last first.
            seconds: Busy time of an answer.
            gate: An event to wait for before the first answer.
            model: The model name that it states.
        """
        self._answer, self._fail, self._die_after = answer, fail, die_after
        self._oom_above, self._batch_size = oom_above, batch_size
        self._seconds, self._gate = seconds, gate
        self.model = model
        self.stats = EngineStats()
        self.prepared: list[str] = []
        self.answered: list[tuple[str, str]] = []

    def prepare(self, conversation: Conversation, questions: Sequence[Question]) -> Request:
        """See ``Engine``; a frame counts as a tile."""
        check_questions(questions)
        self.prepared.append(conversation.key)
        tiles = sum(len(part.pixels.frames) for part in conversation.media() if part.pixels)
        return Request(conversation.without_pixels(), questions, None, 3 * tiles, tiles=tiles)

    def run(self, source: RequestQueue) -> Iterator[Completion]:
        """See ``Engine``."""
        if self._gate is not None:
            self._gate.wait()
        while not source.ended:
            batch: list[Request] = []
            while len(batch) < self._batch_size:
                request = source.get(wait=not batch)
                if request is None:
                    break
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
        """Do nothing: it holds no resources."""

    def _complete(self, request: Request, batch_size: int) -> Iterator[Completion]:
        key = request.conversation.key
        for number, question in enumerate(request.questions):
            if self._die_after is not None and len(self.answered) >= self._die_after:
                raise EngineError("the scripted engine died, as it was told to")
            if self._seconds:
                time.sleep(self._seconds)
            self.stats.busy_seconds += self._seconds
            self.stats.max_sequences = max(self.stats.max_sequences, batch_size)
            done = Completion(request, number, timing=Timing(compute_seconds=self._seconds))
            if self._fail(key):
                done.error = GenerateError("failed, as it was told to")
            else:
                self.answered.append((key, question.text))
                self._speak(done, self._answer(key, question.text))
                done.prompt_tokens, done.batch_size, done.mean_logprob = 1, batch_size, 0.0
            yield done

    def _speak(self, done: Completion, answer: str) -> None:
        """Stream an answer word by word."""
        request, question = done.request, done.request.questions[done.question]
        words = re.findall(r"\s*\S+", answer)
        follower = AnswerText(question, lambda places: "".join(words[: len(places)]))
        said: list[int] = []
        reason: FinishReason = "stop"
        if request.is_cancelled(done.question):
            reason = "cancelled"
        else:
            for place in range(min(len(words), question.max_new_tokens)):
                said.append(place)
                follower.follow(said, is_last=place + 1 in (len(words), question.max_new_tokens))
                if follower.is_broken or request.is_cancelled(done.question):
                    reason = "cancelled"
                    break
                if follower.is_stopped:
                    break
            else:
                reason = "stop" if len(said) == len(words) else "length"
        done.finish_reason = reason
        done.new_tokens, done.token_ids = len(said), tuple(said)
        whole = reason == "stop" and not follower.is_stopped
        done.text = answer if whole else follower.text(said)
