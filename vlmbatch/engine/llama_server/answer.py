"""One answer: what is asked of the server, and what becomes of its events."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any

from vlmbatch.core import Completion, FinishReason, Question, Request, TokenLogprob, draw_seed
from vlmbatch.engine.answer_text import AnswerText
from vlmbatch.engine.llama_server.client import Client, Json, NoLongerWanted
from vlmbatch.engine.llama_server.prompts import Payload
from vlmbatch.errors import GenerateError

MAX_SEED = 2**32 - 1
"""llama.cpp's seeds are below this; it stands for a random one."""


@dataclasses.dataclass(frozen=True)
class Vocabulary:
    """Tokens of the model.

    Attributes:
        decode: Turns token ids into text, special tokens left out.
        name: Turns one token id into its text, also a special one's.
        spell: Turns token ids into text, special tokens included.
        end_ids: Tokens that end an answer.
        context: Tokens that prompt and answer may have together.
    """

    decode: Callable[[Sequence[int]], str]
    name: Callable[[int], str]
    spell: Callable[[Sequence[int]], str]
    end_ids: frozenset[int]
    context: int


class Answer:
    """The answer to one question while it is made.

    An answer that someone listens to, or that may end at a stop string, is streamed: its text is
    llama.cpp's pieces. Other answers come at once, with all their token ids, and the checkpoint's
    own tokenizer decodes them.
    """

    def __init__(
        self, request: Request, number: int, vocabulary: Vocabulary, is_wanted: Callable[[], bool]
    ) -> None:
        """Take a question of a prepared request.

        Args:
            request: The request.
            number: Number of the question.
            vocabulary: The tokens.
            is_wanted: Whether the run goes on.
        """
        self._request, self._number, self._vocabulary = request, number, vocabulary
        self._run_goes_on = is_wanted
        self._question: Question = request.questions[number]
        self._payload: Payload = request.payload
        self._prompt = self._payload.prompts[number]
        self._end_ids = vocabulary.end_ids
        self._pieces: list[str] = []
        self._text = AnswerText(self._question, self._joined)
        room = vocabulary.context - len(self._prompt.ids)
        self._most = min(self._question.max_new_tokens, room)
        self._begin()

    def _begin(self) -> None:
        """Forget the tokens so far; what was streamed is not streamed again."""
        self._pieces.clear()
        self._ids: list[int] = []
        self._logprobs: list[TokenLogprob] = []
        self._count = 0
        self._stop_type = ""
        self.timings: Json = {}
        self.prompt_tokens: int | None = None
        self.cached_tokens: int | None = None

    def ask(self, client: Client, slot: int) -> Completion:
        """Ask the server, and wait for the answer.

        Args:
            client: Asks it.
            slot: The server's place for it.

        Raises:
            GenerateError: The server refuses it, or the model failed.
            ConnectionError, HTTPException: The server ended.
        """
        self._begin()
        reason: FinishReason | None = None
        if not self.is_wanted():
            reason = "cancelled"
        while reason is None:
            try:
                reason = self._continue(client, slot)
            except NoLongerWanted:
                reason = "cancelled"
        return self._completion(reason)

    def is_wanted(self) -> bool:
        """Whether the question was not cancelled, and the run goes on."""
        return self._run_goes_on() and not self._request.is_cancelled(self._number)

    def _continue(self, client: Client, slot: int) -> FinishReason | None:
        """Ask for the tokens after those so far. Return None if more are to be asked for."""
        for event in client.complete(self._body(slot), self.is_wanted):
            self._take(event)
            if self._text.is_needed:
                is_last = bool(event.get("stop")) and self._is_finished
                self._text.follow(range(len(self._pieces)), is_last=is_last)
                if self._text.is_broken or not self.is_wanted():
                    return "cancelled"
                if self._text.is_stopped:
                    return "stop"
        if not self._is_finished:
            return None
        return "stop" if self._is_ended else "length"

    @property
    def _is_ended(self) -> bool:
        """Whether the last token ends an answer of this checkpoint."""
        return self._stop_type == "eos" and self._ids[-1:] != [] and self._ids[-1] in self._end_ids

    @property
    def _is_finished(self) -> bool:
        """Whether there is no more to ask for. llama.cpp ends an answer at tokens of other families
        too, such as ``<|im_end|>``; the checkpoint goes on.
        """
        return self._is_ended or self._stop_type != "eos" or self._count >= self._most

    def _body(self, slot: int) -> Json:
        question = self._question
        body: Json = {
            "prompt": self._prompt_so_far(),
            "n_predict": self._most - self._count,
            "temperature": question.temperature,
            "top_p": question.top_p,
            "samplers": ["temperature", "top_p"],
            "seed": draw_seed(question.seed, self._request.conversation.key, question.text)
            % MAX_SEED,
            "ignore_eos": question.ignore_eos,
            "n_probs": max(1, question.logprobs or 0),
            "return_tokens": True,
            "cache_prompt": True,
            "id_slot": slot,
            "stream": self._text.is_needed,
        }
        return body

    def _prompt_so_far(self) -> Any:
        if not self._payload.pictures:
            return [*self._prompt.ids, *self._ids]
        text = self._prompt.text + self._vocabulary.spell(self._ids)
        return {"prompt_string": text, "multimodal_data": list(self._payload.pictures)}

    def _take(self, event: Json) -> None:
        """Take tokens, text and probabilities of an event."""
        ids = [int(token) for token in event.get("tokens") or ()]
        self._ids += ids
        if event.get("content"):
            self._pieces.append(event["content"])
        if not event.get("stop") or not self._text.is_needed:
            for row in event.get("completion_probabilities") or ():
                self._logprobs.append(self._logprob(row))
        if event.get("stop"):
            self._count += int(event["tokens_predicted"])
            self._stop_type = str(event.get("stop_type"))
            timings = event.get("timings", {})
            for name in ("prompt_ms", "prompt_n", "predicted_ms", "predicted_n"):
                self.timings[name] = self.timings.get(name, 0) + timings.get(name, 0)
            if self.prompt_tokens is None:
                self.prompt_tokens = int(event["tokens_evaluated"])
                self.cached_tokens = timings.get("cache_n")

    def _logprob(self, row: Json) -> TokenLogprob:
        name = self._vocabulary.name
        value = float(row["logprob"])
        if not math.isfinite(value):
            raise GenerateError("the model gave no finite numbers; try --dtype float32")
        most = self._question.logprobs or 0
        top = [(name(each["id"]), float(each["logprob"])) for each in row["top_logprobs"][:most]]
        return TokenLogprob(name(row["id"]), min(0.0, value), tuple(top))

    def _completion(self, reason: FinishReason) -> Completion:
        known = self._logprobs
        is_whole = len(self._ids) == self._count
        done = Completion(
            self._request,
            self._number,
            prompt_tokens=self.prompt_tokens,
            cached_tokens=self.cached_tokens,
            image_tokens=None,
            new_tokens=self._count or len(self._ids),
            finish_reason=reason,
            mean_logprob=sum(row.logprob for row in known) / len(known) if known else None,
            batch_size=None,
        )
        if self._text.is_needed or not is_whole:
            done.text = self._text.text(range(len(self._pieces)))
        else:
            words = [token for token in self._ids if token not in self._end_ids]
            done.text = self._vocabulary.decode(words).strip()
        if is_whole:
            done.token_ids = tuple(self._ids)
        if self._question.logprobs is not None and len(known) == done.new_tokens:
            done.logprobs = known
        return done

    def _joined(self, places: Sequence[int]) -> str:
        return "".join(self._pieces[: len(places)])
