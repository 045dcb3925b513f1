"""Prefill and decode steps."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Collection, Hashable, Mapping, Sequence
from types import MappingProxyType

import numpy as np
import torch
from torch import Tensor

from vlmbatch.engine.answer_text import AnswerText
from vlmbatch.engine.base import EngineStats
from vlmbatch.engine.constraints import Constraints, next_bits
from vlmbatch.engine.torch.budget import gib
from vlmbatch.engine.torch.cache import (
    Cache,
    Prefix,
    Segment,
    Slot,
    attend_last,
    attend_prompts,
)
from vlmbatch.engine.torch.clock import BusyClock
from vlmbatch.engine.torch.cpu.trial import BackgroundDecoder
from vlmbatch.engine.torch.cuda.buckets import BucketDecoder
from vlmbatch.engine.torch.cuda.transfers import fetch
from vlmbatch.engine.torch.prompts import join_prompts, remaining_ids
from vlmbatch.engine.torch.sampling import Draw, choose_tokens
from vlmbatch.engine.torch.scheduler import LiveSequence, Work
from vlmbatch.engine.torch.weights import Model
from vlmbatch.errors import GenerateError
from vlmbatch.prepare import Payload


class Steps:
    """Takes slots for questions, prefills their prompts, and decodes a token for each."""

    def __init__(
        self,
        model: Model,
        cache: Cache,
        stats: EngineStats,
        clock: BusyClock,
        decode: Callable[[Sequence[int]], str],
        buckets: BucketDecoder | None,
        native: BackgroundDecoder | None,
        constraints: Constraints,
    ) -> None:
        """Set up with an engine's parts.

        Args:
            model: The loaded model.
            cache: The KV cache.
            stats: Counts calls and tokens.
            clock: Measures busy time.
            decode: Turns token ids into text.
            buckets: Decode steps of fixed shapes, or None for ordinary steps.
            native: Decode steps of few sequences by a compiled library, or None without one.
            constraints: Compiles the constraints of answers.
        """
        self._model, self._cache = model, cache
        self._stats, self._clock, self._decode = stats, clock, decode
        self._buckets, self._native = buckets, native
        self._constraints = constraints
        self._image_token_id = model.shape.image_token_id

    def place(self, questions: Sequence[tuple[Work, int]]) -> list[LiveSequence]:
        """Take a slot for each question, in order, until memory runs out."""
        live: list[LiveSequence] = []
        begun: dict[int, Prefix] = {}  # prefixes that a sequence before it computes
        try:
            for work, number in questions:
                sequence = work.preempted.get(number) or self._begin(work, number)
                prompt = len(work.payload.prefix_ids) + len(work.payload.question_ids[number])
                tokens = prompt + sequence.max_tokens
                self.match(work)
                prefix = begun.get(id(work)) or work.prefix
                slot = self._cache.take(tokens, prefix)
                if slot is None:
                    break
                sequence.slot = slot
                live.append(sequence)
                if len(work.pending) > 1 and not covers_prefix(work, prefix):
                    begun[id(work)] = slot.beginning(len(work.payload.prefix_ids))
        except BaseException:
            self.release(live)
            raise
        return live

    def start(self, live: list[LiveSequence]) -> None:
        """Prefill sequences with a slot: first those that compute a prefix, then those that
        continue it.
        """
        try:
            leaders: dict[int, LiveSequence] = {}
            for sequence in live:
                if not covers_prefix(sequence.work, sequence.work.prefix):
                    leaders.setdefault(id(sequence.work), sequence)
            if leaders:
                self._prefill(list(leaders.values()))
            for leader in leaders.values():
                self._keep_prefix(leader)
            followers = [s for s in live if leaders.get(id(s.work)) is not s]
            if followers:
                self._prefill(followers)
        except BaseException:
            self.release(live)
            raise

    def decode(self, alive: Sequence[LiveSequence]) -> list[LiveSequence]:
        """Decode one more token for every live sequence.

        Returns:
            The sequences, in an order of their own.
        """
        native = self._native.get(len(alive)) if self._native else None
        if native is not None:
            live = list(alive)
            slots: list[Slot] = [sequence.slot for sequence in live]
            take_tokens(live, native.logits(slots, [sequence.tokens[-1] for sequence in live]))
            for slot in slots:
                slot.length += 1
            self._stats.native_steps += 1
        else:
            live = self._decode_by_torch(alive)
        seconds = self._clock.lap("decode")
        for sequence in live:
            sequence.compute_seconds += seconds / len(live)
            sequence.batch_size = max(sequence.batch_size, len(live))
        self._stats.decode_steps += 1
        self._stats.decode_tokens += len(live)
        return live

    def _decode_by_torch(self, alive: Sequence[LiveSequence]) -> list[LiveSequence]:
        if self._buckets is not None and all(s.asked.logprobs is None for s in alive):
            slots, last = [s.slot for s in alive], [s.tokens[-1] for s in alive]
            choices = [s.draw for s in alive], [s.constraint for s in alive]
            found = self._buckets.step(slots, last, *choices)
            if found is not None:
                append_tokens(alive, found)
                for slot in slots:
                    slot.length += 1
                return list(alive)
        by_slot: dict[Slot, LiveSequence] = {sequence.slot: sequence for sequence in alive}
        language = self._model.language
        attend, place = attend_last(self._cache, [*by_slot], language.attend_rows_of)
        live = [by_slot[slot] for slot in attend.slots]
        tokens = [sequence.tokens[-1] for sequence in live]
        positions = [slot.length for slot in attend.slots]
        ids, at = place(np.array(tokens), np.array(positions))
        logits = language.logits(language(language.embed(ids), at, attend))
        take_tokens(live, logits)
        if self._buckets is not None:
            self._buckets.consider(attend.slots, tokens, logits)
        attend.finish()
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
        decode, constraint = self._decode, None
        if question.constraint is not None:
            constraint = self._constraints.begin(question.constraint)
            decode = constraint.decode
        text = AnswerText(question, decode)
        return LiveSequence(work, number, draw, text, max_tokens, constraint)

    def too_large(self, work: Work, number: int) -> GenerateError:
        """Return the error of a question that does not fit into an empty cache."""
        most = work.request.questions[number].max_new_tokens
        tokens = min(work.payload.prompt_tokens + most, self._model.shape.text.context)
        need = tokens * self._model.shape.kv_bytes(self._model.dtype.itemsize)
        return GenerateError(
            f"out of memory: its keys and values take {gib(need)}, "
            f"the cache may have {gib(self._cache.limit_bytes())}"
        )

    def release(self, sequences: Sequence[LiveSequence]) -> None:
        """Free the slots of sequences."""
        for sequence in sequences:
            self._cache.give_back(sequence.slot)
            sequence.slot = None

    def finish(self, sequence: LiveSequence) -> None:
        """Free the slot of a sequence that has ended, or keep its tokens for later requests."""
        words = None
        if self._cache.kept is not None:
            words = self._words(sequence.work.payload, sequence.question)
        self._cache.give_back(sequence.slot, words and [*words, *sequence.tokens])
        sequence.slot = None

    def match(self, work: Work) -> None:
        """Let a request that has not begun continue what is kept of its prompt; the tiles in it are
        not encoded.
        """
        payload = work.payload
        if self._cache.kept is None or work.is_searched:
            return
        work.is_searched = True
        is_one = len(payload.question_ids) == 1
        words = self._words(payload, 0 if is_one else None)
        if words is None:
            return
        # The last token is computed in any case: it gives the first one of the answer.
        work.prefix = self._cache.find(words[:-1] if is_one else words)
        if work.prefix is not None:
            work.cached_tokens = work.prefix.tokens
            pixels = list(payload.prefix_ids[: work.cached_tokens]).count(self._image_token_id)
            work.encoded = pixels // self._model.shape.tile_tokens

    def _words(self, payload: Payload, question: int | None) -> list[Hashable] | None:
        """Words of a prompt, see cache/prefixes.py; None if a tile has no digest.

        Args:
            payload: Its tiles and tokens.
            question: Number of the question; None for what comes before it.
        """
        if len(payload.tile_keys) != len(payload.tiles) or not all(payload.tile_keys):
            return None
        repeated = [[key] * self._model.shape.tile_tokens for key in payload.tile_keys]
        tiles = itertools.chain.from_iterable(repeated)
        image = self._image_token_id
        words: list[Hashable] = [
            next(tiles) if token == image else token for token in payload.prefix_ids
        ]
        words += payload.question_ids[question] if question is not None else ()
        return words

    def unmatch_last(self, waiting: Collection[Work]) -> bool:
        """Let the last of the waiting requests that continues a prefix compute it itself. Return
        False if none does.
        """
        work = next((work for work in reversed([*waiting]) if work.prefix is not None), None)
        if work is None:
            return False
        self.forget(work)
        if work.cached_tokens:
            work.cached_tokens, work.encoded, work.features = 0, 0, []
        return True

    def forget(self, work: Work) -> None:
        """Let a request's prefix go."""
        self._cache.let_go(work.prefix)
        work.prefix = None

    def _keep_prefix(self, leader: LiveSequence) -> None:
        """Hold a prefix that has been computed for the questions that continue it."""
        work = leader.work
        if len(work.pending) > 1:
            self.forget(work)
            work.prefix = leader.slot.beginning(len(work.payload.prefix_ids))
            self._cache.hold(work.prefix)

    def _prefill(self, sequences: list[LiveSequence]) -> None:
        """Run what is not yet computed of prompts through the language model side by side, and
        choose the next token of each answer.
        """
        language = self._model.language
        for sequence in sequences:
            self._cache.fill(sequence.slot)
        by_slot = {sequence.slot: sequence for sequence in sequences}
        segments = [Segment(s.slot, len(remaining_ids(s)[0])) for s in sequences]
        kernels = language.attend_prompt, language.attend_rows_of
        attend, place = attend_prompts(self._cache, segments, *kernels)
        sequences = [by_slot[segment.slot] for segment in attend.segments]
        prompts = join_prompts(sequences, self._image_token_id)
        ids, positions, images, ends = place(
            prompts.ids, prompts.positions, prompts.images, prompts.ends
        )
        embeds = language.embed(ids)
        if prompts.features:
            features = torch.cat(prompts.features).to(embeds.dtype)
            embeds.index_copy_(0, images, features)
        hidden = language(embeds, positions, attend)
        attend.finish()
        take_tokens(sequences, language.logits(hidden.index_select(0, ends)))
        total = len(prompts.ids)
        seconds = self._clock.lap("prefill")
        parts = zip(sequences, prompts.counts, prompts.prefixes, strict=True)
        for sequence, count, prefix in parts:
            sequence.prefill_seconds += seconds
            sequence.work.shared_seconds += seconds * prefix / total
            sequence.compute_seconds += seconds * (count - prefix) / total
            if prefix:
                sequence.work.prefill_seconds += seconds
            sequence.first_token_at = sequence.first_token_at or time.perf_counter()
        self._stats.prefill_tokens += total
        self._stats.prefill_calls += 1


def covers_prefix(work: Work, prefix: Prefix | None) -> bool:
    """True if a computed prefix reaches to a request's questions."""
    return (prefix.tokens if prefix else 0) >= len(work.payload.prefix_ids)


def take_tokens(sequences: Sequence[LiveSequence], logits: Tensor) -> None:
    """Choose the next token of every sequence and append it.

    Args:
        sequences: The sequences.
        logits: Float32, (n, vocabulary).
    """
    bits = next_bits([sequence.constraint for sequence in sequences], logits.shape[1])
    chosen, logprobs = choose_tokens(logits, [sequence.draw for sequence in sequences], bits)
    top = {
        place: logprobs[place].topk(min(count, logprobs.shape[1])) if count else None
        for place, sequence in enumerate(sequences)
        if (count := sequence.asked.logprobs) is not None
    }
    ranked = {
        place: [*zip(fetch(best.indices), fetch(best.values), strict=True)] if best else []
        for place, best in top.items()
    }
    # After everything that can run out of memory, so that a step counts whole or not at all.
    append_tokens(sequences, fetch(chosen), ranked)


def append_tokens(
    sequences: Sequence[LiveSequence],
    chosen: Sequence[Sequence[float]],
    ranked: Mapping[int, list[tuple[int, float]]] = MappingProxyType({}),
) -> None:
    """Append a token to every sequence.

    Args:
        sequences: The sequences.
        chosen: Tokens and their log-probabilities.
        ranked: By index, the most likely tokens of sequences that ask for them.
    """
    for place, (sequence, token, logprob) in enumerate(zip(sequences, *chosen, strict=True)):
        sequence.tokens.append(int(token))
        if sequence.constraint is not None:
            sequence.constraint.take(int(token))
        sequence.logprob += logprob
        if place in ranked:
            sequence.logprobs.append((logprob, ranked[place]))
        if sequence.draw is not None:
            sequence.draw.taken()
