"""One answer from its prompt to its completion."""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Callable, Sequence

import torch
from transformers import TemperatureLogitsWarper, TopPLogitsWarper

from vlmbatch.core import (
    Completion,
    FinishReason,
    Request,
    Timing,
    TokenLogprob,
    draw_seed,
)
from vlmbatch.engine.answer_text import AnswerText
from vlmbatch.engine.transformers.processing import Payload, Tensors
from vlmbatch.errors import GenerateError

Decode = Callable[[Sequence[int]], str]


@dataclasses.dataclass(frozen=True)
class Vocabulary:
    """Tokens of a checkpoint.

    Attributes:
        decode: Turns token ids into text, special tokens left out.
        name: Turns one token id into its text, also a special one's.
        end_ids: Tokens that end an answer.
        context: The most tokens that prompt and answer may have together; None for no limit.
    """

    decode: Decode
    name: Callable[[int], str]
    end_ids: frozenset[int]
    context: int | None


class Answer:
    """The answer to one question while it is made.

    Attributes:
        request: The request.
        number: Number of its question.
        prompt: Token ids, int64 (1, length), and what else has a value a token.
        media: Pixels and what belongs to them.
        tokens: The tokens so far.
        most_tokens: As many as it may have.
        reason: Why it is finished; None while it is not.
        error: Why there is none.
        is_alone: Whether it gets a batch of its own, as one that it was in failed.
        batch_size: Sequences of its largest batch.
        timing: Where its time went.
    """

    def __init__(self, request: Request, number: int, vocabulary: Vocabulary) -> None:
        """Take a question of a prepared request."""
        payload: Payload = request.payload
        self.request, self.number, self._vocabulary = request, number, vocabulary
        self.question = request.questions[number]
        self.prompt: Tensors = payload.prompts[number]
        self.media: Tensors = payload.media
        self.tiles, self.pixel_bytes = payload.tiles or 0, payload.media_bytes
        self.tokens: list[int] = []
        room = self.question.max_new_tokens
        if vocabulary.context is not None:
            room = min(room, vocabulary.context - self.prompt_tokens)
        self.most_tokens = room
        self.reason: FinishReason | None = None
        self.error: Exception | None = None
        self.is_alone = False
        self.batch_size = 0
        self.timing = Timing(None, None, None, None, 0.0)
        self._text = AnswerText(self.question, self._words)
        self._logprob_sum = 0.0
        self._logprobs: list[TokenLogprob] = []
        self._first_token_at = 0.0
        self._generator: torch.Generator | None = None
        if self.question.temperature > 0:
            self._generator = torch.Generator().manual_seed(
                draw_seed(self.question.seed, request.conversation.key, self.question.text)
            )

    @property
    def prompt_tokens(self) -> int:
        """Tokens of the prompt."""
        return self.prompt["input_ids"].shape[1]

    @property
    def is_done(self) -> bool:
        """Whether nothing will be added."""
        return self.reason is not None or self.error is not None

    @property
    def is_sampled(self) -> bool:
        """Whether its tokens are drawn."""
        return self._generator is not None

    @property
    def wants_logprobs(self) -> bool:
        """Whether the log-probabilities of all tokens are wanted."""
        return self.question.logprobs is not None

    def draw(self, logits: torch.Tensor) -> int:
        """Draw a token from float32 logits (vocabulary,), by transformers' own warpers."""
        scores = logits[None].cpu().double()
        warped = TemperatureLogitsWarper(self.question.temperature)(None, scores)
        if not warped.isfinite().all():  # a temperature next to nothing, or a model that failed
            return int(scores.argmax())
        if self.question.top_p < 1:
            warped = TopPLogitsWarper(self.question.top_p)(None, warped)
        chances = warped.softmax(dim=-1)
        return int(torch.multinomial(chances, 1, generator=self._generator))

    def add(self, token: int, logprob: float) -> None:
        """Take the next token, stream what it says, and find out whether the answer is finished."""
        if not math.isfinite(logprob):
            self.error = GenerateError("the model gave no finite numbers; try --dtype float32")
            return
        now = time.perf_counter()
        self._first_token_at = self._first_token_at or now
        self.timing.decode_seconds = now - self._first_token_at
        self.tokens.append(token)
        self._logprob_sum += logprob
        ends = token in self._vocabulary.end_ids and not self.question.ignore_eos
        is_full = len(self.tokens) >= self.most_tokens
        self._text.follow(self.tokens, is_last=ends or is_full)
        if self._text.is_broken:
            self.reason = "cancelled"
        elif ends or self._text.is_stopped:
            self.reason = "stop"
        elif is_full:
            self.reason = "length"
        else:
            self.check_cancelled()

    def add_logprobs(self, token: int, logprobs: torch.Tensor) -> None:
        """Note the log-probabilities (vocabulary,) from which the next token was chosen."""
        name = self._vocabulary.name
        top = logprobs.topk(min(self.question.logprobs or 0, len(logprobs)))
        pairs = zip(top.indices.tolist(), top.values.tolist(), strict=True)
        alike = tuple((name(one), value) for one, value in pairs)
        self._logprobs.append(TokenLogprob(name(token), float(logprobs[token]), alike))

    def check_cancelled(self) -> None:
        """Finish the answer if its question was cancelled."""
        if not self.is_done and self.request.is_cancelled(self.number):
            self.reason = "cancelled"

    def completion(self) -> Completion:
        """The answer, or why there is none."""
        if self.error is not None:
            return Completion(self.request, self.number, error=self.error, timing=self.timing)
        return Completion(
            self.request,
            self.number,
            text=self._text.text(self.tokens),
            prompt_tokens=self.prompt_tokens,
            image_tokens=None,
            new_tokens=len(self.tokens),
            finish_reason=self.reason,
            mean_logprob=self._logprob_sum / len(self.tokens) if self.tokens else None,
            batch_size=self.batch_size,
            timing=self.timing,
            token_ids=tuple(self.tokens),
            logprobs=self._logprobs,
        )

    def _words(self, tokens: Sequence[int]) -> str:
        ends = self._vocabulary.end_ids
        return self._vocabulary.decode([token for token in tokens if token not in ends])
