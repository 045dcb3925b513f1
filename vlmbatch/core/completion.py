"""Answers of an engine, and the time that they took."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Literal

from vlmbatch.core.conversation import Request

FinishReason = Literal["stop", "length", "cancelled"]


@dataclasses.dataclass(slots=True)
class Timing:
    """Wall seconds of the phases that an answer took part in, and its share of the engine's busy
    time. None: the engine cannot tell.

    Attributes:
        wait_seconds: From entering the queue to the first computation.
        vision_seconds: Encoder calls that held a tile of the item.
        prefill_seconds: Prefill calls that held a token of the item.
        decode_seconds: From the first token to the last.
        compute_seconds: Share of the busy time, by tiles and tokens; over a run the shares add up
            to the busy time.
    """

    wait_seconds: float | None = 0.0
    vision_seconds: float | None = 0.0
    prefill_seconds: float | None = 0.0
    decode_seconds: float | None = 0.0
    compute_seconds: float | None = 0.0


@dataclasses.dataclass(frozen=True, slots=True)
class TokenLogprob:
    """A token of an answer and its log-probability.

    Attributes:
        token: Its text.
        logprob: Its log-probability under the model, before temperature.
        top: The most likely tokens at its position, each with its log-probability.
    """

    token: str
    logprob: float
    top: tuple[tuple[str, float], ...] = ()


@dataclasses.dataclass(slots=True)
class Completion:
    """The answer to one question of a request, or its error: exactly one a question.

    Attributes:
        request: The request.
        question: Number of the question, from 0.
        text: The answer, partial if it was cancelled; None if there is an error.
        error: Reason for the missing answer.
        prompt_tokens: Tokens of the prompt; None, as below, where the engine cannot tell.
        cached_tokens: Tokens of the prompt that were kept from an earlier request.
        image_tokens: Tokens of the prompt that stand for pictures.
        new_tokens: Tokens of the answer, the stop token counted.
        finish_reason: ``stop`` (end of sequence, or a stop string), ``length`` (``max_new_tokens``,
            or the context is full) or ``cancelled``.
        mean_logprob: Mean log-probability of the answer's tokens under the model, before
            temperature.
        batch_size: Largest batch that it was decoded in.
        timing: Seconds of its phases.
        token_ids: The tokens of the answer; empty where the engine cannot tell.
        logprobs: One entry a token, if the question asks for them.
    """

    request: Request
    question: int
    text: str | None = None
    error: Exception | None = None
    prompt_tokens: int | None = 0
    cached_tokens: int | None = 0
    image_tokens: int | None = 0
    new_tokens: int | None = 0
    finish_reason: FinishReason | None = None
    mean_logprob: float | None = None
    batch_size: int | None = 0
    timing: Timing = dataclasses.field(default_factory=Timing)
    token_ids: Sequence[int] = ()
    logprobs: Sequence[TokenLogprob] = ()
