"""Prefill and decode steps."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Collection, Hashable, Sequence

import torch
from torch import Tensor

from vlmbatch.engine.answer_text import AnswerText
from vlmbatch.engine.base import EngineStats
from vlmbatch.engine.torch.budget import gib
from vlmbatch.engine.torch.cache import (
    Cache,
    DecodeAttention,
    PrefillAttention,
    Prefix,
    Segment,
    Slot,
)
from vlmbatch.engine.torch.clock import BusyClock
from vlmbatch.engine.torch.cpu.trial import BackgroundDecoder
from vlmbatch.engine.torch.cuda.buckets import BucketDecoder
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
        native: BackgroundDecoder | None = None,
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
        """
        self._model, self._cache = model, cache
        self._stats, self._clock, self._decode = stats, clock, decode
        self._buckets, self._native = buckets, native
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
        by_slot: dict[Slot, LiveSequence] = {sequence.slot: sequence for sequence in alive}
        attend = DecodeAttention(self._cache, list(by_slot))
        live = [by_slot[slot] for slot in attend.slots]
        language, device = self._model.language, self._model.device
        last = [sequence.tokens[-1] for sequence in live]

        def ordinary() -> Tensor:
            positions = torch.tensor([slot.length for slot in attend.slots], device=device)
            embeds = language.embed(torch.tensor(last, device=device))
            return language.logits(language(embeds, positions, attend))

        buckets = self._buckets
        take_tokens(live, buckets.logits(attend.slots, last, ordinary) if buckets else ordinary())
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
        return LiveSequence(work, number, draw, AnswerText(question, self._decode), max_tokens)

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
        language, device = self._model.language, self._model.device
        embeds, positions, segments, shared = [], [], [], []
        for sequence in sequences:
            self._cache.fill(sequence.slot)
            work, start = sequence.work, sequence.slot.length
            prefix = max(0, len(work.payload.prefix_ids) - start)
            question = work.prompt_ids(sequence.question)
            question = question[max(0, start - len(work.payload.prefix_ids)) :]
            if prefix:
                embeds.append(self._prefix_embeds(work, start))
            embeds.append(language.embed(torch.tensor(question, device=device)))
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
            if prefix:
                sequence.work.prefill_seconds += seconds
            sequence.first_token_at = sequence.first_token_at or time.perf_counter()
        self._stats.prefill_tokens += total
        self._stats.prefill_calls += 1

    def _prefix_embeds(self, work: Work, start: int) -> Tensor:
        """Embeddings (tokens, hidden) of a prefix from a token on, with vision features in place of
        the image tokens.
        """
        ids = torch.tensor(work.payload.prefix_ids[start:], device=self._model.device)
        embeds = self._model.language.embed(ids)
        if work.features:
            places = ids == self._image_token_id
            features = torch.cat(work.features)
            embeds[places] = features[len(features) - int(places.sum()) :].to(embeds.dtype)
        return embeds


def covers_prefix(work: Work, prefix: Prefix | None) -> bool:
    """True if a computed prefix reaches to a request's questions."""
    return (prefix.tokens if prefix else 0) >= len(work.payload.prefix_ids)


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
