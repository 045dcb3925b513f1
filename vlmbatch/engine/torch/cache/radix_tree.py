"""A tree of word sequences: what begins like another one is found in the time of reading it once,
however many there are.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Hashable, Sequence
from typing import Generic, TypeVar

T = TypeVar("T")
Words = tuple[Hashable, ...]


@dataclasses.dataclass(eq=False, slots=True)
class _Node(Generic[T]):
    """A place in the tree.

    Attributes:
        words: The words that lead here from the node above; empty at the root.
        values: Values of the sequences that end here.
        below: The nodes below, by their first word.
    """

    words: Words
    values: list[T] = dataclasses.field(default_factory=list)
    below: dict[Hashable, _Node[T]] = dataclasses.field(default_factory=dict)


class RadixTree(Generic[T]):
    """Values by sequences of words. Words that sequences begin with alike are stored once."""

    def __init__(self) -> None:
        self._root: _Node[T] = _Node(())

    def add(self, words: Words, value: T) -> None:
        """Add a value at the end of a sequence, which is not empty."""
        node, at = self._root, 0
        while at < len(words):
            child = node.below.get(words[at])
            if child is None:
                child = node.below[words[at]] = _Node(words[at:])
            elif (equal := _num_equal(child.words, words, at)) < len(child.words):
                child = node.below[words[at]] = _split(child, equal)
            node, at = child, at + len(child.words)
        node.values.append(value)

    def remove(self, words: Words, value: T) -> None:
        """Remove a value that was added with this sequence."""
        path = [self._root]
        at = 0
        while at < len(words):
            path.append(path[-1].below[words[at]])
            at += len(path[-1].words)
        path[-1].values.remove(value)
        while len(path) > 1:
            node, above = path.pop(), path[-1]
            if node.values or len(node.below) > 1:
                return
            if node.below:  # only a fork that is none any more
                (child,) = node.below.values()
                child.words = node.words + child.words
                above.below[child.words[0]] = child
                return
            del above.below[node.words[0]]

    def longest(self, words: Words) -> tuple[int, T | None]:
        """Find a sequence that begins with as many of these words as any does.

        Returns:
            The number of words, and the sequence's value; None if there is no such sequence.
        """
        node, at = self._root, 0
        while (child := node.below.get(words[at]) if at < len(words) else None) is not None:
            equal = _num_equal(child.words, words, at)
            node, at = child, at + equal
            if equal < len(child.words):
                break
        if not at:
            return 0, None
        while not node.values:
            node = next(iter(node.below.values()))
        return at, node.values[-1]

    def beginnings(self, words: Words) -> list[T]:
        """Return the values of all sequences that these words begin with, itself included."""
        found: list[T] = []
        node, at = self._root, 0
        while (child := node.below.get(words[at]) if at < len(words) else None) is not None:
            if _num_equal(child.words, words, at) < len(child.words):
                break
            node, at = child, at + len(child.words)
            found += node.values
        return found


def _split(node: _Node[T], count: int) -> _Node[T]:
    """Put a node in the middle of the words that lead to another one; return it."""
    middle: _Node[T] = _Node(node.words[:count])
    node.words = node.words[count:]
    middle.below[node.words[0]] = node
    return middle


def _num_equal(known: Sequence[Hashable], words: Sequence[Hashable], begin: int) -> int:
    """Number of words from a place on that are those of a sequence."""
    end = min(len(known), len(words) - begin)
    if known[:end] == words[begin : begin + end]:
        return end
    return next(n for n in range(end) if known[n] != words[begin + n])
