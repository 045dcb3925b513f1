"""Places of sequences in the pool: taking and giving back, shared prefixes, kept prefixes."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Callable, Hashable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from vlmbatch.engine.torch.attention import AttendRows, attend_rows_in_products
from vlmbatch.engine.torch.cache.pool import Extent, Layout, Pool
from vlmbatch.engine.torch.cache.prefixes import KeptPrefix, KeptPrefixes, Piece, Prefix
from vlmbatch.engine.torch.shape import TextShape

SHARED_TOKENS = 256
"""Fewest tokens of a prefix that sequences read where they are. Shorter ones are copied to each,
which costs less than the products that a step does for one more piece.
"""


@dataclasses.dataclass(eq=False, slots=True)
class Slot:
    """A sequence's place: the pieces that it shares, and behind them an extent of its own.

    Attributes:
        extent: Its own extent.
        shared: Pieces before it, which are only read.
        copied: Pieces to copy to the front of its extent, until they are.
        kept: For each shared piece the kept prefix that it is of, or None.
        length: Number of tokens stored, shared ones included.
    """

    extent: Extent
    shared: tuple[Piece, ...] = ()
    copied: tuple[Piece, ...] = ()
    kept: tuple[KeptPrefix | None, ...] = ()
    length: int = 0

    @property
    def offset(self) -> int:
        """Number of tokens in shared pieces."""
        return sum(piece.tokens for piece in self.shared)

    @property
    def own_length(self) -> int:
        """Number of tokens stored in its own extent."""
        return self.length - self.offset

    def views(self, layer: int, tokens: int) -> tuple[Tensor, Tensor]:
        """Return keys and values (kv_heads, tokens, D) of the first tokens of its own extent."""
        return piece_views(Piece(self.extent, tokens), layer)

    def beginning(self, tokens: int) -> Prefix:
        """Return its first tokens, for sequences that continue them; more than the shared ones."""
        pieces = (*self.shared, Piece(self.extent, tokens - self.offset))
        return Prefix(pieces, (*self.kept, None))


def piece_views(piece: Piece, layer: int) -> tuple[Tensor, Tensor]:
    """Return keys and values (kv_heads, tokens, D) of a piece."""
    extent = piece.extent
    keys, values = extent.chunk.views(layer, extent.begin, extent.capacity, 1, piece.tokens)
    return keys[0], values[0]


class Cache:
    """The keys and values of an engine.

    Attributes:
        pool: The storage.
        kept: Prefixes that are kept for later requests; None if none are.
        limit_bytes: Gives the most bytes that the storage may take.
        kept_bytes: Gives the most bytes of it that prefixes kept for later requests may take on a
            CPU.
        attend_rows: Attention of decode steps.
        shared_tokens: Fewest tokens of a prefix that are shared by reference.
    """

    def __init__(
        self,
        shape: TextShape,
        device: torch.device,
        dtype: torch.dtype,
        attend_rows: AttendRows = F.scaled_dot_product_attention,
        *,
        limit_bytes: Callable[[], int] = lambda: sys.maxsize,
        kept_bytes: Callable[[], int] = lambda: sys.maxsize,
        reuse_prefixes: bool = False,
        tokens_first: bool | None = None,
    ) -> None:
        """Set up without storage.

        Args:
            shape: Sizes of the language model.
            device, dtype: Where and in which precision to store.
            attend_rows: Attention of decode steps; it settles the layout.
            limit_bytes: Gives the most bytes that the storage may take.
            kept_bytes: Gives the most bytes of it that kept prefixes may take on a CPU.
            reuse_prefixes: Whether to keep what sequences leave behind, for later requests.
            tokens_first: Whether to store tokens first, the layout of GPUs; by default elsewhere
                than on a CPU.
        """
        self.shape, self.device, self.dtype = shape, device, dtype
        self.limit_bytes, self.kept_bytes = limit_bytes, kept_bytes
        self._reuse_prefixes = reuse_prefixes
        self._tokens_first = device.type != "cpu" if tokens_first is None else tokens_first
        self.shared_tokens = sys.maxsize if self._tokens_first else SHARED_TOKENS
        self.use(attend_rows)

    def use(self, attend_rows: AttendRows) -> None:
        """Begin with an empty pool in the layout that an attention wants."""
        self.attend_rows = attend_rows
        layout = Layout.TOKENS if self._tokens_first else Layout.HEADS
        if attend_rows is attend_rows_in_products:
            layout = Layout.HEADS_TRANSPOSED
        is_flat = self.device.type == "cuda"
        self.pool = Pool(self.shape, self.device, self.dtype, layout, is_flat=is_flat)
        # Free memory of a processor is for others too; a device's is reserved for the engine.
        most = self.kept_bytes if self.device.type == "cpu" else self.limit_bytes
        self.kept = KeptPrefixes(self.pool, most) if self._reuse_prefixes else None

    @property
    def allocated_bytes(self) -> int:
        """Bytes of the storage, in use or not."""
        return self.pool.allocated_bytes

    def take(self, tokens: int, prefix: Prefix | None = None) -> Slot | None:
        """Take a slot, or return None if memory has no room for it. Kept prefixes that nothing uses
        make room.

        Args:
            tokens: Most tokens of the sequence, those of the prefix included.
            prefix: Its beginning, which need not be computed yet: see ``fill``.
        """
        pieces = prefix.pieces if prefix else ()
        by_reference = 0
        while by_reference < len(pieces) and pieces[by_reference].tokens >= self.shared_tokens:
            by_reference += 1
        shared, copied = pieces[:by_reference], pieces[by_reference:]
        own = min(tokens, self.shape.context) - sum(piece.tokens for piece in shared)
        self._retain(pieces)
        while (extent := self.pool.take(own, self.limit_bytes())) is None:
            if self.kept is None or not self.kept.drop_oldest():
                self._release(pieces)
                return None
        kept = prefix.kept[:by_reference] if prefix else ()
        slot = Slot(extent, shared, copied, kept)
        slot.length = slot.offset
        return slot

    def fill(self, slot: Slot) -> None:
        """Copy what a slot does not share of its prefix. The prefix must be computed."""
        begin = slot.own_length
        for piece in slot.copied:
            end = begin + piece.tokens
            self._copy(piece, slot, begin, end)
            begin = end
        slot.length = slot.offset + begin
        copied, slot.copied = slot.copied, ()
        self._release(copied)

    def _copy(self, piece: Piece, slot: Slot, begin: int, end: int) -> None:
        """Copy a piece to some tokens of a slot's extent."""
        if self.pool.layout is Layout.TOKENS:
            target, source = slot.extent, piece.extent
            copied = source.chunk.all_layers(source.begin, piece.tokens)
            target.chunk.all_layers(target.begin + begin, piece.tokens).copy_(copied)
            return
        for layer in range(self.shape.layers):
            keys, values = slot.views(layer, end)
            keys[:, begin:], values[:, begin:] = piece_views(piece, layer)

    def give_back(self, slot: Slot, words: Sequence[Hashable] | None = None) -> None:
        """Free a slot, or keep its tokens for later requests.

        Args:
            slot: The slot.
            words: What its tokens say, from the first of the prompt on; None frees it.
        """
        self._release((*slot.shared, *slot.copied))
        if self.kept is None or words is None or None in slot.kept or slot.own_length < 1:
            self.pool.release(slot.extent)
            return
        parent, before = (slot.kept[-1], slot.shared[-1].tokens) if slot.kept else (None, 0)
        self.kept.keep(words[: slot.length], slot.extent, parent, before)

    def erase(self, slot: Slot) -> None:
        """Zero the tokens of a slot: numbers that are not finite would reach the next sequence."""
        extent = slot.extent
        if self.pool.layout is Layout.TOKENS:
            extent.chunk.all_layers(extent.begin, extent.capacity).zero_()
            return
        for layer in range(self.shape.layers):
            for store in slot.views(layer, extent.capacity):
                store.zero_()

    def drop_kept(self) -> bool:
        """Free all kept prefixes that nothing uses. Return False if that frees no storage."""
        while self.kept is not None and self.kept.drop_oldest():
            pass
        return self.pool.release_empty() > 0

    def find(self, words: Sequence[Hashable]) -> Prefix | None:
        """Find the longest kept prefix of these words and hold it; None if there is none."""
        found = self.kept.find(words) if self.kept else None
        self.hold(found)
        return found

    def hold(self, prefix: Prefix | None) -> None:
        """Keep a prefix from being freed until ``let_go``."""
        self._retain(prefix.pieces if prefix else ())

    def let_go(self, prefix: Prefix | None) -> None:
        """End a ``hold``."""
        self._release(prefix.pieces if prefix else ())

    def clear(self) -> None:
        """Drop everything."""
        self.use(self.attend_rows)

    def _retain(self, pieces: Sequence[Piece]) -> None:
        for piece in pieces:
            self.pool.retain(piece.extent)

    def _release(self, pieces: Sequence[Piece]) -> None:
        for piece in pieces:
            self.pool.release(piece.extent)
