"""The engine: rounds of requests, sorted by length, in batches that ``generate`` answers."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Sequence
from typing import Any

import torch

from vlmbatch.checkpoint import Checkpoint
from vlmbatch.core import Completion, Conversation, Question, Request
from vlmbatch.engine.base import EngineStats
from vlmbatch.engine.options import check_questions
from vlmbatch.engine.queue import RequestQueue
from vlmbatch.engine.torch.device import empty_cache, is_out_of_memory, synchronize
from vlmbatch.engine.transformers.answers import Answer, Vocabulary
from vlmbatch.engine.transformers.generation import Batch
from vlmbatch.engine.transformers.memory import MemoryLimit
from vlmbatch.engine.transformers.processing import Processor
from vlmbatch.errors import EngineError, GenerateError, PrepareError, one_line

logger = logging.getLogger(__name__)

DEFAULT_BATCH_SIZE = 16
"""Sequences of a batch, where memory has room for them."""
ROUND_BATCHES = 4
"""Batches' worth of requests that are sorted by length together."""
ROUND_BYTES = 1 << 30
"""Bytes of payloads beyond which a round takes no further request."""


class TransformersEngine:
    """Answer requests with a model of transformers. See ``Engine`` for the contract; one thread
    runs it.
    """

    def __init__(
        self,
        model: Any,
        processor: Processor,
        limit: MemoryLimit,
        *,
        name: str,
        checkpoint: Checkpoint,
        batch_size: int | None = None,
    ) -> None:
        """Take what it computes with.

        Args:
            model: The loaded model, on its device.
            processor: Makes conversations into tensors.
            limit: What a batch may take.
            name: Name of the engine.
            checkpoint: Where the model came from.
            batch_size: Sequences of a batch; None for as many as memory has room for.
        """
        self.name, self.model, self.revision = name, checkpoint.name, checkpoint.revision
        self.device, self.dtype = str(model.device), str(model.dtype).removeprefix("torch.")
        self.stats = EngineStats(memory={"limit": limit.limit, "batches": limit.room})
        self._model, self._processor, self._limit = model, processor, limit
        self._most = batch_size or DEFAULT_BATCH_SIZE
        self._is_fixed = batch_size is not None
        self._vocabulary = _vocabulary(model, processor.tokenizer)
        _make_plain(model, processor.tokenizer)

    def prepare(self, conversation: Conversation, questions: Sequence[Question]) -> Request:
        """See ``Engine``."""
        check_questions(questions)
        payload = self._processor(conversation, [question.text for question in questions])
        longest = max(prompt["input_ids"].shape[1] for prompt in payload.prompts)
        context = self._vocabulary.context
        if context is not None and longest + 1 > context:
            raise PrepareError(f"the prompt has {longest} tokens, the model's context is {context}")
        return Request(
            conversation.without_pixels(),
            questions,
            payload,
            payload.media_bytes,
            tiles=payload.tiles,
        )

    def run(self, source: RequestQueue) -> Iterator[Completion]:
        """See ``Engine``. A batch's answers come when the longest of them is finished."""
        while answers := self._take_round(source):
            while answers and not source.stopped:
                batch = answers[: self._room_for(answers)]
                del answers[: len(batch)]
                self._answer(batch, source)
                if source.stopped:
                    return
                answers = [answer for answer in batch if not answer.is_done] + answers
                yield from (answer.completion() for answer in batch if answer.is_done)

    def close(self) -> None:
        """See ``Engine``."""
        self._model = None
        empty_cache(torch.device(self.device))

    def _take_round(self, source: RequestQueue) -> list[Answer]:
        """Requests that are there, question by question, the longest first; none when there will
        never be one.
        """
        answers: list[Answer] = []
        taken_bytes = 0
        while len(answers) < ROUND_BATCHES * self._most and taken_bytes < ROUND_BYTES:
            request = source.get(wait=not answers)
            if request is None:
                break
            taken_bytes += request.payload_bytes
            answers += [
                Answer(request, number, self._vocabulary)
                for number in range(len(request.questions))
            ]
        return sorted(answers, key=lambda answer: -answer.prompt_tokens)

    def _room_for(self, answers: Sequence[Answer]) -> int:
        """Return the number of answers, from the first on, that go into the next batch."""
        count = 1 if answers[0].is_alone else min(self._most, len(answers))
        while count > 1 and not self._is_fixed:
            batch = answers[:count]
            longest = max(answer.prompt_tokens + answer.most_tokens for answer in batch)
            pixels = sum(answer.pixel_bytes for answer in batch)
            itemsize = self._model.dtype.itemsize
            if self._limit.fits(self._model.config, itemsize, count * longest, pixels):
                break
            count -= 1
        return count

    def _answer(self, answers: Sequence[Answer], source: RequestQueue) -> None:
        """Work on a batch. What is not done afterwards ran out of memory, and is to be tried again
        in smaller batches.
        """
        for answer in answers:
            answer.check_cancelled()
        live = [answer for answer in answers if not answer.is_done]
        if not live:
            return
        started = time.perf_counter()
        before = [len(answer.tokens) for answer in live]
        for answer in live:
            if answer.timing.wait_seconds is None:
                answer.timing.wait_seconds = max(0.0, started - answer.request.queued_at)
            answer.batch_size = max(answer.batch_size, len(live))
        batch = Batch(live, lambda: source.stopped)
        message, is_memory = "", False
        try:
            with torch.inference_mode():
                batch.generate(self._model)
                synchronize(self._model.device)
        except Exception as error:  # whatever the model's code raises
            message, is_memory = one_line(error), is_out_of_memory(error)
            is_cpu = self._model.device.type == "cpu"
            if isinstance(error, RuntimeError) and not is_memory and not is_cpu:
                raise EngineError(f"generate failed: {type(error).__name__}: {message}") from error
        if message:  # outside the except block, where the error keeps the batch's tensors alive
            self._recover(message, live, is_memory=is_memory)
        self._book(batch, before, started)

    def _recover(self, message: str, live: Sequence[Answer], *, is_memory: bool) -> None:
        """Have a smaller batch tried, or give up the answer that cannot be had."""
        if is_memory:
            size = len(live)
            self._most = max(1, size // 2)
            action = (
                f"at most {self._most} sequences from now on"
                if size > 1
                else "its request is given up"
            )
            self.stats.oom_events.append(
                {"phase": "generate", "size": size, "action": action, "message": message[:200]}
            )
            logger.warning("out of memory in generate with %d; %s", size, action)
            message = f"out of memory with nothing else in the batch: {message}"
        elif len(live) > 1:
            for answer in live:
                answer.is_alone = True
        empty_cache(self._model.device)
        if len(live) == 1 and not live[0].is_done:
            live[0].error = GenerateError(message)

    def _book(self, batch: Batch, before: Sequence[int], started: float) -> None:
        """Note the time that a batch took, in the statistics and for each answer."""
        ended = time.perf_counter()
        busy = ended - started
        prefill = (batch.first_token_at or ended) - started
        new = [
            len(answer.tokens) - count for answer, count in zip(batch.answers, before, strict=True)
        ]
        weights = [
            answer.prompt_tokens + count for answer, count in zip(batch.answers, new, strict=True)
        ]
        for answer, weight in zip(batch.answers, weights, strict=True):
            timing = answer.timing
            timing.prefill_seconds = (timing.prefill_seconds or 0.0) + prefill
            timing.compute_seconds = (timing.compute_seconds or 0.0) + busy * weight / sum(weights)
        stats = self.stats
        stats.busy_seconds += busy
        stats.prefill_seconds += prefill
        stats.decode_seconds += busy - prefill
        stats.tiles += sum(answer.tiles for answer in batch.answers)
        stats.prefill_tokens += sum(answer.prompt_tokens for answer in batch.answers)
        stats.decode_tokens += max(0, sum(new) - len(new))
        stats.prefill_calls += 1
        stats.decode_steps += max(0, batch.steps - 1)
        stats.max_sequences = max(stats.max_sequences, len(batch.answers))
        if self._model.device.type == "cuda":
            stats.peak_device_bytes = torch.cuda.max_memory_allocated(self._model.device)


def _vocabulary(model: Any, tokenizer: Any) -> Vocabulary:
    text = model.config.get_text_config()
    for ends in (model.generation_config.eos_token_id, text.eos_token_id, tokenizer.eos_token_id):
        if ends is not None:
            break
    context = getattr(text, "max_position_embeddings", None)

    def decode(ids: Sequence[int]) -> str:
        return str(tokenizer.decode(list(ids), skip_special_tokens=True))

    def name(token: int) -> str:
        return str(tokenizer.decode([token]))

    end_ids = frozenset([ends] if isinstance(ends, int) else ends or [])
    return Vocabulary(decode, name, end_ids, context)


def _make_plain(model: Any, tokenizer: Any) -> None:
    """Have ``generate`` take the most likely token and go on until its hooks say otherwise;
    questions bring their own options.
    """
    config = model.generation_config
    config.do_sample, config.num_beams = False, 1
    config.temperature = config.top_p = config.top_k = config.max_length = None
    config.eos_token_id = None
    config.pad_token_id = tokenizer.pad_token_id or 0
