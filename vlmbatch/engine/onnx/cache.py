"""Keys and values in padded batches, as the graphs take and return them.

Every row of a batch has as many columns as the longest; a mask says which of them count. A step
returns the batch with a column more. Rows move only when some join, or a quarter have left.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

Array = npt.NDArray[Any]
DEAD_SHARE = 4
"""Rows are taken out once one in so many has left: until then they cost less than moving others."""


@dataclasses.dataclass(eq=False)
class RowPrefix:
    """The first tokens of a sequence, for sequences that continue them.

    Attributes:
        slot: Where they are, or will be.
        tokens: Number of them.
        values: A copy of their keys and values, once they are held.
    """

    slot: RowSlot
    tokens: int
    values: list[Array] | None = None


@dataclasses.dataclass(eq=False)
class RowSlot:
    """The place of a sequence.

    Attributes:
        capacity: Tokens that it may grow to.
        length: Tokens that it has.
        prefix: What its prefill continues.
        begun: Keys and values of that, (kv_heads, tokens, head_dim) each, once it is filled.
    """

    capacity: int
    length: int = 0
    prefix: RowPrefix | None = None
    begun: list[Array] | None = None

    def beginning(self, tokens: int) -> RowPrefix:
        """Return its first tokens, for sequences that continue them."""
        return RowPrefix(self, tokens)


@dataclasses.dataclass(eq=False)
class RowBatch:
    """Rows that are decoded together.

    Attributes:
        slots: Slot of each row; None for one that has left.
        mask: Int64 (rows, columns), 0 for padding.
        values: Keys and values of each layer, OrtValues (rows, kv_heads, columns, head_dim).
    """

    slots: list[RowSlot | None]
    mask: Array
    values: list[Any]

    def columns(self, row: int, begin: int, end: int) -> Any:
        """Index of a row's tokens from ``begin`` to ``end``: a slice, if no padding is between."""
        places = np.flatnonzero(self.mask[row])[begin:end]
        if len(places) and places[-1] - places[0] + 1 == len(places):
            return slice(int(places[0]), int(places[-1]) + 1)
        return places


class RowCache:
    """The batch of living rows, and those that were prefilled since the last step.

    Attributes:
        device: Where it is for the engine's housekeeping: the CPU.
        limit_bytes: Gives the most bytes that it may take.
        kept: None: nothing is kept for later requests.
        pool: Itself, where the torch engine's cache has its storage.
    """

    kept = None

    def __init__(
        self,
        token_bytes: int,
        place: Callable[[Array], Any],
        limit_bytes: Callable[[], int],
    ) -> None:
        """Set up.

        Args:
            token_bytes: Bytes of keys and values a token.
            place: Puts keys or values where the provider has them.
            limit_bytes: Gives the most bytes that it may take.
        """
        self.device, self.pool = torch.device("cpu"), self
        self.limit_bytes, self._token_bytes, self._place = limit_bytes, token_bytes, place
        self._taken: set[RowSlot] = set()
        self._batches: list[RowBatch] = []

    @property
    def touched_bytes(self) -> int:
        """Bytes of all rows at their full length, padding included."""
        return self._bytes(self._taken)

    def take(self, tokens: int, prefix: RowPrefix | None = None) -> RowSlot | None:
        """Return a slot for a sequence of this length, or None if memory has no room for it.

        Args:
            tokens: Most tokens of the sequence, those of the prefix included.
            prefix: Its beginning, which need not be computed yet: see ``fill``.
        """
        slot = RowSlot(tokens, prefix=prefix)
        if self._bytes(self._taken | {slot}) > self.limit_bytes():
            return None
        self._taken.add(slot)
        return slot

    def fill(self, slot: RowSlot) -> None:
        """Let a slot begin with its prefix, which must be computed."""
        prefix, slot.prefix = slot.prefix, None
        if prefix is not None:
            slot.begun = prefix.values or self.row(prefix.slot, prefix.tokens)
            slot.length = prefix.tokens

    def give_back(self, slot: RowSlot, words: object = None) -> None:
        """Free a slot; nothing is kept for later requests, whatever its tokens say."""
        del words
        self._taken.discard(slot)
        for batch in self._batches:
            batch.slots = [None if each is slot else each for each in batch.slots]
        self._batches = [batch for batch in self._batches if any(batch.slots)]

    def erase(self, slot: RowSlot) -> None:
        """Do nothing: numbers that are not finite stay in their row, and leave with it."""

    def hold(self, prefix: RowPrefix) -> None:
        """Copy a computed prefix, for questions that start after its sequence has ended."""
        prefix.values = [value.copy() for value in self.row(prefix.slot, prefix.tokens)]

    def let_go(self, prefix: RowPrefix | None) -> None:
        """Free the copy of a prefix."""
        if prefix is not None:
            prefix.values = None

    def release_empty(self) -> int:
        """Free what no sequence has: nothing, as it goes with its batch."""
        return 0

    def drop_kept(self) -> bool:
        """Free what is kept for later requests: nothing."""
        return False

    def clear(self) -> None:
        """Drop everything."""
        self._taken.clear()
        self._batches.clear()

    def add(self, batch: RowBatch) -> None:
        """Add prefilled rows."""
        self._batches.append(batch)

    def row(self, slot: RowSlot, tokens: int) -> list[Array]:
        """Return keys and values of the first tokens of a slot, (kv_heads, tokens, head_dim)."""
        for batch in self._batches:
            if slot in batch.slots:
                row = batch.slots.index(slot)
                columns = batch.columns(row, 0, tokens)
                return [value.numpy()[row][:, columns] for value in batch.values]
        raise KeyError("the slot has no tokens")

    def current(self) -> RowBatch:
        """Return all living rows as one batch."""
        if len(self._batches) == 1:
            (batch,) = self._batches
            if DEAD_SHARE * batch.slots.count(None) < len(batch.slots):
                return batch
        self._batches = [self._joined()]
        return self._batches[0]

    def _joined(self) -> RowBatch:
        rows = [
            (batch, row, slot)
            for batch in self._batches
            for row, slot in enumerate(batch.slots)
            if slot is not None
        ]
        places = [batch.columns(row, 0, slot.length) for batch, row, slot in rows]
        arrays = [[value.numpy() for value in batch.values] for batch in self._batches]
        source = {id(batch): each for batch, each in zip(self._batches, arrays, strict=True)}
        lengths = [slot.length for _, _, slot in rows]
        values = [
            self._place(
                joined(
                    [
                        source[id(batch)][number][row][:, columns]
                        for (batch, row, _), columns in zip(rows, places, strict=True)
                    ]
                )
            )
            for number in range(len(arrays[0]))
        ]
        return RowBatch([slot for _, _, slot in rows], right_aligned(lengths), values)

    def _bytes(self, slots: set[RowSlot]) -> int:
        longest = max((slot.capacity for slot in slots), default=0)
        return len(slots) * longest * self._token_bytes


def joined(rows: Sequence[Array]) -> Array:
    """Stack rows (kv_heads, tokens, head_dim) of unequal lengths, padding on the left."""
    longest = max(row.shape[1] for row in rows)
    heads, _, size = rows[0].shape
    whole = np.empty((len(rows), heads, longest, size), rows[0].dtype)
    for place, row in zip(whole, rows, strict=True):
        free = longest - row.shape[1]
        place[:, :free] = 0
        place[:, free:] = row
    return whole


def right_aligned(lengths: Sequence[int]) -> Array:
    """Mask of rows of these lengths with padding on the left, int64 (rows, longest)."""
    longest = max(lengths)
    counts = np.array(lengths)[:, np.newaxis]
    return (np.arange(longest)[np.newaxis] >= longest - counts).astype(np.int64)
