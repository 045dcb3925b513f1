"""KV cache: arenas of equally long slots, one slot a sequence, and attention over them.

Slots are grouped by capacity, so a short answer beside a long clip costs neither memory nor
attention for the clip's length. Live slots are contiguous at the front of their arena; the last one
moves into a freed slot. So a decode step attends over one view per arena, without copying.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from vlmbatch.engine.torch.attention import (
    AttendPrompt,
    AttendRows,
    attend_prompt,
    attend_rows_in_products,
)
from vlmbatch.engine.torch.shape import TextShape

_serials = itertools.count()


def slot_capacity(tokens: int) -> int:
    """Round a number of tokens up to a slot's capacity: multiples of 64, above 512 in steps of an
    eighth of the power of two below.
    """
    step = 64 if tokens <= 512 else 1 << ((tokens - 1).bit_length() - 4)
    return -(-tokens // step) * step


@dataclasses.dataclass(eq=False, slots=True)
class Slot:
    """A sequence's place in an arena.

    Attributes:
        arena: The arena.
        number: Its index there; changes when another slot is freed.
        length: Number of tokens stored.
    """

    arena: Arena
    number: int
    length: int = 0


class Arena:
    """Slots of one capacity, layer by layer: keys and values (slots, kv_heads, capacity, D).

    Attributes:
        transposed_keys: Whether keys are transposed in memory: tokens contiguous, not D.
        serial: Version of the tensors; it changes when they are reallocated.
    """

    def __init__(
        self,
        shape: TextShape,
        capacity: int,
        device: torch.device,
        dtype: torch.dtype,
        *,
        transposed_keys: bool = False,
    ) -> None:
        self.shape, self.capacity, self.device, self.dtype, self.transposed_keys = (
            shape,
            capacity,
            device,
            dtype,
            transposed_keys,
        )
        self.slots: list[Slot] = []
        self.allocated = 0
        self.keys: list[Tensor] = []
        self.values: list[Tensor] = []
        self.serial = next(_serials)

    @property
    def slot_bytes(self) -> int:
        """Bytes of a slot over all layers."""
        return (
            2
            * self.shape.layers
            * self.shape.kv_heads
            * self.shape.head_dim
            * self.capacity
            * self.dtype.itemsize
        )

    def grow(self, count: int) -> None:
        """Reallocate for ``count`` slots, one layer at a time, so that only one layer is held
        twice.
        """
        self.serial = next(_serials)
        try:
            for store in (self.keys, self.values):
                for layer in range(self.shape.layers):
                    fresh = self._zeros(
                        count, transposed=self.transposed_keys and store is self.keys
                    )
                    if layer < len(store):
                        fresh[: len(self.slots)] = store[layer][: len(self.slots)]
                        store[layer] = fresh
                    else:
                        store.append(fresh)
        finally:
            # If memory runs out midway, some layers have more slots than others. That is harmless.
            full = len(self.keys) == len(self.values) == self.shape.layers
            self.allocated = min(len(layer) for layer in (*self.keys, *self.values)) if full else 0

    def _zeros(self, count: int, *, transposed: bool) -> Tensor:
        head = (
            (self.shape.head_dim, self.capacity)
            if transposed
            else (self.capacity, self.shape.head_dim)
        )
        fresh = torch.zeros(
            (count, self.shape.kv_heads, *head), device=self.device, dtype=self.dtype
        )
        return fresh.transpose(2, 3) if transposed else fresh

    def take(self) -> Slot:
        """Take a free slot. There must be one."""
        slot = Slot(self, len(self.slots))
        self.slots.append(slot)
        return slot

    def give_back(self, slot: Slot) -> None:
        """Free a slot; the last live one moves into its place."""
        last = self.slots.pop()
        if last is slot:
            return
        for store in (self.keys, self.values):
            for layer in store:
                layer[slot.number, :, : last.length] = layer[last.number, :, : last.length]
        last.number = slot.number
        self.slots[slot.number] = last

    def copy_prefix(self, source: Sequence[tuple[Tensor, Tensor]], slot: Slot, tokens: int) -> None:
        """Copy keys and values of a prefix, a pair (kv_heads, tokens, D) per layer, to the front of
        a slot.
        """
        for layer, (keys, values) in enumerate(source):
            self.keys[layer][slot.number, :, :tokens] = keys
            self.values[layer][slot.number, :, :tokens] = values
        slot.length = tokens

    def prefix(self, slot: Slot, tokens: int) -> list[tuple[Tensor, Tensor]]:
        """Return views of the first tokens of a slot, a pair (kv_heads, tokens, D) per layer."""
        return [
            (k[slot.number, :, :tokens], v[slot.number, :, :tokens])
            for k, v in zip(self.keys, self.values, strict=True)
        ]


class Cache:
    """All arenas of an engine."""

    def __init__(
        self,
        shape: TextShape,
        device: torch.device,
        dtype: torch.dtype,
        attend_rows: AttendRows = F.scaled_dot_product_attention,
    ) -> None:
        self.shape, self.device, self.dtype = shape, device, dtype
        self.attend_rows = attend_rows
        self.transposed_keys = attend_rows is attend_rows_in_products
        self.arenas: dict[int, Arena] = {}

    @property
    def allocated_bytes(self) -> int:
        """Bytes of all slots, live or not."""
        return sum(arena.allocated * arena.slot_bytes for arena in self.arenas.values())

    def take(self, tokens: int, has_room: Callable[[int], bool]) -> Slot | None:
        """Take a slot, or return None if memory has no room for it.

        Args:
            tokens: Maximum number of tokens.
            has_room: True if the cache may grow by this many bytes.
        """
        capacity = slot_capacity(min(tokens, self.shape.context))
        arena = self.arenas.get(capacity) or Arena(
            self.shape, capacity, self.device, self.dtype, transposed_keys=self.transposed_keys
        )
        if len(arena.slots) == arena.allocated:
            # Doubling keeps copying linear; without room for that, add one slot. Free empty arenas
            # first.
            steps = dict.fromkeys((max(4, arena.allocated), 1))
            grow = next(
                (
                    count
                    for count in steps
                    if self._fits(count * arena.slot_bytes, capacity, has_room)
                ),
                None,
            )
            if grow is None:
                return None
            arena.grow(arena.allocated + grow)
        self.arenas[capacity] = arena
        return arena.take()

    def release_empty(self, keep: int | None = None) -> int:
        """Free arenas without live slots, except for one capacity. Return the bytes freed."""
        empty = [
            capacity
            for capacity, arena in self.arenas.items()
            if not arena.slots and capacity != keep
        ]
        return sum(arena.allocated * arena.slot_bytes for arena in map(self.arenas.pop, empty))

    def _fits(self, grow_bytes: int, capacity: int, has_room: Callable[[int], bool]) -> bool:
        return has_room(grow_bytes) or (
            self.release_empty(keep=capacity) > 0 and has_room(grow_bytes)
        )


@dataclasses.dataclass(frozen=True)
class Segment:
    """Tokens of one sequence in a prefill: its slot and their number."""

    slot: Slot
    tokens: int


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
        begin, end = slot.length, slot.length + tokens
        keys, values = slot.arena.keys[layer][slot.number], slot.arena.values[layer][slot.number]
        keys[:, begin:end] = key.transpose(0, 1)
        values[:, begin:end] = value.transpose(0, 1)
        return self.attend(query.transpose(0, 1), keys[:, :end], values[:, :end]).reshape(
            tokens, -1
        )

    def finish(self) -> None:
        """Add the tokens to their slots' lengths, after the last layer."""
        for segment in self.segments:
            segment.slot.length += segment.tokens


DecodeGroup = tuple[Arena, int, Tensor, Tensor, int, Tensor | None]
"""One arena in a decode step: the arena, number of live slots, their indices and the positions of
their new tokens (slots,), the longest length, and the mask.
"""


def wide_mask(shape: TextShape, ends: Tensor, longest: int, dtype: torch.dtype) -> Tensor:
    """Additive mask over ``longest`` positions, (slots, kv_heads, queries per key head, longest).

    It is 0 up to the position of the slot's new token, ``ends`` (slots,), and minus infinity after
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
    """Attention of one new token for every live slot, arena by arena.

    Queries that share a key head are rows of one query matrix, so keys are never repeated. Tokens
    must come in the order of ``slots``.
    """

    def __init__(self, cache: Cache) -> None:
        self.attend_rows = cache.attend_rows
        self.groups: list[DecodeGroup] = []
        self.slots: list[Slot] = []
        for arena in cache.arenas.values():
            count = len(arena.slots)
            if not count:
                continue
            lengths = [slot.length for slot in arena.slots]
            longest = max(lengths) + 1
            ends = torch.tensor(lengths, device=cache.device)
            mask = None
            if min(lengths) + 1 < longest:
                mask = wide_mask(cache.shape, ends, longest, cache.dtype)
            self.groups.append(
                (arena, count, torch.arange(count, device=cache.device), ends, longest, mask)
            )
            self.slots += arena.slots

    def __call__(self, layer: int, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """See ``Attend``."""
        if len(self.groups) == 1:  # the common case, without a split
            return self._attend(self.groups[0], layer, query, key, value)
        counts = [group[1] for group in self.groups]
        divided = zip(
            self.groups, query.split(counts), key.split(counts), value.split(counts), strict=True
        )
        return torch.cat([self._attend(group, layer, q, k, v) for group, q, k, v in divided])

    def _attend(
        self, group: DecodeGroup, layer: int, query: Tensor, key: Tensor, value: Tensor
    ) -> Tensor:
        arena, count, numbers, ends, longest, mask = group
        keys, values = arena.keys[layer], arena.values[layer]
        keys[numbers, :, ends] = key
        values[numbers, :, ends] = value
        q = query.reshape(count, key.shape[1], -1, key.shape[2])
        k, v = (store.narrow(0, 0, count).narrow(2, 0, longest) for store in (keys, values))
        return self.attend_rows(q, k, v, attn_mask=mask).reshape(count, -1)

    def finish(self) -> None:
        """Add the token to every slot's length, after the last layer."""
        for slot in self.slots:
            slot.length += 1
