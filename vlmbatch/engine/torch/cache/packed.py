"""Attention of rows of tokens over a pool with tokens first, for GPUs: all rows of a chunk at once.

A row is the new tokens of one sequence, many in a prefill and one in a decode step. It is an offset
in the chunk and two numbers of tokens, so that rows of any lengths, anywhere, are one call: to
FlashAttention with variable lengths where that is (CUDA, 16 bits), else to torch's attention, once
for all rows of equal lengths.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
from collections.abc import Iterator, Sequence
from typing import Protocol

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from vlmbatch.engine.torch.cache.pool import Chunk
from vlmbatch.engine.torch.cache.slots import Slot
from vlmbatch.engine.torch.cuda.transfers import upload_all


@dataclasses.dataclass(frozen=True)
class Segment:
    """Tokens of one sequence in a step: its slot and their number."""

    slot: Slot
    tokens: int


@dataclasses.dataclass(frozen=True)
class Span:
    """A row as the host knows it.

    Attributes:
        tokens: Number of its new tokens.
        length: Number of tokens that the last of them attends, itself included.
    """

    tokens: int
    length: int


@dataclasses.dataclass(frozen=True)
class Rows:
    """Rows of tokens side by side, on the device.

    Attributes:
        spans: The rows as the host knows them; empty in a recorded step, whose rows change.
        begins: First token of each row among the new ones, and their number: int32 (rows + 1,).
        places: First token of each row's extent in the chunk, int32 (rows + 1,); the last one is
            not used.
        lengths: Number of tokens to attend, int32 (rows,).
        written: The token of the chunk that each new one becomes, int64 (tokens,).
        longest_row, longest: Most new tokens, and most tokens to attend, of a row.
    """

    spans: Sequence[Span]
    begins: Tensor
    places: Tensor
    lengths: Tensor
    written: Tensor
    longest_row: int
    longest: int

    @functools.cached_property
    def groups(self) -> list[tuple[int, Span, Tensor]]:
        """Rows of equal lengths that follow one another: their number, their lengths, and the
        tokens of the chunk that they attend, int64 (rows, length).
        """
        found, begin = [], 0
        for span, alike in itertools.groupby(self.spans):
            count = len(list(alike))
            steps = torch.arange(span.length, device=self.places.device)
            seen = self.places[begin : begin + count, None].to(torch.int64) + steps
            found.append((count, span, seen))
            begin += count
        return found


class AttendRowsOf(Protocol):
    """Attention of rows of tokens over a chunk; causal within a row."""

    def __call__(self, query: Tensor, keys: Tensor, values: Tensor, rows: Rows) -> Tensor:
        """Map queries (tokens, heads, D), and a chunk's keys and values (chunk tokens, kv_heads, D)
        to the shape of the queries.
        """
        ...


def attend_varlen(query: Tensor, keys: Tensor, values: Tensor, rows: Rows) -> Tensor:
    """See ``AttendRowsOf``; by FlashAttention, which computes in 16 bits on CUDA."""
    from torch.nn.attention.varlen import varlen_attn

    found = varlen_attn(
        query.contiguous(),
        keys,
        values,
        rows.begins,
        rows.places,
        rows.longest_row,
        rows.longest,
        window_size=(-1, 0) if rows.longest_row > 1 else (-1, -1),
        enable_gqa=query.shape[1] != keys.shape[1],
        seqused_k=rows.lengths,
    )
    assert isinstance(found, Tensor)  # a tuple where more was asked for
    return found


def attend_grouped(query: Tensor, keys: Tensor, values: Tensor, rows: Rows) -> Tensor:
    """See ``AttendRowsOf``; by torch's attention, once for all rows of equal lengths."""
    outputs, begin = [], 0
    repeated = query.shape[1] // keys.shape[1]
    for count, span, seen in rows.groups:
        end = begin + count * span.tokens
        q = query[begin:end].view(count, span.tokens, *query.shape[1:]).transpose(1, 2)
        k, v = (
            store[seen].transpose(1, 2).repeat_interleave(repeated, dim=1)
            for store in (keys, values)
        )
        mask = None
        if 1 < span.tokens < span.length:
            mask = torch.ones(span.tokens, span.length, dtype=torch.bool, device=q.device)
            mask = mask.tril(span.length - span.tokens)
        out = F.scaled_dot_product_attention(
            q.contiguous(), k, v, attn_mask=mask, is_causal=1 < span.tokens == span.length
        )
        outputs.append(out.transpose(1, 2).reshape(-1, *query.shape[1:]))
        begin = end
    return outputs[0] if len(outputs) == 1 else torch.cat(outputs)


class PackedAttention:
    """Attention of segments, each over its own slot: all stored tokens, and causal within the
    segment. Tokens must come in the order of ``segments``.
    """

    def __init__(self, segments: Sequence[Segment], attend: AttendRowsOf) -> None:
        self._attend = attend

        def alike(segment: Segment) -> tuple[int, ...]:
            return segment.slot.extent.chunk.serial, segment.tokens, segment.slot.length

        self.segments = sorted(segments, key=alike)
        self._parts: list[tuple[Chunk, int, Rows]] = []

    @property
    def slots(self) -> list[Slot]:
        """The slots in order."""
        return [segment.slot for segment in self.segments]

    def upload(self, device: torch.device, *others: npt.NDArray[np.int64]) -> list[Tensor]:
        """Copy the places of all tokens to the device, and other int64 vectors with them; return
        these.
        """
        by_chunk = [
            list(group)
            for _, group in itertools.groupby(self.segments, lambda s: s.slot.extent.chunk.serial)
        ]
        arrays = [array for group in by_chunk for array in _arrays(group)]
        found = upload_all(device, *others, *arrays)
        tensors = iter(found[len(others) :])
        for group in by_chunk:
            begins, places, lengths, written = itertools.islice(tensors, 4)
            spans = [Span(s.tokens, s.slot.length + s.tokens) for s in group]
            rows = Rows(
                spans,
                begins.to(torch.int32),
                places.to(torch.int32),
                lengths.to(torch.int32),
                written,
                max(span.tokens for span in spans),
                max(span.length for span in spans),
            )
            self._parts.append((group[0].slot.extent.chunk, len(written), rows))
        return found[: len(others)]

    def __call__(self, layer: int, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """See ``Attend``."""
        if len(self._parts) == 1:  # the common case, without a split
            return self._attend_part(0, layer, query, key, value)
        counts = [count for _, count, _ in self._parts]
        split = zip(query.split(counts), key.split(counts), value.split(counts), strict=True)
        return torch.cat([self._attend_part(n, layer, *part) for n, part in enumerate(split)])

    def _attend_part(
        self, number: int, layer: int, query: Tensor, key: Tensor, value: Tensor
    ) -> Tensor:
        chunk, _, rows = self._parts[number]
        keys, values = write(chunk, layer, rows.written, key, value)
        return self._attend(query, keys, values, rows).flatten(1)

    def finish(self) -> None:
        """Add the tokens to their slots' lengths, after the last layer."""
        for segment in self.segments:
            segment.slot.length += segment.tokens


def write(
    chunk: Chunk, layer: int, written: Tensor, key: Tensor, value: Tensor
) -> tuple[Tensor, Tensor]:
    """Store keys and values (tokens, kv_heads, D) as tokens of a chunk; return all of the chunk's,
    (chunk tokens, kv_heads, D).
    """
    stores = chunk.keys[layer], chunk.values[layer]
    for store, new in zip(stores, (key, value), strict=True):
        store.view(chunk.tokens, -1).index_copy_(0, written, new.flatten(1))
    size = (chunk.tokens, *key.shape[1:])
    return stores[0].view(size), stores[1].view(size)


def _arrays(segments: Sequence[Segment]) -> Iterator[npt.NDArray[np.int64]]:
    """The vectors of ``Rows`` in int64: begins, places, lengths, written."""
    tokens = np.array([segment.tokens for segment in segments])
    places = np.array([segment.slot.extent.begin for segment in segments])
    before = np.array([segment.slot.length for segment in segments])
    begins = np.concatenate(([0], tokens.cumsum()))
    yield begins
    yield np.append(places, places[-1])
    yield before + tokens
    # Token t of all, in row r, is number t - begins[r] of it.
    yield np.arange(begins[-1]) + np.repeat(places + before - begins[:-1], tokens)
