"""Prefixes that are kept when a sequence has ended, known by what they say.

A later prompt that begins with the same words and pictures continues them: a conversation's next
turn computes only what is new. What a token says is its id, or for a token that stands for pixels
the digest of its tile.
"""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Hashable, Sequence

from vlmbatch.engine.torch.cache.pool import Extent, Pool

MIN_TOKENS = 16
"""Fewest tokens that are worth continuing: less is computed as fast as it is looked up."""
MAX_KEPT = 4096
"""Most prefixes that are kept, so that looking one up stays cheap."""


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
        words: What its tokens say.
        extent: Where their keys and values are.
        parent: The prefix that they continue; None if they begin a prompt.
        parent_tokens: Number of the parent's tokens that come before them.
        children: The prefixes that continue it.
    """

    words: tuple[Hashable, ...]
    extent: Extent
    parent: KeptPrefix | None
    parent_tokens: int
    children: list[KeptPrefix] = dataclasses.field(default_factory=list)

    def piece(self, tokens: int) -> Piece:
        """Return its first tokens."""
        return Piece(self.extent, tokens)


class KeptPrefixes:
    """A tree of kept prefixes. Those that no sequence uses go, the least recently used first."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool
        self._roots: list[KeptPrefix] = []
        self._by_use: collections.OrderedDict[int, KeptPrefix] = collections.OrderedDict()

    def __len__(self) -> int:
        return len(self._by_use)

    def find(self, words: Sequence[Hashable]) -> Prefix | None:
        """Find the longest kept prefix of these words; None if none is worth continuing."""
        path = self._longest(self._roots, tuple(words), 0)
        if sum(tokens for _, tokens in path) < MIN_TOKENS:
            return None
        for node, _ in path:
            self._by_use.move_to_end(id(node))
        return Prefix(
            tuple(node.piece(tokens) for node, tokens in path), tuple(node for node, _ in path)
        )

    def keep(
        self, words: Sequence[Hashable], extent: Extent, parent: KeptPrefix | None, before: int
    ) -> None:
        """Keep the tokens of an extent, and take over its reference.

        Args:
            words: What they say.
            extent: Where they are.
            parent: The prefix that they continue.
            before: Number of its tokens that come before them.
        """
        node = KeptPrefix(tuple(words), extent, parent, before)
        siblings = parent.children if parent else self._roots
        for other in list(siblings):
            # A conversation's next turn replaces the last one, unless that is in use.
            shorter = node.words[: len(other.words)] == other.words
            is_older = shorter and other.parent_tokens == before
            if is_older and self._is_unused(other):
                self._drop(other)
        siblings.append(node)
        self._by_use[id(node)] = node
        while len(self._by_use) > MAX_KEPT and self.drop_oldest():
            pass

    def drop_oldest(self) -> bool:
        """Free the least recently used prefix that nothing uses. Return False if there is none."""
        node = next((node for node in self._by_use.values() if self._is_unused(node)), None)
        if node is not None:
            self._drop(node)
        return node is not None

    def _is_unused(self, node: KeptPrefix) -> bool:
        return not node.children and node.extent.references == 1

    def _drop(self, node: KeptPrefix) -> None:
        (node.parent.children if node.parent else self._roots).remove(node)
        del self._by_use[id(node)]
        self._pool.release(node.extent)

    def _longest(
        self, nodes: Sequence[KeptPrefix], words: tuple[Hashable, ...], begin: int
    ) -> list[tuple[KeptPrefix, int]]:
        """The path of prefixes, with the tokens used of each, that covers most of the words from a
        place on.
        """
        best: list[tuple[KeptPrefix, int]] = []
        most = 0
        for node in nodes:
            equal = _equal_words(node.words, words, begin)
            if not equal:
                continue
            path, covered = [(node, equal)], equal
            for child in node.children:
                at = child.parent_tokens
                if at <= equal:
                    rest = self._longest([child], words, begin + at)
                    if rest and at + sum(tokens for _, tokens in rest) > covered:
                        path = [(node, at), *rest]
                        covered = sum(tokens for _, tokens in path)
            if covered > most:
                best, most = path, covered
        return best


def _equal_words(known: tuple[Hashable, ...], words: tuple[Hashable, ...], begin: int) -> int:
    """Number of words from a place on that are those of a prefix."""
    end = min(len(known), len(words) - begin)
    if known[:end] == words[begin : begin + end]:
        return end
    return next(n for n in range(end) if known[n] != words[begin + n])
