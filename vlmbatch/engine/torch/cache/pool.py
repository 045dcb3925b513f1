"""The pool of keys and values: flat storage for tokens, and which tokens are taken.

A place in the pool is an ``Extent``: a run of tokens that one sequence reserves whole, for its
prompt and its longest answer. Extents of one capacity stand side by side in ``Run``s, so that one
product attends for all of their sequences. Nothing moves: giving an extent back leaves a hole,
which the next sequence of that capacity fills, and growing adds a chunk of storage beside the
others. On CUDA the first chunk has all the room: a recorded step knows one address.

Per layer, keys and values of a chunk are one flat tensor each. With H heads of D numbers, token t
of an extent that begins at token b and holds c tokens is, in numbers from the tensor's beginning:

    values, keys          (b * H + h * c + t) * D + d     ``Layout.HEADS``, on a CPU
    keys, transposed       b * H * D + (h * D + d) * c + t   ``Layout.HEADS_TRANSPOSED``, on a CPU
    values, keys          ((b + t) * H + h) * D + d       ``Layout.TOKENS``, elsewhere

Why extents and not blocks: on two cores of an AMD EPYC, one product over 64 sequences of 300 tokens
that stand side by side took 1.9 ms a layer, sequence by sequence 4.4 ms, and 13 ms where all keys
were gathered first. Tokens first is the layout of kernels that take a row offset for each sequence
(variable-length attention on a GPU).

On a CPU the storage is zeroed lazily by the system: what no sequence has written takes no memory.
"""

from __future__ import annotations

import dataclasses
import enum
import itertools
from collections.abc import Iterator

import torch
from torch import Tensor

from vlmbatch.engine.torch.cpu.pages import zeros
from vlmbatch.engine.torch.shape import TextShape

ALIKE_PER_CHUNK = 64
"""Number of extents like the one that needs it for which a chunk has room: then decode steps mostly
find all sequences in one chunk.
"""
ROOMY_EXTENTS = 16
"""Number of extents that a free range must hold for a new run to begin in its middle, where it can
grow.
"""
_serials = itertools.count()


class Layout(enum.Enum):
    """The order of numbers in an extent, see above."""

    HEADS = enum.auto()
    HEADS_TRANSPOSED = enum.auto()
    TOKENS = enum.auto()


def slot_capacity(tokens: int) -> int:
    """Round a number of tokens up to an extent's capacity: multiples of 64, above 512 in steps of
    an eighth of the power of two below.
    """
    step = 64 if tokens <= 512 else 1 << ((tokens - 1).bit_length() - 4)
    return -(-tokens // step) * step


@dataclasses.dataclass(eq=False, slots=True)
class Extent:
    """A run of tokens of the pool.

    Attributes:
        run: The run that it is part of.
        number: Its index there.
        references: Number of sequences and kept prefixes that use it; it is free at 0.
    """

    run: Run
    number: int
    references: int = 1

    @property
    def chunk(self) -> Chunk:
        """The chunk that it lies in."""
        return self.run.chunk

    @property
    def capacity(self) -> int:
        """Number of tokens that it holds."""
        return self.run.capacity

    @property
    def begin(self) -> int:
        """Its first token in the chunk."""
        return self.run.begin + self.number * self.run.capacity


@dataclasses.dataclass(eq=False, slots=True)
class Run:
    """Extents of one capacity, side by side.

    Attributes:
        chunk: The chunk that it lies in.
        begin: Its first token there.
        capacity: Tokens of an extent.
        extents: Its extents; None where one is free.
    """

    chunk: Chunk
    begin: int
    capacity: int
    extents: list[Extent | None] = dataclasses.field(default_factory=list)

    @property
    def end(self) -> int:
        """The token after its last."""
        return self.begin + len(self.extents) * self.capacity

    def take(self, number: int) -> Extent:
        """Take a free extent, or the next one behind the last."""
        extent = Extent(self, number)
        if number == len(self.extents):
            self.extents.append(extent)
        else:
            self.extents[number] = extent
        return extent


class Chunk:
    """Storage for a number of tokens in every layer.

    Attributes:
        tokens: The number.
        keys, values: One flat tensor a layer.
        free: Ranges (begin, end) of tokens that belong to no run, in order.
        serial: A number that no other chunk has.
        used, most_used: Tokens in runs, now and at most so far.
    """

    def __init__(
        self,
        shape: TextShape,
        tokens: int,
        device: torch.device,
        dtype: torch.dtype,
        layout: Layout,
    ) -> None:
        self.shape, self.tokens, self.layout = shape, tokens, layout
        size = tokens * shape.kv_heads * shape.head_dim
        self._whole: Tensor | None = None
        if layout is Layout.TOKENS:
            self._whole = torch.zeros(2, shape.layers, size, device=device, dtype=dtype)
            keys, values = self._whole.unbind()
            self.keys, self.values = list(keys.unbind()), list(values.unbind())
        else:
            self.keys = [zeros(size, dtype) for _ in range(shape.layers)]
            self.values = [zeros(size, dtype) for _ in range(shape.layers)]
        self.free = [(0, tokens)]
        self.serial = next(_serials)
        self.used = self.most_used = 0

    def views(
        self, layer: int, begin: int, capacity: int, count: int, tokens: int
    ) -> tuple[Tensor, Tensor]:
        """Return keys and values (count, kv_heads, tokens, D) of extents side by side.

        Args:
            layer: The layer.
            begin: The first token of the first extent.
            capacity: Tokens of an extent.
            count: Number of extents.
            tokens: Number of tokens of each, from its first on.
        """
        heads, dim = self.shape.kv_heads, self.shape.head_dim
        size, offset = (count, heads, tokens, dim), begin * heads * dim
        per_extent = capacity * heads * dim
        if self.layout is Layout.TOKENS:
            strides = key_strides = (per_extent, dim, heads * dim, 1)
        else:
            strides = key_strides = (per_extent, capacity * dim, dim, 1)
            if self.layout is Layout.HEADS_TRANSPOSED:
                key_strides = (per_extent, capacity * dim, 1, capacity)
        keys, values = self.keys[layer], self.values[layer]
        return (
            keys.as_strided(size, key_strides, keys.storage_offset() + offset),
            values.as_strided(size, strides, values.storage_offset() + offset),
        )

    def all_layers(self, begin: int, tokens: int) -> Tensor:
        """Return the tokens from a place on with tokens first, (2, layers, tokens, kv_heads * D):
        keys and values of every layer in one tensor, so that one kernel copies or clears them.
        """
        assert self._whole is not None
        lines = self._whole.view(*self._whole.shape[:2], self.tokens, -1)
        return lines[:, :, begin : begin + tokens]

    def take_range(self, begin: int, end: int) -> None:
        """Take tokens out of the free ranges; they must be free."""
        place = next(i for i, (a, b) in enumerate(self.free) if a <= begin and end <= b)
        a, b = self.free[place]
        self.free[place : place + 1] = [
            part for part in ((a, begin), (end, b)) if part[0] < part[1]
        ]
        self.used += end - begin
        self.most_used = max(self.most_used, self.used)

    def give_range(self, begin: int, end: int) -> None:
        """Add tokens to the free ranges."""
        self.used -= end - begin
        merged: list[tuple[int, int]] = []
        for a, b in sorted([*self.free, (begin, end)]):
            if merged and merged[-1][1] == a:
                merged[-1] = merged[-1][0], b
            else:
                merged.append((a, b))
        self.free = merged


class Pool:
    """All chunks of an engine, and the runs in them.

    Attributes:
        layout: The order of numbers in an extent.
        chunks: The chunks, oldest first.
    """

    def __init__(
        self,
        shape: TextShape,
        device: torch.device,
        dtype: torch.dtype,
        layout: Layout,
        *,
        is_flat: bool = False,
    ) -> None:
        """Set up without chunks; with ``is_flat`` the first one has all the room there is."""
        self.shape, self.device, self.dtype, self.layout = shape, device, dtype, layout
        self._is_flat = is_flat
        self.chunks: list[Chunk] = []
        self._runs: dict[int, list[Run]] = {}

    @property
    def token_bytes(self) -> int:
        """Bytes of a token over all layers."""
        shape = self.shape
        return 2 * shape.layers * shape.kv_heads * shape.head_dim * self.dtype.itemsize

    @property
    def allocated_bytes(self) -> int:
        """Bytes of all chunks."""
        return sum(chunk.tokens for chunk in self.chunks) * self.token_bytes

    @property
    def touched_bytes(self) -> int:
        """Bytes that have been in use: what the system has had to provide, about."""
        return sum(chunk.most_used for chunk in self.chunks) * self.token_bytes

    def take(self, tokens: int, limit_bytes: int) -> Extent | None:
        """Take an extent for a number of tokens, or return None if there is no room.

        Args:
            tokens: Number of tokens.
            limit_bytes: Most bytes of all chunks.
        """
        capacity = slot_capacity(tokens)
        found = self._take_here(capacity)
        if found is None and self._grow(capacity, limit_bytes):
            found = self._take_here(capacity)
        if found is None and self._free_holes():
            found = self._take_here(capacity)
        return found

    def retain(self, extent: Extent) -> None:
        """Add a reference."""
        extent.references += 1

    def release(self, extent: Extent) -> None:
        """Drop a reference; the last one frees the extent. No number is moved or written."""
        extent.references -= 1
        if extent.references:
            return
        run = extent.run
        run.extents[extent.number] = None
        end = run.end
        while run.extents and run.extents[-1] is None:
            run.extents.pop()
        run.chunk.give_range(run.end, end) if run.end < end else None
        if not run.extents:
            self._runs[run.capacity].remove(run)

    def release_empty(self) -> int:
        """Free chunks without extents. Return their bytes."""
        empty = [chunk for chunk in self.chunks if not chunk.used]
        self.chunks = [chunk for chunk in self.chunks if chunk.used]
        return sum(chunk.tokens for chunk in empty) * self.token_bytes

    def _take_here(self, capacity: int) -> Extent | None:
        """Take an extent of the chunks there are: a hole, else the place behind a run, else the
        beginning of a new run.
        """
        runs = self._runs.setdefault(capacity, [])
        for run in runs:
            if None in run.extents:
                return run.take(run.extents.index(None))
        for run in runs:
            if any(a == run.end and b - a >= capacity for a, b in run.chunk.free):
                run.chunk.take_range(run.end, run.end + capacity)
                return run.take(len(run.extents))
        place = max(self._places(capacity), default=None, key=lambda found: found[0])
        if place is None:
            return None
        size, begin, chunk = place
        if chunk.used and size >= ROOMY_EXTENTS * capacity:
            begin += size // 2
        chunk.take_range(begin, begin + capacity)
        run = Run(chunk, begin, capacity)
        runs.append(run)
        return run.take(0)

    def _free_holes(self) -> bool:
        """Give the holes of all runs to extents of other capacities. Return False if there are
        none.
        """
        holes = [
            (run, number)
            for runs in self._runs.values()
            for run in runs
            for number, extent in enumerate(run.extents)
            if extent is None
        ]
        for capacity, runs in self._runs.items():
            self._runs[capacity] = [part for run in runs for part in _without_holes(run)]
        for run, number in holes:
            begin = run.begin + number * run.capacity
            run.chunk.give_range(begin, begin + run.capacity)
        return bool(holes)

    def _places(self, capacity: int) -> Iterator[tuple[int, int, Chunk]]:
        """Free ranges that hold an extent: size, begin and chunk."""
        for chunk in self.chunks:
            for begin, end in chunk.free:
                if end - begin >= capacity:
                    yield end - begin, begin, chunk

    def _grow(self, capacity: int, limit_bytes: int) -> bool:
        """Add a chunk for an extent within the limit. Return False if there is no room."""
        if (limit_bytes - self.allocated_bytes) // self.token_bytes < capacity:
            self.release_empty()
        room = (limit_bytes - self.allocated_bytes) // self.token_bytes
        if room < capacity:
            return False
        wanted = max(ALIKE_PER_CHUNK * capacity, sum(chunk.tokens for chunk in self.chunks))
        sizes = [min(room, wanted), min(room, 4 * capacity), capacity]
        if self._is_flat:
            sizes = [max(room >> halved, capacity) for halved in range(4)] + sizes[1:]
        for place, tokens in enumerate(sizes):
            try:
                chunk = Chunk(self.shape, tokens, self.device, self.dtype, self.layout)
            except (RuntimeError, MemoryError):  # out of memory: a smaller chunk may fit
                if place == len(sizes) - 1:
                    raise
                continue
            self.chunks.append(chunk)
            break
        return True


def _without_holes(run: Run) -> list[Run]:
    """Divide a run at its holes; the extents stay where they are."""
    if None not in run.extents:
        return [run]
    parts: list[Run] = []
    last = -2
    for number, extent in enumerate(run.extents):
        if extent is None:
            continue
        if number > last + 1:
            parts.append(Run(run.chunk, run.begin + number * run.capacity, run.capacity))
        last = number
        extent.run, extent.number = parts[-1], len(parts[-1].extents)
        parts[-1].extents.append(extent)
    return parts
