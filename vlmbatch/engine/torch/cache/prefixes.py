"""Prefixes that are kept when a sequence has ended, known by what they say.

A later prompt that begins with the same words and pictures continues them: a conversation's next
turn computes only what is new. What a token says is its id, or for a token that stands for pixels
the digest of its tile.
"""

from __future__ import annotations

import collections
import dataclasses
import sys
from collections.abc import Callable, Hashable, Sequence

from vlmbatch.engine.torch.cache.pool import Extent, Pool
from vlmbatch.engine.torch.cache.radix_tree import RadixTree, Words

MIN_TOKENS = 16
"""Fewest tokens that are worth continuing: less is computed as fast as it is looked up."""
MAX_KEPT = 4096
"""Most prefixes that are kept: each has words and objects of its own."""


@dataclasses.dataclass(frozen=True, slots=True)
class Piece:
    """The first tokens of an extent, read by sequences that continue them.

    Attributes:
        extent: The extent.
        tokens: Number of tokens.
    """

    extent: Extent
    tokens: int


@dataclasses.dataclass(frozen=True, slots=True)
class Prefix:
    """The beginning of a prompt, in pieces of the pool.

    Attributes:
        pieces: The pieces, in order.
        kept: For each piece the kept prefix that it ends in; None where it is not known by its
            words.
    """

    pieces: tuple[Piece, ...]
    kept: tuple[KeptPrefix | None, ...]

    @property
    def tokens(self) -> int:
        """Number of tokens."""
        return sum(piece.tokens for piece in self.pieces)


@dataclasses.dataclass(eq=False, slots=True)
class KeptPrefix:
    """Tokens of a sequence that has ended, in one extent.

    Attributes:
        words: What it says, from the first token of the prompt to its last own one.
        extent: Where the keys and values of its own tokens are.
        parent: The prefix that they continue; None if they begin a prompt.
        parent_tokens: Number of the parent's own tokens that come before them.
        begin: Number of all tokens that come before them.
        children: Number of prefixes that continue it.
    """

    words: Words
    extent: Extent
    parent: KeptPrefix | None
    parent_tokens: int
    begin: int
    children: int = 0


class KeptPrefixes:
    """A tree of kept prefixes. Those that no sequence uses go, the least recently used first.

    Attributes:
        bytes: Memory of their extents.
    """

    def __init__(self, pool: Pool, max_bytes: Callable[[], int] = lambda: sys.maxsize) -> None:
        """Keep nothing yet.

        Args:
            pool: The pool that their extents are of.
            max_bytes: Gives the most memory that their extents may take.
        """
        self._pool, self._max_bytes = pool, max_bytes
        self._by_words: RadixTree[KeptPrefix] = RadixTree()
        self._by_use: collections.OrderedDict[int, KeptPrefix] = collections.OrderedDict()
        self.bytes = 0

    def __len__(self) -> int:
        return len(self._by_use)

    def find(self, words: Sequence[Hashable]) -> Prefix | None:
        """Find the longest kept prefix of these words; None if none is worth continuing."""
        end, node = self._by_words.longest(tuple(words))
        if end < MIN_TOKENS:
            return None
        found: list[tuple[KeptPrefix, int]] = []
        while node is not None:
            if end > node.begin:
                found.append((node, end - node.begin))
            end = min(end, node.begin)
            node = node.parent
        found.reverse()
        for each, _ in found:
            self._by_use.move_to_end(id(each))
        pieces = tuple(Piece(each.extent, tokens) for each, tokens in found)
        return Prefix(pieces, tuple(each for each, _ in found))

    def keep(
        self, words: Sequence[Hashable], extent: Extent, parent: KeptPrefix | None, before: int
    ) -> None:
        """Keep the tokens of an extent, and take over its reference.

        Args:
            words: What the prompt says, to the last of these tokens.
            extent: Where they are.
            parent: The prefix that they continue.
            before: Number of its own tokens that come before them.
        """
        begin = parent.begin + before if parent else 0
        node = KeptPrefix(tuple(words), extent, parent, before, begin)
        for other in self._by_words.beginnings(node.words):
            # A conversation's next turn replaces the last one, unless that is in use.
            is_older = other.parent is parent and other.parent_tokens == before
            if is_older and self._is_unused(other):
                self._drop(other)
        if parent:
            parent.children += 1
        self._by_words.add(node.words, node)
        self._by_use[id(node)] = node
        self.bytes += self._size(node)
        while self._has_too_many() and self.drop_oldest():
            pass

    def drop_oldest(self) -> bool:
        """Free the least recently used prefix that nothing uses. Return False if there is none."""
        node = next((node for node in self._by_use.values() if self._is_unused(node)), None)
        if node is not None:
            self._drop(node)
        return node is not None

    def _has_too_many(self) -> bool:
        return len(self._by_use) > MAX_KEPT or self.bytes > self._max_bytes()

    def _is_unused(self, node: KeptPrefix) -> bool:
        return not node.children and node.extent.references == 1

    def _size(self, node: KeptPrefix) -> int:
        return node.extent.capacity * self._pool.token_bytes

    def _drop(self, node: KeptPrefix) -> None:
        if node.parent:
            node.parent.children -= 1
        self._by_words.remove(node.words, node)
        del self._by_use[id(node)]
        self.bytes -= self._size(node)
        self._pool.release(node.extent)
