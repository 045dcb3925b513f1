"""The engine: SmolVLM2 in torch, with continuous batching.

One step encodes tiles of whoever is next (encoding.py), prefills whoever is encoded, and decodes
one token for everybody alive; scheduler.py says who, cache.py holds keys and values, budget.py says
how much fits. When memory runs out, the step that failed is halved and the limit remembered
(recovery.py).
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Iterator, Sequence

import torch

from vlmbatch.core import Completion, Conversation, FinishReason, Request, Timing
from vlmbatch.engine.base import EngineStats, RequestQueue
from vlmbatch.engine.torch import device as devices
from vlmbatch.engine.torch.budget import MemoryBudget, gib
from vlmbatch.engine.torch.cache import Cache, DecodeAttention, PrefillAttention, Segment
from vlmbatch.engine.torch.cleanup import Cleaner
from vlmbatch.engine.torch.cuda.buckets import BucketDecoder, Record
from vlmbatch.engine.torch.encoding import TileEncoder
from vlmbatch.engine.torch.recovery import Recovery
from vlmbatch.engine.torch.sampling import SamplingOptions, choose_tokens
from vlmbatch.engine.torch.scheduler import Scheduler, TileRun, Work
from vlmbatch.engine.torch.scheduler import Sequence as Live
from vlmbatch.engine.torch.weights import Model
from vlmbatch.errors import EngineError, GenerateError

logger = logging.getLogger(__name__)

Prepare = Callable[[Conversation, Sequence[str]], Request]
Decode = Callable[[Sequence[int]], str]


class TorchEngine:
    """Answers requests with a loaded model. See ``Engine`` for the contract; one thread runs it."""

    name = "torch"

    def __init__(
        self,
        model: Model,
        budget: MemoryBudget,
        *,
        prepare: Prepare,
        decode: Decode,
        end_ids: frozenset[int],
        options: SamplingOptions,
        batch_size: int | None = None,
        record: Record | None = None,
    ) -> None:
        """Takes what it computes with.

        Args:
            model: The loaded model.
            budget: What fits.
            prepare: Makes pixels and words into a request.
            decode: Makes token ids into words.
            end_ids: Tokens that end an answer.
            options: How tokens are chosen.
            batch_size: The most sequences alive, or None for what fits.
            record: What makes decode steps of fixed shapes fast (buckets.py), or None for steps of
                the shapes that come.
        """
        self.model, self.budget, self.options = model, budget, options
        self.prepare, self._decode, self._end_ids = prepare, decode, end_ids
        self.device, self.dtype = (
            str(model.device),
            str(model.dtype).removeprefix("torch.") + ("+int8" if model.quantized else ""),
        )
        self.stats = EngineStats(memory=budget.describe())
        self.cache = Cache(model.shape.text, model.device, model.dtype, model.language.attend_rows)
        self.scheduler = Scheduler(budget, batch_size)
        self.encoder = TileEncoder(model, budget, self.scheduler, self.stats)
        self._cleaner = Cleaner(self.cache, self.stats)
        self._recovery = Recovery(self.scheduler, self.cache, self.stats, self._cleaner)
        self._done: list[Completion] = []
        self._mark = time.perf_counter()
        self._is_clear = True
        self._buckets = BucketDecoder(model, self.cache, self.stats, record) if record else None

    def run(self, source: RequestQueue) -> Iterator[Completion]:
        """See ``Engine``."""
        self._mark = time.perf_counter()
        self._is_clear = False
        with torch.inference_mode():
            try:
                while self._pull(source) and not source.stopped:
                    self._step()
                    done, self._done = self._done, []
                    paused = time.perf_counter()
                    yield from done
                    self._mark += (
                        time.perf_counter() - paused
                    )  # what the caller takes is not the engine's time
            finally:
                self._clear()

    def close(self) -> None:
        """See ``Engine``."""
        if not self._is_clear:
            self._clear()

    def _pull(self, source: RequestQueue) -> bool:
        """Takes requests while there is use for them; False when there is nothing left to do."""
        while self.scheduler.wants_more():
            request = source.get(wait=False)
            if request is None and self.scheduler.is_idle:
                request = source.get(wait=True)
                self._mark = time.perf_counter()
            if request is None:
                break
            self.scheduler.add(request)
        return not self.scheduler.is_idle

    def _step(self) -> None:
        """One encoder call, one prefill, one decode step, as far as there is anything to do."""
        self._drop_cancelled()
        scheduler = self.scheduler
        if not self._recovery.holding and (runs := scheduler.next_tiles()):
            self._guard(
                "vision",
                lambda: self._encode(runs),
                [run.work for run in runs],
                sum(run.end - run.begin for run in runs),
            )
        if not self._recovery.holding and (questions := scheduler.next_questions()):
            self._guard(
                "prefill",
                lambda: self._start(questions),
                [work for work, _ in questions],
                len(questions),
            )
        if scheduler.live:
            self._guard(
                "decode",
                self._decode_step,
                [sequence.work for sequence in scheduler.live],
                len(scheduler.live),
            )
        if not scheduler.live:
            self._recovery.released()
        self._cleaner.step()

    def _guard(self, phase: str, call: Callable[[], None], works: list[Work], size: int) -> None:
        """Runs a phase; when memory runs out, whoever cannot be helped becomes an error.

        Raises:
            EngineError: The phase failed in another way; the device cannot be trusted any more.
        """
        try:
            call()
        except Exception as error:
            self._lap(phase, works)
            message = " ".join(str(error).split())
            if not devices.is_out_of_memory(error):
                raise EngineError(f"{phase} failed: {type(error).__name__}: {message}") from error
            del error
            self.encoder.clear()
            if self._buckets:
                self._buckets.clear()
            for work in self._recovery.handle(phase, size, works, message):
                self._fail(
                    work,
                    GenerateError(
                        f"out of memory in {phase} with nothing else in the batch: {message}"
                    ),
                )

    def _encode(self, runs: list[TileRun]) -> None:
        """Encodes tiles of several requests in one call."""
        for run in runs:
            run.work.started()
        wanted = [
            (run.work.request, number) for run in runs for number in range(run.begin, run.end)
        ]
        features = self.encoder.features(wanted)
        begin = 0
        for run in runs:
            count = run.end - run.begin
            run.work.features += features[begin : begin + count]
            run.work.encoded = run.end
            begin += count
        if self.encoder.is_ahead:
            self.encoder.send_ahead(
                [
                    (run.work.request, number)
                    for run in self.scheduler.next_tiles()
                    for number in range(run.begin, run.end)
                ]
            )
        devices.synchronize(self.model.device)
        seconds = self._lap("vision")
        for run in runs:
            run.work.vision_seconds += seconds
            run.work.shared_seconds += seconds * (run.end - run.begin) / begin

    def _start(self, questions: list[tuple[Work, int]]) -> None:
        """Finds places for questions and prefills them: first those that bring their prefix along,
        then those that continue one.
        """
        live = self._place(questions)
        if not live:
            if not self.scheduler.live:
                work = questions[0][0]
                need = (
                    work.request.prompt_tokens + self.options.max_new_tokens
                ) * self.model.shape.kv_bytes(self.model.dtype.itemsize)
                self._fail(
                    work,
                    GenerateError(
                        f"out of memory: its keys and values take {gib(need)}, the cache may have {gib(self.budget.cache_bytes)}"
                    ),
                )
            return
        try:
            first = {id(s.work): s for s in reversed(live) if s.work.prefix is None}
            leaders = [s for s in live if first.get(id(s.work)) is s]
            followers = [s for s in live if first.get(id(s.work)) is not s]
            if leaders:
                self._prefill(leaders, with_prefix=True)
            self._share_prefixes(first, live, followers)
            if followers:
                self._prefill(followers, with_prefix=False)
        except BaseException:
            for sequence in live:
                sequence.row.arena.give_back(sequence.row)
            raise
        self.scheduler.start(live)
        self.stats.max_sequences = max(self.stats.max_sequences, len(self.scheduler.live))
        for sequence in live:
            self._after_token(sequence)

    def _place(self, questions: list[tuple[Work, int]]) -> list[Live]:
        """A row for each question, as far as memory has room."""
        live: list[Live] = []
        try:
            for work, number in questions:
                request = work.request
                prompt = len(request.prefix_ids) + len(request.questions[number])
                most = min(self.options.max_new_tokens, self.model.shape.text.context - prompt)
                row = self.cache.take(prompt + most, self._has_room)
                if row is None:
                    break
                generator = None
                if self.options.temperature > 0:
                    generator = torch.Generator().manual_seed(
                        request.seeds[number] if request.seeds else number
                    )
                live.append(Live(work, number, row, generator, most))
        except BaseException:
            for sequence in live:
                sequence.row.arena.give_back(sequence.row)
            raise
        return live

    def _has_room(self, grow_bytes: int) -> bool:
        return self.cache.allocated_bytes + grow_bytes <= self.budget.cache_bytes

    def _prefill(self, sequences: list[Live], *, with_prefix: bool) -> None:
        """Runs prompts through the language model side by side and takes the first token of each
        answer.
        """
        language, device = self.model.language, self.model.device
        embeds, positions, segments, shared = [], [], [], []
        for sequence in sequences:
            request = sequence.work.request
            question = torch.tensor(request.questions[sequence.question], device=device)
            if with_prefix:
                embeds.append(self._prefix_embeds(sequence.work))
            embeds.append(language.embed(question))
            tokens = len(question) + (len(request.prefix_ids) if with_prefix else 0)
            positions.append(
                torch.arange(sequence.row.length, sequence.row.length + tokens, device=device)
            )
            segments.append(Segment(sequence.row, tokens))
            shared.append(tokens - len(question))
        attend = PrefillAttention(segments, language.attend_prompt)
        hidden = language(torch.cat(embeds), torch.cat(positions), attend)
        attend.finish()
        ends = torch.tensor([segment.tokens for segment in segments], device=device).cumsum(0) - 1
        self._take_tokens(sequences, language.logits(hidden[ends]))
        total = sum(segment.tokens for segment in segments)
        seconds = self._lap("prefill")
        for sequence, segment, prefix in zip(sequences, segments, shared, strict=True):
            sequence.prefill_seconds += seconds
            sequence.work.shared_seconds += seconds * prefix / total
            sequence.compute_seconds += seconds * (segment.tokens - prefix) / total
            if with_prefix:
                sequence.work.prefill_seconds += seconds
            sequence.first_token_at = time.perf_counter()
        self.stats.prefill_tokens += total
        self.stats.prefill_calls += 1

    def _prefix_embeds(self, work: Work) -> torch.Tensor:
        """Embeddings (tokens, hidden) of a prefix, the vision features in the places of the image
        tokens.
        """
        ids = torch.tensor(work.request.prefix_ids, device=self.model.device)
        features = torch.cat(work.features)
        embeds = self.model.language.embed(ids)
        places = ids == self.model.shape.image_token_id
        if int(places.sum()) != len(features):
            raise GenerateError(
                f"{int(places.sum())} image tokens for {len(features)} vision features"
            )
        embeds[places] = features.to(embeds.dtype)
        return embeds

    def _share_prefixes(
        self, first: dict[int, Live], live: list[Live], followers: list[Live]
    ) -> None:
        """Copies a prefix to those who continue it now, and keeps it for questions that start
        later.
        """
        for leader in first.values():
            work = leader.work
            if len(work.pending) > sum(s.work is work for s in live):
                tokens = len(work.request.prefix_ids)
                work.prefix = [
                    (k.clone(), v.clone()) for k, v in leader.row.arena.prefix(leader.row, tokens)
                ]
        for sequence in followers:
            leader_now = first.get(id(sequence.work))
            tokens = len(sequence.work.request.prefix_ids)
            source = (
                leader_now.row.arena.prefix(leader_now.row, tokens)
                if leader_now
                else sequence.work.prefix
            )
            assert source is not None  # a follower without a leader continues a kept prefix
            sequence.row.arena.copy_prefix(source, sequence.row, tokens)

    def _decode_step(self) -> None:
        """One more token for everybody alive."""
        by_row = {sequence.row: sequence for sequence in self.scheduler.live}
        attend = DecodeAttention(self.cache)
        live = [by_row[row] for row in attend.rows]
        language, device = self.model.language, self.model.device
        last = [sequence.tokens[-1] for sequence in live]

        def ordinary() -> torch.Tensor:
            positions = torch.tensor([row.length for row in attend.rows], device=device)
            return language.logits(
                language(language.embed(torch.tensor(last, device=device)), positions, attend)
            )

        self._take_tokens(
            live, self._buckets.logits(last, ordinary) if self._buckets else ordinary()
        )
        attend.finish()
        seconds = self._lap("decode")
        for sequence in live:
            sequence.compute_seconds += seconds / len(live)
            sequence.batch_size = max(sequence.batch_size, len(live))
            self._after_token(sequence)
        self.stats.decode_steps += 1
        self.stats.decode_tokens += len(live)

    def _take_tokens(self, sequences: list[Live], logits: torch.Tensor) -> None:
        tokens, logprobs = choose_tokens(
            logits, [sequence.generator for sequence in sequences], self.options
        )
        # The loop comes after everything that can run out of memory, so that a step counts whole or
        # not at all.
        for sequence, token, logprob in zip(sequences, tokens, logprobs, strict=True):
            sequence.tokens.append(token)
            sequence.logprob += logprob

    def _after_token(self, sequence: Live) -> None:
        """Streams the newest text and finishes the sequence when it has come to its end."""
        if not math.isfinite(sequence.logprob):
            self._abandon(
                sequence,
                GenerateError(
                    f"the model gave no finite numbers in {self.dtype.partition('+')[0]}; try --dtype float32"
                ),
            )
            return
        stop = sequence.tokens[-1] in self._end_ids
        finished = stop or len(sequence.tokens) >= sequence.most_tokens
        on_text = sequence.work.request.on_text
        if on_text is not None:
            text = self._words(sequence)
            if finished or not text.endswith("\ufffd"):  # half a character waits for its other half
                if len(text) > sequence.streamed:
                    on_text(sequence.question, text[sequence.streamed :])
                sequence.streamed = len(text)
        if finished:
            self._finish(sequence, "stop" if stop else "length")

    def _words(self, sequence: Live) -> str:
        return self._decode([token for token in sequence.tokens if token not in self._end_ids])

    def _abandon(self, sequence: Live, error: Exception) -> None:
        """Answers a living sequence with an error."""
        self._release(sequence)
        timing = Timing(
            wait_seconds=sequence.work.wait_seconds or 0.0,
            compute_seconds=sequence.compute_seconds + sequence.work.settle(),
        )
        self._done.append(
            Completion(sequence.work.request, sequence.question, error=error, timing=timing)
        )

    def _release(self, sequence: Live) -> None:
        self.scheduler.live.remove(sequence)
        sequence.row.arena.give_back(sequence.row)

    def _finish(self, sequence: Live, reason: FinishReason) -> None:
        self._release(sequence)
        work, request = sequence.work, sequence.work.request
        timing = Timing(
            wait_seconds=work.wait_seconds or 0.0,
            vision_seconds=work.vision_seconds,
            prefill_seconds=max(sequence.prefill_seconds, work.prefill_seconds),
            decode_seconds=time.perf_counter() - sequence.first_token_at,
            compute_seconds=sequence.compute_seconds + work.settle(),
        )
        self._done.append(
            Completion(
                request,
                sequence.question,
                text=self._words(sequence),
                prompt_tokens=len(request.prefix_ids) + len(request.questions[sequence.question]),
                new_tokens=len(sequence.tokens),
                finish_reason=reason,
                mean_logprob=sequence.logprob / len(sequence.tokens),
                batch_size=sequence.batch_size,
                timing=timing,
            )
        )

    def _fail(self, work: Work, error: Exception) -> None:
        """Answers all open questions of a waiting request with an error."""
        for question in list(work.pending):
            timing = Timing(wait_seconds=work.wait_seconds or 0.0, compute_seconds=work.settle())
            self._done.append(Completion(work.request, question, error=error, timing=timing))
        work.pending.clear()
        self.scheduler.drop(work)

    def _drop_cancelled(self) -> None:
        for sequence in [s for s in self.scheduler.live if s.work.request.cancelled]:
            self._release(sequence)
        for work in [work for work in self.scheduler.waiting if work.request.cancelled]:
            self.scheduler.drop(work)

    def _lap(self, phase: str, works: Sequence[Work] = ()) -> float:
        """Seconds since the last lap, booked as busy and to a phase; spread over requests when a
        phase failed.
        """
        now = time.perf_counter()
        seconds, self._mark = now - self._mark, now
        self.stats.busy_seconds += seconds
        setattr(self.stats, f"{phase}_seconds", getattr(self.stats, f"{phase}_seconds") + seconds)
        for work in works:
            work.shared_seconds += seconds / len(works)
        return seconds

    def _clear(self) -> None:
        """Drops what is in hand and gives memory back."""
        self.scheduler.live.clear()
        self.scheduler.waiting.clear()
        self.cache.arenas.clear()
        self.encoder.clear()
        if self._buckets:
            self._buckets.clear()
        if self.model.device.type == "cuda":
            self.stats.peak_device_bytes = torch.cuda.max_memory_allocated(self.model.device)
        try:
            self._cleaner.clean()
        except (
            RuntimeError
        ) as error:  # a device that failed refuses this too, and its first error is the one to tell
            logger.debug("cleaning up failed: %s", error)
        self._is_clear = True
