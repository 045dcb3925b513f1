"""Keys and values: arenas of equally long rows, one row a sequence, and attention over them.

Rows are grouped by capacity, so that a short answer beside a long clip costs neither memory nor
attention for the clip's length. Live rows stand side by side at the front of their arena; a row
that is given back is filled by the last one. So a decode step attends over one view per arena,
without copying.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from vlmbatch.engine.torch.attention import attend_prompt, attend_rows_in_products
from vlmbatch.engine.torch.model import AttendPrompt, AttendRows
from vlmbatch.engine.torch.shape import TextShape

_serials = itertools.count()


def row_capacity(tokens: int) -> int:
    """The capacity of a row for so many tokens: multiples of 64, from 512 on in steps of an eighth
    of the power of two below.
    """
    step = 64 if tokens <= 512 else 1 << ((tokens - 1).bit_length() - 4)
    return -(-tokens // step) * step


@dataclasses.dataclass(eq=False, slots=True)
class Row:
    """A sequence's place in an arena.

    Attributes:
        arena: The arena.
        number: Its row there; changes when another row is given back.
        length: Tokens that it holds.
    """

    arena: Arena
    number: int
    length: int = 0


class Arena:
    """Rows of one capacity, layer by layer: keys and values (rows, kv_heads, capacity, D).

    Attributes:
        turned: Whether tokens, and not the numbers of one token, lie side by side in the memory of
            keys.
        serial: Names the tensors: another one when they have been replaced.
    """

    def __init__(
        self,
        shape: TextShape,
        capacity: int,
        device: torch.device,
        dtype: torch.dtype,
        *,
        turned: bool = False,
    ) -> None:
        self.shape, self.capacity, self.device, self.dtype, self.turned = (
            shape,
            capacity,
            device,
            dtype,
            turned,
        )
        self.rows: list[Row] = []
        self.allocated = 0
        self.keys: list[Tensor] = []
        self.values: list[Tensor] = []
        self.serial = next(_serials)

    @property
    def row_bytes(self) -> int:
        """Bytes of a row over all layers."""
        return (
            2
            * self.shape.layers
            * self.shape.kv_heads
            * self.shape.head_dim
            * self.capacity
            * self.dtype.itemsize
        )

    def grow(self, rows: int) -> None:
        """Makes room for so many rows, one layer after the other, so that only one layer is there
        twice meanwhile.
        """
        self.serial = next(_serials)
        try:
            for store in (self.keys, self.values):
                for layer in range(self.shape.layers):
                    fresh = self._zeros(rows, turned=self.turned and store is self.keys)
                    if layer < len(store):
                        fresh[: len(self.rows)] = store[layer][: len(self.rows)]
                        store[layer] = fresh
                    else:
                        store.append(fresh)
        finally:
            # Out of memory half-way: some layers have more rows than others, which harms nothing.
            full = len(self.keys) == len(self.values) == self.shape.layers
            self.allocated = min(len(layer) for layer in (*self.keys, *self.values)) if full else 0

    def _zeros(self, rows: int, *, turned: bool) -> Tensor:
        head = (
            (self.shape.head_dim, self.capacity) if turned else (self.capacity, self.shape.head_dim)
        )
        fresh = torch.zeros(
            (rows, self.shape.kv_heads, *head), device=self.device, dtype=self.dtype
        )
        return fresh.transpose(2, 3) if turned else fresh

    def take(self) -> Row:
        """A free row. There must be one."""
        row = Row(self, len(self.rows))
        self.rows.append(row)
        return row

    def give_back(self, row: Row) -> None:
        """Frees a row; the last live one moves into its place."""
        last = self.rows.pop()
        if last is row:
            return
        for store in (self.keys, self.values):
            for layer in store:
                layer[row.number, :, : last.length] = layer[last.number, :, : last.length]
        last.number = row.number
        self.rows[row.number] = last

    def copy_prefix(self, source: Sequence[tuple[Tensor, Tensor]], row: Row, tokens: int) -> None:
        """Writes keys and values of a prefix, a pair (kv_heads, tokens, D) a layer, to the front of
        a row.
        """
        for layer, (keys, values) in enumerate(source):
            self.keys[layer][row.number, :, :tokens] = keys
            self.values[layer][row.number, :, :tokens] = values
        row.length = tokens

    def prefix(self, row: Row, tokens: int) -> list[tuple[Tensor, Tensor]]:
        """Views of the first tokens of a row, a pair (kv_heads, tokens, D) a layer."""
        return [
            (k[row.number, :, :tokens], v[row.number, :, :tokens])
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
        self.turned = attend_rows is attend_rows_in_products
        self.arenas: dict[int, Arena] = {}

    @property
    def rows(self) -> int:
        """Live rows."""
        return sum(len(arena.rows) for arena in self.arenas.values())

    @property
    def allocated_bytes(self) -> int:
        """Bytes of all rows, live or not."""
        return sum(arena.allocated * arena.row_bytes for arena in self.arenas.values())

    def take(self, tokens: int, has_room: Callable[[int], bool]) -> Row | None:
        """A row for so many tokens, or None when memory has no room for it.

        Args:
            tokens: What the row must hold at most.
            has_room: Says whether the cache may grow by so many bytes.
        """
        capacity = row_capacity(min(tokens, self.shape.context))
        arena = self.arenas.get(capacity) or Arena(
            self.shape, capacity, self.device, self.dtype, turned=self.turned
        )
        if len(arena.rows) == arena.allocated:
            # Doubling keeps copying linear; where there is no room for that, one row will do. Empty
            # arenas go first.
            steps = dict.fromkeys((max(4, arena.allocated), 1))
            grow = next(
                (rows for rows in steps if self._fits(rows * arena.row_bytes, capacity, has_room)),
                None,
            )
            if grow is None:
                return None
            arena.grow(arena.allocated + grow)
        self.arenas[capacity] = arena
        return arena.take()

    def release_empty(self, keep: int | None = None) -> int:
        """Drops arenas without live rows, but for one capacity; returns the bytes."""
        empty = [
            capacity
            for capacity, arena in self.arenas.items()
            if not arena.rows and capacity != keep
        ]
        return sum(arena.allocated * arena.row_bytes for arena in map(self.arenas.pop, empty))

    def _fits(self, grow_bytes: int, capacity: int, has_room: Callable[[int], bool]) -> bool:
        return has_room(grow_bytes) or (
            self.release_empty(keep=capacity) > 0 and has_room(grow_bytes)
        )


@dataclasses.dataclass(frozen=True)
class Segment:
    """Tokens of one sequence in a prefill: which row, and how many."""

    row: Row
    tokens: int


class PrefillAttention:
    """Attention of whole segments, each over its own row: what the row holds already, and causally
    over the segment itself.
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
        row, tokens = segment.row, segment.tokens
        begin, end = row.length, row.length + tokens
        keys, values = row.arena.keys[layer][row.number], row.arena.values[layer][row.number]
        keys[:, begin:end] = key.transpose(0, 1)
        values[:, begin:end] = value.transpose(0, 1)
        return self.attend(query.transpose(0, 1), keys[:, :end], values[:, :end]).reshape(
            tokens, -1
        )

    def finish(self) -> None:
        """Counts the tokens into their rows, after the last layer."""
        for segment in self.segments:
            segment.row.length += segment.tokens


Part = tuple[Arena, int, Tensor, Tensor, int, Tensor | None]
"""Of a decode step: an arena, its rows that take part, their numbers and the places of their new
tokens (rows,), the longest row, and the mask.
"""


def wide_mask(shape: TextShape, ends: Tensor, longest: int, dtype: torch.dtype) -> Tensor:
    """Mask that is added to each row's scores for ``longest`` places, (rows, kv_heads, queries a
    key head, longest).

    It is 0 up to the place of the row's new token, ``ends`` (rows,), and minus infinity behind it.
    """
    hidden = torch.arange(longest, device=ends.device) > ends[:, None]
    mask = torch.zeros(hidden.shape, dtype=dtype, device=ends.device).masked_fill_(
        hidden, -torch.inf
    )
    return mask[:, None, None, :].expand(
        len(ends), shape.kv_heads, shape.heads // shape.kv_heads, longest
    )


class DecodeAttention:
    """Attention of one new token for every live row, arena by arena.

    Queries that share a key head stand side by side as rows of one query matrix, so keys are never
    repeated. Tokens must come in the order of ``rows``.
    """

    def __init__(self, cache: Cache) -> None:
        self.attend_rows = cache.attend_rows
        self.parts: list[Part] = []
        self.rows: list[Row] = []
        for arena in cache.arenas.values():
            count = len(arena.rows)
            if not count:
                continue
            lengths = [row.length for row in arena.rows]
            longest = max(lengths) + 1
            ends = torch.tensor(lengths, device=cache.device)
            mask = None
            if min(lengths) + 1 < longest:
                mask = wide_mask(cache.shape, ends, longest, cache.dtype)
            self.parts.append(
                (arena, count, torch.arange(count, device=cache.device), ends, longest, mask)
            )
            self.rows += arena.rows

    def __call__(self, layer: int, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """See ``Attend``."""
        if len(self.parts) == 1:  # most often; the tokens need not be divided
            return self._attend(self.parts[0], layer, query, key, value)
        counts = [part[1] for part in self.parts]
        divided = zip(
            self.parts, query.split(counts), key.split(counts), value.split(counts), strict=True
        )
        return torch.cat([self._attend(part, layer, q, k, v) for part, q, k, v in divided])

    def _attend(self, part: Part, layer: int, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        arena, count, numbers, ends, longest, mask = part
        keys, values = arena.keys[layer], arena.values[layer]
        keys[numbers, :, ends] = key
        values[numbers, :, ends] = value
        q = query.reshape(count, key.shape[1], -1, key.shape[2])
        k, v = (store.narrow(0, 0, count).narrow(2, 0, longest) for store in (keys, values))
        return self.attend_rows(q, k, v, attn_mask=mask).reshape(count, -1)

    def finish(self) -> None:
        """Counts the token into every row, after the last layer."""
        for row in self.rows:
            row.length += 1
