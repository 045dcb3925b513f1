"""Attention over the pool: of prompts on a CPU, and of one new token for each of many sequences.
packed.py has that of GPUs.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from vlmbatch.engine.torch.attention import (
    AttendPrompt,
    attend_prompt,
    attend_rows_in_products,
    attend_shared,
    attend_shared_in_products,
)
from vlmbatch.engine.torch.cache.packed import (
    AttendRowsOf,
    PackedAttention,
    Segment,
    attend_varlen,
)
from vlmbatch.engine.torch.cache.pool import Chunk
from vlmbatch.engine.torch.cache.prefixes import Piece
from vlmbatch.engine.torch.cache.slots import Cache, Slot, piece_views
from vlmbatch.engine.torch.cuda.transfers import upload_all
from vlmbatch.engine.torch.shape import TextShape

Place = Callable[..., list[Tensor]]
"""Takes int64 vectors to the device, with those that an attention needs."""

HOLE_TOKENS = 512
"""Tokens of extents that belong to no sequence of a step and are attended nevertheless, if that
leaves one product in the place of two: about what starting another one costs.
"""


class PrefillAttention:
    """Attention of segments, each over its own slot: all stored tokens, and causal within the
    segment.
    """

    def __init__(self, segments: Sequence[Segment], attend: AttendPrompt = attend_prompt) -> None:
        self.segments, self.attend = segments, attend

    def __call__(self, layer: int, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """See ``Attend``."""
        outputs, begin = [], 0
        for segment in self.segments:
            end = begin + segment.tokens
            outputs.append(
                self._attend(segment, layer, query[begin:end], key[begin:end], value[begin:end])
            )
            begin = end
        return outputs[0] if len(outputs) == 1 else torch.cat(outputs)

    def _attend(
        self, segment: Segment, layer: int, query: Tensor, key: Tensor, value: Tensor
    ) -> Tensor:
        slot, tokens = segment.slot, segment.tokens
        begin = slot.own_length
        keys, values = slot.views(layer, begin + tokens)
        keys[:, begin:] = key.transpose(0, 1)
        values[:, begin:] = value.transpose(0, 1)
        if slot.shared:
            before = [piece_views(piece, layer) for piece in slot.shared]
            keys = torch.cat([*(each for each, _ in before), keys], dim=1)
            values = torch.cat([*(each for _, each in before), values], dim=1)
        return self.attend(query.transpose(0, 1), keys, values).reshape(tokens, -1)

    @property
    def slots(self) -> list[Slot]:
        """The slots in order."""
        return [segment.slot for segment in self.segments]

    def finish(self) -> None:
        """Add the tokens to their slots' lengths, after the last layer."""
        for segment in self.segments:
            segment.slot.length += segment.tokens


@dataclasses.dataclass(frozen=True)
class DecodeGroup:
    """Sequences of a decode step whose extents stand side by side.

    Attributes:
        chunk: Where they are.
        begin: The first token of the first extent.
        capacity: Tokens of an extent.
        span: Number of extents, holes included.
        places: The sequences' extents among them (sequences,).
        ends: Position of each new token in its extent (sequences,).
        longest: Tokens of the longest sequence's extent that are attended.
        mask: Hides what lies behind a sequence's end, see ``wide_mask``; None if nothing does.
        shared: The pieces that all of them continue.
    """

    chunk: Chunk
    begin: int
    capacity: int
    span: int
    places: Tensor
    ends: Tensor
    longest: int
    mask: Tensor | None
    shared: tuple[Piece, ...]


def wide_mask(shape: TextShape, ends: Tensor, longest: int, dtype: torch.dtype) -> Tensor:
    """Additive mask over ``longest`` positions, (rows, kv_heads, queries per key head, longest).

    It is 0 up to the position of the row's new token, ``ends`` (rows,), and minus infinity after
    it.
    """
    hidden = torch.arange(longest, device=ends.device) > ends[:, None]
    mask = torch.zeros(hidden.shape, dtype=dtype, device=ends.device).masked_fill_(
        hidden, -torch.inf
    )
    return mask[:, None, None, :].expand(
        len(ends), shape.kv_heads, shape.heads // shape.kv_heads, longest
    )


class DecodeAttention:
    """Attention of one new token for each of many slots, group by group.

    Queries that share a key head are rows of one query matrix, so keys are never repeated. Tokens
    must come in the order of ``slots``.
    """

    def __init__(self, cache: Cache, slots: Sequence[Slot]) -> None:
        self._cache = cache
        self.groups: list[DecodeGroup] = []
        self.slots: list[Slot] = []
        for alike in _side_by_side(slots):
            self.groups.append(_group(cache, alike))
            self.slots += alike

    def __call__(self, layer: int, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """See ``Attend``."""
        if len(self.groups) == 1:  # the common case, without a split
            return self._attend(self.groups[0], layer, query, key, value)
        counts = [len(group.places) for group in self.groups]
        divided = zip(
            self.groups, query.split(counts), key.split(counts), value.split(counts), strict=True
        )
        return torch.cat([self._attend(group, layer, q, k, v) for group, q, k, v in divided])

    def _attend(
        self, group: DecodeGroup, layer: int, query: Tensor, key: Tensor, value: Tensor
    ) -> Tensor:
        count = len(group.places)
        k, v = group.chunk.views(layer, group.begin, group.capacity, group.span, group.longest)
        k[group.places, :, group.ends] = key
        v[group.places, :, group.ends] = value
        q = query.reshape(count, key.shape[1], -1, key.shape[2])
        if group.span > count:
            q = q.new_zeros(group.span, *q.shape[1:]).index_copy_(0, group.places, q)
        if group.shared:
            before = [piece_views(piece, layer) for piece in group.shared]
            in_products = self._cache.attend_rows is attend_rows_in_products
            attend = attend_shared_in_products if in_products else attend_shared
            out = attend(q, k, v, group.mask, before)
        else:
            out = self._cache.attend_rows(q, k, v, attn_mask=group.mask)
        if group.span > count:
            out = out.index_select(0, group.places)
        return out.reshape(count, -1)

    def finish(self) -> None:
        """Add the token to every slot's length, after the last layer."""
        for slot in self.slots:
            slot.length += 1


def attend_prompts(
    cache: Cache, segments: Sequence[Segment], attend: AttendPrompt, rows: AttendRowsOf | None
) -> tuple[PrefillAttention | PackedAttention, Place]:
    """Return the attention of a prefill and the way of its tokens to the device.

    Args:
        cache: The KV cache.
        segments: The prompts.
        attend: Attention of one prompt.
        rows: Attention of all of them, or None.
    """
    if rows is None:
        place = functools.partial(upload_all, cache.device)
        return PrefillAttention(segments, attend), place
    packed = PackedAttention(segments, rows)
    return packed, functools.partial(packed.upload, cache.device)


def attend_last(
    cache: Cache, slots: Sequence[Slot], rows: AttendRowsOf | None
) -> tuple[DecodeAttention | PackedAttention, Place]:
    """Return the attention of one new token for each slot and the way of these to the device."""
    if rows is attend_varlen:
        packed = PackedAttention([Segment(slot, 1) for slot in slots], rows)
        return packed, functools.partial(packed.upload, cache.device)
    return DecodeAttention(cache, slots), functools.partial(upload_all, cache.device)


def _side_by_side(slots: Sequence[Slot]) -> Iterator[list[Slot]]:
    """Divide slots into groups that one product attends for: with the same pieces before them, in
    extents of one capacity that are an equal distance apart, without large holes.
    """

    def alike(slot: Slot) -> tuple[int, ...]:
        extent = slot.extent
        before = [part for piece in slot.shared for part in (id(piece.extent), piece.tokens)]
        remainder = extent.begin % extent.capacity
        return (extent.chunk.serial, extent.capacity, remainder, *before)

    ordered = sorted(slots, key=lambda slot: (alike(slot), slot.extent.begin))
    for _, same in itertools.groupby(ordered, key=alike):
        group: list[Slot] = []
        for slot in same:
            if group:
                last, extent = group[-1].extent, slot.extent
                holes = (extent.begin - last.begin) // extent.capacity - 1
                if holes * (max(each.own_length for each in group) + 1) > HOLE_TOKENS:
                    yield group
                    group = []
            group.append(slot)
        yield group


def _group(cache: Cache, slots: Sequence[Slot]) -> DecodeGroup:
    first = slots[0].extent
    places = [(slot.extent.begin - first.begin) // first.capacity for slot in slots]
    span = places[-1] + 1
    lengths = [slot.own_length for slot in slots]
    longest = max(lengths) + 1
    ends = torch.tensor(lengths, device=cache.device)
    mask = None
    if min(lengths) + 1 < longest:
        all_ends = ends
        if span > len(slots):
            all_ends = torch.zeros(span, dtype=torch.int64, device=cache.device)
            all_ends[torch.tensor(places, device=cache.device)] = ends
        mask = wide_mask(cache.shape, all_ends, longest, cache.dtype)
    return DecodeGroup(
        first.chunk,
        first.begin,
        first.capacity,
        span,
        torch.tensor(places, device=cache.device),
        ends,
        longest,
        mask,
        slots[0].shared,
    )
