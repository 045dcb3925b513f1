"""Prefill and decode steps on padded batches."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch

from vlmbatch.engine.base import EngineStats
from vlmbatch.engine.constraints import Constraints
from vlmbatch.engine.onnx.cache import Array, RowBatch, RowCache, RowSlot, joined, right_aligned
from vlmbatch.engine.onnx.graphs import GraphModel
from vlmbatch.engine.torch.clock import BusyClock
from vlmbatch.engine.torch.prompts import join_prompts
from vlmbatch.engine.torch.scheduler import LiveSequence
from vlmbatch.engine.torch.step import Steps, take_tokens

PADDING_SHARE = 0.25
"""Padding that a prefill may have: with more, the prompts are computed in several calls."""
CHUNK_TOKENS = 1024
"""Tokens of a prompt in one call: scores grow with tokens times columns."""


@dataclasses.dataclass(frozen=True)
class Prompt:
    """The part of a prompt that is to be computed.

    Attributes:
        sequence: Its sequence.
        embeds: Embeddings (tokens, hidden).
        prefix: Number of the tokens that all questions of the request share.
    """

    sequence: LiveSequence
    embeds: Array
    prefix: int

    @property
    def is_begun(self) -> bool:
        """True if it continues a prefix that is computed."""
        return self.sequence.slot.begun is not None


class PaddedSteps(Steps):
    """Steps of the torch engine, computed by the graphs."""

    def __init__(
        self,
        model: GraphModel,
        cache: RowCache,
        stats: EngineStats,
        clock: BusyClock,
        decode: Callable[[Sequence[int]], str],
        constraints: Constraints,
    ) -> None:
        """See ``Steps``."""
        network: Any = model
        places: Any = cache
        super().__init__(network, places, stats, clock, decode, None, None, constraints)
        self._graphs, self._rows = model.language, cache

    def decode(self, alive: Sequence[LiveSequence]) -> list[LiveSequence]:
        """See ``Steps``."""
        by_slot = {sequence.slot: sequence for sequence in alive}
        batch = self._rows.current()
        rows = [(row, by_slot[slot]) for row, slot in enumerate(batch.slots) if slot is not None]
        ids, positions = (np.zeros((len(batch.slots), 1), np.int64) for _ in range(2))
        for row, sequence in rows:
            ids[row] = sequence.tokens[-1]
            positions[row] = sequence.slot.length
        embeds = self._embed(ids)
        mask = np.pad(batch.mask, ((0, 0), (0, 1)), constant_values=1)
        logits, values = self._graphs(embeds, mask, positions, batch.values)
        live = [sequence for _, sequence in rows]
        take_tokens(live, logits[[row for row, _ in rows]])
        batch.mask, batch.values = mask, values
        seconds = self._clock.lap("decode")
        for sequence in live:
            sequence.slot.length += 1
            sequence.compute_seconds += seconds / len(live)
            sequence.batch_size = max(sequence.batch_size, len(live))
        self._stats.decode_steps += 1
        self._stats.decode_tokens += len(live)
        return live

    def _embed(self, ids: Array) -> Array:
        embeds = self._graphs.embed(torch.from_numpy(ids.reshape(-1))).numpy()
        return embeds.reshape(*ids.shape, -1)

    def _prefill(self, sequences: list[LiveSequence]) -> None:
        """See ``Steps``; prompts of like lengths share a call."""
        prompts = []
        for sequence in sequences:
            self._rows.fill(sequence.slot)
            joined_prompt = join_prompts([sequence], self._image_token_id)
            embeds = self._graphs.embed(torch.from_numpy(joined_prompt.ids))
            if joined_prompt.features:
                features = torch.cat(joined_prompt.features).to(embeds.dtype)
                embeds.index_copy_(0, torch.from_numpy(joined_prompt.images), features)
            prompts.append(Prompt(sequence, embeds.numpy(), joined_prompt.prefixes[0]))
        for group in _alike(prompts):
            self._prefill_group(group)

    def _prefill_group(self, group: list[Prompt]) -> None:
        slots: list[RowSlot] = [prompt.sequence.slot for prompt in group]
        lengths = [len(prompt.embeds) for prompt in group]
        embeds = joined([prompt.embeds[np.newaxis] for prompt in group])[:, 0]
        counted = right_aligned(lengths)
        before = np.array([slot.length for slot in slots])[:, np.newaxis]
        positions = before + np.maximum(counted.cumsum(1) - 1, 0)
        mask, values = counted[:, :0], []
        begun = [slot.begun for slot in slots if slot.begun is not None]
        if begun:
            mask = right_aligned([slot.length for slot in slots])
            layers = zip(*begun, strict=True)
            values = [self._graphs.place(joined(rows)) for rows in layers]
        for begin in range(0, max(lengths), CHUNK_TOKENS):
            part = slice(begin, begin + CHUNK_TOKENS)
            mask = np.concatenate((mask, counted[:, part]), 1)
            logits, values = self._graphs(embeds[:, part], mask, positions[:, part], values)
        take_tokens([prompt.sequence for prompt in group], logits)
        for slot, length in zip(slots, lengths, strict=True):
            slot.length, slot.begun = slot.length + length, None
        self._rows.add(RowBatch([*slots], mask, values))
        self._count(group, sum(lengths))

    def _count(self, group: list[Prompt], total: int) -> None:
        seconds = self._clock.lap("prefill")
        for prompt in group:
            sequence, length = prompt.sequence, len(prompt.embeds)
            sequence.prefill_seconds += seconds
            sequence.work.shared_seconds += seconds * prompt.prefix / total
            sequence.compute_seconds += seconds * (length - prompt.prefix) / total
            if prompt.prefix:
                sequence.work.prefill_seconds += seconds
            sequence.first_token_at = sequence.first_token_at or time.perf_counter()
        self._stats.prefill_tokens += total
        self._stats.prefill_calls += 1


def _alike(prompts: list[Prompt]) -> Iterator[list[Prompt]]:
    """Group prompts that begin alike, with or without a prefix that is computed, and so that little
    of a call is padding.
    """
    group: list[Prompt] = []
    filled = 0
    for prompt in sorted(prompts, key=lambda each: (each.is_begun, len(each.embeds))):
        length = len(prompt.embeds)
        whole = length * (len(group) + 1)
        is_padded = whole - filled - length > PADDING_SHARE * whole
        if group and (is_padded or group[0].is_begun != prompt.is_begun):
            yield group
            group, filled = [], 0
        group.append(prompt)
        filled += length
    yield group
