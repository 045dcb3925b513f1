"""One answer: what is asked of the endpoint, and what becomes of its JSON."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from vlmbatch.core import (
    Completion,
    FinishReason,
    Question,
    Request,
    Timing,
    TokenLogprob,
    draw_seed,
)
from vlmbatch.engine.answer_text import AnswerText
from vlmbatch.engine.openai.client import Interrupted, Json
from vlmbatch.engine.openai.dialect import Dialect
from vlmbatch.engine.openai.messages import Payload
from vlmbatch.errors import GenerateError

MAX_SEED = 2**31
"""Seeds that every server takes are below this."""
MAX_STOPS = 4
"""Stop strings that OpenAI's API takes; further ones are looked for here."""
_PHASES = ("vision", "prefill", "decode")


class NoLongerWanted(Exception):
    """The listener of an answer failed, or a stop string was found here: the rest is not needed."""


class Answer:
    """The answer to one question while it is made.

    An answer that someone listens to, or that may end at a stop string, is streamed. Others come at
    once.
    """

    def __init__(self, request: Request, number: int) -> None:
        """Take a question of a prepared request."""
        self.request, self.number = request, number
        self.question: Question = request.questions[number]
        self._payload: Payload = request.payload
        self._pieces: list[str] = []
        self._text = AnswerText(self.question, self._joined)
        self.begin()

    def begin(self) -> None:
        """Forget what came so far; what was given to the listener is not given again."""
        self._pieces.clear()
        self._logprobs: list[TokenLogprob] = []
        self._usage: Json = {}
        self._timings: Json = {}
        self._stated: str | None = None

    def body(self, model: str, dialect: Dialect) -> Json:
        """Return the request, in words that the endpoint takes."""
        question = self.question
        body: Json = {
            "model": model,
            "messages": self._payload.asking(question.text),
            dialect.limit: question.max_new_tokens,
            "temperature": question.temperature,
        }
        if question.temperature > 0:
            key = self.request.conversation.key
            body["top_p"] = question.top_p
            body["seed"] = draw_seed(question.seed, key, question.text) % MAX_SEED
        if question.stop:
            body["stop"] = list(question.stop[:MAX_STOPS])
        if question.ignore_eos:
            body["ignore_eos"] = True
        if dialect.logprobs:
            body["logprobs"] = True
            if question.logprobs:
                body["top_logprobs"] = question.logprobs
        if self._text.is_needed:
            body["stream"] = True
            if dialect.stream_usage:
                body["stream_options"] = {"include_usage": True}
        return body

    def take(self, event: Json) -> None:
        """Take a whole answer, or a chunk of a stream.

        Raises:
            NoLongerWanted: No more is needed.
            GenerateError: The endpoint withholds the answer.
            Interrupted: It has another form.
        """
        try:
            self._take(event)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise Interrupted(f"the answer has another form: {error!r}") from error
        if self._text.is_needed:
            self._text.follow(range(len(self._pieces)), is_last=self.is_whole)
            if self._text.is_broken or self._text.is_stopped:
                raise NoLongerWanted

    @property
    def is_whole(self) -> bool:
        """Whether the endpoint said how it ended."""
        return self._stated is not None

    def completion(self, reason: FinishReason | None = None) -> Completion:
        """Return the answer so far.

        Args:
            reason: Why it ended; None for what the endpoint says.
        """
        if reason is None:
            reason = "length" if self._stated == "length" else "stop"
        if self._text.is_stopped:
            reason = "stop"
        if self._text.is_broken:
            reason = "cancelled"
        details = self._usage.get("prompt_tokens_details") or {}
        known = self._logprobs
        text = self._text.text(range(len(self._pieces)))
        return Completion(
            self.request,
            self.number,
            text=text,
            prompt_tokens=_count(self._usage.get("prompt_tokens")),
            cached_tokens=_count(details.get("cached_tokens"), least=0),
            image_tokens=_count(details.get("image_tokens"), least=0),
            new_tokens=_count(self._usage.get("completion_tokens"), least=0),
            finish_reason=reason,
            mean_logprob=sum(row.logprob for row in known) / len(known) if known else None,
            batch_size=None,
            logprobs=known if self.question.logprobs is not None else (),
        )

    def timing(self, wait_seconds: float, share_seconds: float) -> Timing:
        """Return its times: the phases are those that ``vlmbatch serve`` states."""
        vision, prefill, decode = (
            float(value) if isinstance(value, int | float) else None
            for value in (self._timings.get(f"{name}_seconds") for name in _PHASES)
        )
        return Timing(wait_seconds, vision, prefill, decode, share_seconds)

    def _take(self, event: Json) -> None:
        self._usage = event.get("usage") or self._usage
        self._timings = event.get("timings") or self._timings
        for choice in event["choices"]:
            if choice.get("index", 0) != 0:
                continue
            said: Json = choice.get("message") or choice.get("delta") or {}
            if said.get("refusal"):
                raise GenerateError(f"the model refuses: {said['refusal']}")
            if said.get("content"):
                self._pieces.append(_text_of(said["content"]))
            for row in (choice.get("logprobs") or {}).get("content") or ():
                self._logprobs.append(self._logprob(row))
            if choice.get("finish_reason"):
                self._stated = str(choice["finish_reason"])
        if self._stated == "content_filter":
            raise GenerateError("the endpoint withholds the answer: content_filter")

    def _logprob(self, row: Json) -> TokenLogprob:
        value = float(row["logprob"])
        if not math.isfinite(value):
            raise ValueError("a log-probability is not finite")
        most = self.question.logprobs or 0
        top = [
            (str(each["token"]), float(each["logprob"]))
            for each in (row.get("top_logprobs") or ())[:most]
        ]
        return TokenLogprob(str(row["token"]), min(0.0, value), tuple(top))

    def _joined(self, places: Sequence[int]) -> str:
        return "".join(self._pieces[: len(places)])


def _text_of(content: Any) -> str:
    """Return the text of a message's content, which may be a list of parts."""
    if isinstance(content, str):
        return content
    return "".join(part["text"] for part in content if part["type"] == "text")


def _count(value: Any, least: int = 1) -> int | None:
    """Return a count of the usage; None if it is none."""
    return value if type(value) is int and value >= least else None
