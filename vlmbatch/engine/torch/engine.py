"""The torch engine: SmolVLM2 and Idefics3 with continuous batching.

A step encodes tiles of the next requests (encoding.py), prefills the encoded ones, and decodes one
token for every live sequence (step.py). scheduler.py chooses, cache.py holds keys and values,
budget.py bounds both. When memory runs out, the failed step is halved and the limit kept
(recovery.py).
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Iterator, Sequence

import torch

from vlmbatch.core import (
    Completion,
    Conversation,
    FinishReason,
    Question,
    Request,
    Timing,
    TokenLogprob,
)
from vlmbatch.engine.base import EngineStats
from vlmbatch.engine.constraints import Constraints
from vlmbatch.engine.options import check_questions
from vlmbatch.engine.queue import RequestQueue
from vlmbatch.engine.torch import device as devices
from vlmbatch.engine.torch.budget import MemoryBudget
from vlmbatch.engine.torch.cache import Cache
from vlmbatch.engine.torch.clock import BusyClock
from vlmbatch.engine.torch.cpu.trial import BackgroundDecoder
from vlmbatch.engine.torch.cuda.buckets import RECORD_AFTER, BucketDecoder, Recorder
from vlmbatch.engine.torch.encoding import TileEncoder
from vlmbatch.engine.torch.pace import Pace
from vlmbatch.engine.torch.recovery import Cleaner, Recovery
from vlmbatch.engine.torch.scheduler import LiveSequence, Scheduler, TileRun, Work, book_vision
from vlmbatch.engine.torch.step import Steps
from vlmbatch.engine.torch.validation import are_words, find_fault
from vlmbatch.engine.torch.weights import Model
from vlmbatch.errors import EngineError, GenerateError
from vlmbatch.prepare import Payload, Preparer

logger = logging.getLogger(__name__)


class TorchEngine:
    """Answer requests with a loaded model. See ``Engine`` for the contract; one thread runs it."""

    name = "torch"
    takes_constraints = True

    def __init__(
        self,
        model: Model,
        budget: MemoryBudget,
        preparer: Preparer,
        *,
        model_name: str,
        revision: str,
        end_ids: frozenset[int],
        batch_size: int | None = None,
        reuse_prefixes: bool = False,
        recorder: Recorder | None = None,
        record_after: int = RECORD_AFTER,
        native: BackgroundDecoder | None = None,
    ) -> None:
        """Set up an engine around a loaded model.

        Args:
            model: The loaded model.
            budget: The memory budget.
            preparer: Makes requests of conversations, and text of tokens.
            model_name, revision: See ``Engine``.
            end_ids: Tokens that end an answer.
            batch_size: Maximum number of live sequences, or None for as many as fit.
            reuse_prefixes: Whether later requests, also those of a later ``run``, continue what
                earlier ones left in the cache: for chats and servers.
            recorder: Records decode steps of fixed shapes (cuda/buckets.py); None for ordinary
                steps.
            record_after: Number of times that shapes must occur before they are recorded.
            native: Decode steps of few sequences by a compiled library (cpu/native.py).
        """
        self.network, self._preparer, self._end_ids = model, preparer, end_ids
        self.native, self.model, self.revision = native, model_name, revision
        self.takes_clips, self.uncut_bytes = preparer.takes_clips, preparer.uncut_bytes
        self.device = str(model.device)
        self.dtype = str(model.dtype).removeprefix("torch.") + ("+int8" if model.quantized else "")
        self.budget = budget
        self.stats = EngineStats(memory=budget.describe())
        self.scheduler = Scheduler(budget, batch_size)
        self.encoder = TileEncoder(model, budget, self.scheduler, self.stats)
        placed = model.shape.text, model.device, model.dtype, model.language.attend_rows
        self.cache = Cache(
            *placed,
            limit_bytes=self._cache_bytes,
            kept_bytes=lambda: budget.kept_bytes,
            reuse_prefixes=reuse_prefixes,
            tokens_first=True if recorder else None,
        )
        self._clock, self.pace = BusyClock(self.stats, model.device), Pace()
        self._buckets: BucketDecoder | None = None
        if recorder is not None:
            fixed = model, self.cache, budget, self.stats, recorder
            self._buckets = BucketDecoder(*fixed, record_after=record_after)
        self.constraints = Constraints(preparer.writer, model.shape.text.vocabulary, end_ids)
        decoders = preparer.decode, self._buckets, native, self.constraints
        self._steps = Steps(model, self.cache, self.stats, self._clock, *decoders)
        self._cleaner = Cleaner(self.cache, self.stats)
        self._recovery = Recovery(self.scheduler, self.cache, self.stats, self._cleaner)
        self._done: list[Completion] = []
        self._is_clear = True

    def prepare(self, conversation: Conversation, questions: Sequence[Question]) -> Request:
        """See ``Engine``."""
        check_questions(questions, takes_constraints=True)
        for question in questions:
            if question.constraint is not None:
                self.constraints.compile(question.constraint)
        return self._preparer.prepare(conversation, questions)

    def cut(self, conversation: Conversation) -> list[Conversation]:
        """See ``Engine``."""
        return self._preparer.cut(conversation)

    def run(self, source: RequestQueue) -> Iterator[Completion]:
        """See ``Engine``."""
        self._clock.restart()
        self.pace.restart()
        self._is_clear = False
        is_over = False
        with torch.inference_mode():
            try:
                while self._pull(source) and not source.stopped:
                    self._step()
                    done, self._done = self._done, []
                    paused = time.perf_counter()
                    yield from done
                    self._clock.skip(time.perf_counter() - paused)
                is_over = self.scheduler.is_idle
            finally:
                # What is kept for later requests stays, unless some of it is in use; so do recorded
                # steps, with the storage that they read.
                if not is_over or (self.cache.kept is None and self._buckets is None):
                    self._clear()
                elif self.cache.kept is None:
                    self.encoder.clear()
                self.stats.peak_device_bytes = devices.peak_bytes(self.network.device)

    def close(self) -> None:
        """See ``Engine``."""
        if not self._is_clear:
            self._clear()

    def _cache_bytes(self) -> int:
        """Most bytes of keys and values: features that are kept for later requests count too."""
        kept = self.encoder.kept_bytes if self.cache.kept is not None else 0
        return self.budget.cache_bytes - kept

    def _pull(self, source: RequestQueue) -> bool:
        """Take requests while there is use for them. Return False when no work is left."""
        while self.scheduler.wants_more():
            request = source.get(wait=False)
            if request is None and self._is_idle:
                request = source.get(wait=True)
                self._clock.restart()
            if request is None:
                break
            self._take(request)
            if self._done:  # an invalid request is answered at once
                break
        return not self._is_idle

    @property
    def _is_idle(self) -> bool:
        return self.scheduler.is_idle and not self._done

    def _take(self, request: Request) -> None:
        """Accept a request, or answer an invalid one with an error."""
        fault = find_fault(request, self.network.shape)
        if fault is not None:
            for number in range(len(request.questions)):
                self._done.append(Completion(request, number, error=GenerateError(fault)))
            return
        work = self.scheduler.add(request)
        for number, ids in enumerate(request.payload.question_ids):
            if not are_words(ids, self.network.shape):
                self._complete(work, number, GenerateError("its token ids are not words"))

    def _step(self) -> None:
        """Do one encoder call, one prefill and one decode step, if there is work for them."""
        self._drop_cancelled()
        scheduler = self.scheduler
        for run in scheduler.next_tiles() if self.cache.kept is not None else ():
            self._steps.match(run.work)
        runs = [] if self._recovery.holding else scheduler.next_tiles()
        decodes_first = bool(runs) and self.pace.wants_step(scheduler.pending_answers())
        if runs and not decodes_first:
            size = sum(run.end - run.begin for run in runs)
            self._guard("vision", lambda: self._encode(runs), [run.work for run in runs], size)
        if not self._recovery.holding and (questions := scheduler.next_questions()):
            works = [work for work, _ in questions]
            self._guard("prefill", lambda: self._start(questions), works, len(questions))
        if scheduler.live:
            works = [sequence.work for sequence in scheduler.live]
            before = self.stats.decode_seconds
            self._guard("decode", self._decode_step, works, len(scheduler.live))
            self.pace.decoded(self.stats.decode_seconds - before, was_extra=decodes_first)
        if not scheduler.live:
            self._recovery.released()
        self._cleaner.step()

    def _guard(self, phase: str, call: Callable[[], None], works: list[Work], size: int) -> None:
        """Run a phase; if memory runs out, fail the requests that cannot be computed in smaller
        steps.

        Raises:
            EngineError: The phase failed in another way; the device cannot be trusted any more.
        """
        try:
            call()
            return
        except Exception as error:
            self._clock.lap(phase, works)
            message = " ".join(str(error).split())
            if not devices.is_out_of_memory(error):
                raise EngineError(f"{phase} failed: {type(error).__name__}: {message}") from error
        # Outside the except block, so that the error keeps no activations alive.
        self.encoder.clear()
        if self._buckets:
            self._buckets.clear()
        for work in self._recovery.handle(phase, size, works, message):
            text = f"out of memory in {phase} with nothing else in the batch: {message}"
            self._fail(work, GenerateError(text))

    def _encode(self, runs: list[TileRun]) -> None:
        """Encode tiles of several requests in one call."""
        for run in runs:
            run.work.started()
        begun = self._clock.begin()
        features = self.encoder.features(_tiles_of(runs))
        begin = 0
        for run in runs:
            count = run.end - run.begin
            run.work.features += features[begin : begin + count]
            run.work.encoded = run.end
            begin += count
        if self.encoder.is_ahead:
            self.encoder.send_ahead(_tiles_of(self.scheduler.next_tiles()))

        def book(seconds: float) -> None:
            self.pace.encoded(begin, seconds)
            book_vision(runs, seconds)

        if self.network.device.type == "mps":
            devices.synchronize(self.network.device)
        self._clock.end("vision", begun, book)

    def _start(self, questions: list[tuple[Work, int]]) -> None:
        """Take slots for questions and prefill them."""
        for work, _ in questions:
            work.started()
        live = self._steps.place(questions)
        if not live:
            # Prefixes that waiting requests hold may be what takes the room.
            if not self.scheduler.live and not self._steps.unmatch_last(self.scheduler.waiting):
                self._fail(questions[0][0], self._steps.too_large(*questions[0]))
            return
        self._steps.start(live)
        self.scheduler.start(live)
        self.stats.max_sequences = max(self.stats.max_sequences, len(self.scheduler.live))
        for sequence in live:
            self._after_token(sequence)

    def _decode_step(self) -> None:
        for sequence in self._steps.decode(self.scheduler.live):
            self._after_token(sequence)

    def _after_token(self, sequence: LiveSequence) -> None:
        """Stream the newest text; finish the sequence at its end."""
        ending = sequence.follow(self._end_ids, self.dtype)
        if ending is not None:
            self._finish(sequence, *ending)

    def _finish(
        self,
        sequence: LiveSequence,
        reason: FinishReason | None = None,
        error: Exception | None = None,
    ) -> None:
        """Free a living sequence and complete its question."""
        self.scheduler.live.remove(sequence)
        self.pace.answered()
        if not math.isfinite(sequence.logprob):
            self.cache.erase(sequence.slot)
            self._steps.release([sequence])
        else:
            self._steps.finish(sequence)
        self._complete(sequence.work, sequence.question, error, reason, sequence)

    def _complete(
        self,
        work: Work,
        number: int,
        error: Exception | None = None,
        reason: FinishReason | None = None,
        sequence: LiveSequence | None = None,
    ) -> None:
        """Close a question with its answer, its error, or as cancelled."""
        if number in work.pending:
            work.pending.remove(number)
            sequence = sequence or work.preempted.pop(number, None)
            if not work.pending:
                self.scheduler.drop(work)
        payload = work.payload
        if work.unanswered == 1:
            self._steps.forget(work)
        timing = Timing(
            wait_seconds=work.wait_seconds or 0.0,
            vision_seconds=0.0 if error else work.vision_seconds,
            compute_seconds=work.settle() + (sequence.compute_seconds if sequence else 0.0),
        )
        done = Completion(work.request, number, error=error, finish_reason=reason, timing=timing)
        if error is None:
            done.text = ""
            done.prompt_tokens = len(payload.prefix_ids) + len(payload.question_ids[number])
            done.cached_tokens = work.cached_tokens
            done.image_tokens = len(payload.tiles) * self.network.shape.tile_tokens
        if error is None and sequence is not None:
            self._fill(done, sequence)
        self._done.append(done)

    def _fill(self, done: Completion, sequence: LiveSequence) -> None:
        """Put the answer of a sequence into its completion."""
        timing, tokens = done.timing, sequence.tokens
        timing.prefill_seconds = max(sequence.prefill_seconds, sequence.work.prefill_seconds)
        timing.decode_seconds = time.perf_counter() - sequence.first_token_at
        done.text = sequence.text.text(sequence.words(self._end_ids))
        done.new_tokens, done.token_ids = len(tokens), tuple(tokens)
        done.mean_logprob = sequence.logprob / len(tokens)
        done.batch_size = sequence.batch_size
        name = self._preparer.token_text
        done.logprobs = [
            TokenLogprob(name(token), own, tuple((name(each), value) for each, value in top))
            for token, (own, top) in zip(tokens, sequence.logprobs, strict=False)
        ]

    def _fail(self, work: Work, error: Exception) -> None:
        """Answer all open questions of a waiting request with an error."""
        for number in list(work.pending):
            self._complete(work, number, error)

    def _drop_cancelled(self) -> None:
        """Complete every question that was cancelled."""
        for sequence in list(self.scheduler.live):
            if sequence.work.request.is_cancelled(sequence.question):
                self._finish(sequence, "cancelled")
        for work in list(self.scheduler.waiting):
            if work.request.has_cancelled:
                for number in [n for n in work.pending if work.request.is_cancelled(n)]:
                    self._complete(work, number, reason="cancelled")

    def _clear(self) -> None:
        """Drop all requests and free memory."""
        self._done.clear()
        self.scheduler.live.clear()
        self.scheduler.waiting.clear()
        if self._buckets:
            self._buckets.clear()
        self.cache.clear()
        self.encoder.clear()
        try:
            self._cleaner.clean()
        except RuntimeError as error:
            # A failed device refuses this too; its first error is the one to report.
            logger.debug("cleaning up failed: %s", error)
        self._is_clear = True


def _tiles_of(runs: Sequence[TileRun]) -> list[tuple[Payload, int]]:
    return [(run.work.payload, number) for run in runs for number in range(run.begin, run.end)]
