"""Prefill and decode steps."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from vlmbatch.engine.answer_text import AnswerText
from vlmbatch.engine.base import EngineStats
from vlmbatch.engine.torch.budget import MemoryBudget
from vlmbatch.engine.torch.cache import Cache, DecodeAttention, PrefillAttention, Segment
from vlmbatch.engine.torch.clock import BusyClock
from vlmbatch.engine.torch.cuda.buckets import BucketDecoder
from vlmbatch.engine.torch.sampling import Draw, choose_tokens
from vlmbatch.engine.torch.scheduler import LiveSequence, Work
from vlmbatch.engine.torch.weights import Model


class Steps:
    """Takes slots for questions, prefills their prompts, and decodes a token for each."""

    def __init__(
        self,
        model: Model,
        cache: Cache,
        budget: MemoryBudget,
        stats: EngineStats,
        clock: BusyClock,
        decode: Callable[[Sequence[int]], str],
        buckets: BucketDecoder | None,
    ) -> None:
        """Set up with an engine's parts.

        Args:
            model: The loaded model.
            cache: The KV cache.
            budget: The memory budget.
            stats: Counts calls and tokens.
            clock: Measures busy time.
            decode: Turns token ids into text.
            buckets: Decode steps of fixed shapes, or None for ordinary steps.
        """
        self._model, self._cache, self._budget = model, cache, budget
        self._stats, self._clock, self._decode, self._buckets = stats, clock, decode, buckets

    def place(self, questions: Sequence[tuple[Work, int]]) -> list[LiveSequence]:
        """Take a slot for each question, in order, until memory runs out."""
        live: list[LiveSequence] = []
        try:
            for work, number in questions:
                sequence = work.preempted.get(number) or self._begin(work, number)
                prompt = len(work.payload.prefix_ids) + len(work.payload.question_ids[number])
                slot = self._cache.take(prompt + sequence.max_tokens, self._has_room)
                if slot is None:
                    break
                sequence.slot = slot
                live.append(sequence)
        except BaseException:
            release(live)
            raise
        return live

    def start(self, live: list[LiveSequence]) -> None:
        """Prefill sequences with a slot: first prefix by prefix, then those that share one."""
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
            release(live)
            raise

    def decode(self, alive: Sequence[LiveSequence]) -> list[LiveSequence]:
        """Decode one more token for every live sequence.

        Returns:
            The sequences in the order of the cache's slots.
        """
        by_slot = {sequence.slot: sequence for sequence in alive}
        attend = DecodeAttention(self._cache)
        live = [by_slot[slot] for slot in attend.slots]
        language, device = self._model.language, self._model.device
        last = [sequence.tokens[-1] for sequence in live]

        def ordinary() -> Tensor:
            positions = torch.tensor([slot.length for slot in attend.slots], device=device)
            embeds = language.embed(torch.tensor(last, device=device))
            return language.logits(language(embeds, positions, attend))

        take_tokens(live, self._buckets.logits(last, ordinary) if self._buckets else ordinary())
        attend.finish()
        seconds = self._clock.lap("decode")
        for sequence in live:
            sequence.compute_seconds += seconds / len(live)
            sequence.batch_size = max(sequence.batch_size, len(live))
        self._stats.decode_steps += 1
        self._stats.decode_tokens += len(live)
        return live

    def _begin(self, work: Work, number: int) -> LiveSequence:
        question, payload = work.request.questions[number], work.payload
        prompt = len(payload.prefix_ids) + len(payload.question_ids[number])
        draw = None
        if question.temperature > 0:
            seed = payload.seeds[number] if payload.seeds else question.seed
            generator = torch.Generator().manual_seed(seed)
            draw = Draw(question.temperature, question.top_p, generator)
        max_tokens = min(question.max_new_tokens, self._model.shape.text.context - prompt)
        return LiveSequence(work, number, draw, AnswerText(question, self._decode), max_tokens)

    def _has_room(self, grow_bytes: int) -> bool:
        return self._cache.allocated_bytes + grow_bytes <= self._budget.cache_bytes

    def _prefill(self, sequences: list[LiveSequence], *, with_prefix: bool) -> None:
        """Run prompts through the language model side by side and choose the next token of each
        answer.
        """
        language, device = self._model.language, self._model.device
        embeds, positions, segments, shared = [], [], [], []
        for sequence in sequences:
            prefix = len(sequence.work.payload.prefix_ids) if with_prefix else 0
            question = sequence.work.prompt_ids(sequence.question)
            if prefix:
                embeds.append(self._prefix_embeds(sequence.work))
            embeds.append(language.embed(torch.tensor(question, device=device)))
            start = sequence.slot.length
            tokens = prefix + len(question)
            positions.append(torch.arange(start, start + tokens, device=device))
            segments.append(Segment(sequence.slot, tokens))
            shared.append(prefix)
        attend = PrefillAttention(segments, language.attend_prompt)
        hidden = language(torch.cat(embeds), torch.cat(positions), attend)
        attend.finish()
        ends = torch.tensor([segment.tokens for segment in segments], device=device).cumsum(0) - 1
        take_tokens(sequences, language.logits(hidden[ends]))
        total = sum(segment.tokens for segment in segments)
        seconds = self._clock.lap("prefill")
        for sequence, segment, prefix in zip(sequences, segments, shared, strict=True):
            sequence.prefill_seconds += seconds
            sequence.work.shared_seconds += seconds * prefix / total
            sequence.compute_seconds += seconds * (segment.tokens - prefix) / total
            if with_prefix:
                sequence.work.prefill_seconds += seconds
            sequence.first_token_at = sequence.first_token_at or time.perf_counter()
        self._stats.prefill_tokens += total
        self._stats.prefill_calls += 1

    def _prefix_embeds(self, work: Work) -> Tensor:
        """Embeddings (tokens, hidden) of a prefix, with vision features in place of the image
        tokens.
        """
        ids = torch.tensor(work.payload.prefix_ids, device=self._model.device)
        embeds = self._model.language.embed(ids)
        if work.features:
            features = torch.cat(work.features)
            embeds[ids == self._model.shape.image_token_id] = features.to(embeds.dtype)
        return embeds

    def _share_prefixes(
        self,
        first: dict[int, LiveSequence],
        live: Sequence[LiveSequence],
        followers: Sequence[LiveSequence],
    ) -> None:
        """Copy a prefix to the sequences that continue it now, and keep it for questions that start
        later.
        """
        for leader in first.values():
            work = leader.work
            if len(work.pending) > sum(s.work is work for s in live):
                tokens = len(work.payload.prefix_ids)
                prefix = leader.slot.arena.prefix(leader.slot, tokens)
                work.prefix = [(k.clone(), v.clone()) for k, v in prefix]
        for sequence in followers:
            leader_now = first.get(id(sequence.work))
            tokens = len(sequence.work.payload.prefix_ids)
            source = (
                leader_now.slot.arena.prefix(leader_now.slot, tokens)
                if leader_now
                else sequence.work.prefix
            )
            assert source is not None  # a follower without a leader continues a kept prefix
            sequence.slot.arena.copy_prefix(source, sequence.slot, tokens)


def release(sequences: Sequence[LiveSequence]) -> None:
    """Free the slots of sequences."""
    for sequence in sequences:
        sequence.slot.arena.give_back(sequence.slot)
        sequence.slot = None


def take_tokens(sequences: Sequence[LiveSequence], logits: Tensor) -> None:
    """Choose the next token of every sequence and append it.

    Args:
        sequences: The sequences.
        logits: Float32, (n, vocabulary).
    """
    tokens, logprobs = choose_tokens(logits, [sequence.draw for sequence in sequences])
    chosen = logprobs.gather(1, torch.tensor(tokens, device=logprobs.device)[:, None])[
        :, 0
    ].tolist()
    top = {
        place: logprobs[place].topk(min(count, logprobs.shape[1])) if count else None
        for place, sequence in enumerate(sequences)
        if (count := sequence.asked.logprobs) is not None
    }
    # After everything that can run out of memory, so that a step counts whole or not at all.
    for place, (sequence, token, logprob) in enumerate(zip(sequences, tokens, chosen, strict=True)):
        sequence.tokens.append(token)
        sequence.logprob += logprob
        if place in top:
            best = top[place]
            ranked = zip(best.indices.tolist(), best.values.tolist(), strict=True) if best else ()
            sequence.logprobs.append((logprob, list(ranked)))
