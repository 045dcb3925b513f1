"""What begins like another sequence of words is found, whatever was added and removed before."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from vlmbatch.engine.torch.cache.radix_tree import RadixTree, Words

WORDS = st.lists(st.sampled_from([0, 1, b"tile"]), min_size=1, max_size=7).map(tuple)


def equal(one: Words, other: Words) -> int:
    pairs = zip(one, other, strict=False)
    return next((n for n, (a, b) in enumerate(pairs) if a != b), min(len(one), len(other)))


@settings(max_examples=300, deadline=None)
@given(st.lists(WORDS, max_size=12), st.data(), WORDS)
def test_the_tree_finds_what_a_search_through_all_finds(
    added: list[Words], data: st.DataObject, asked: Words
) -> None:
    tree: RadixTree[int] = RadixTree()
    left = dict(enumerate(added))
    for number, words in left.items():
        tree.add(words, number)
    for number in (
        data.draw(st.lists(st.sampled_from(range(len(added))), unique=True)) if added else ()
    ):
        tree.remove(left.pop(number), number)
    count, value = tree.longest(asked)
    assert count == max((equal(words, asked) for words in left.values()), default=0)
    assert (value is None) == (count == 0)
    if value is not None:
        assert equal(left[value], asked) == count
    begun = [number for number, words in left.items() if asked[: len(words)] == words]
    assert sorted(tree.beginnings(asked)) == begun


def test_nothing_stays_of_what_was_removed() -> None:
    tree: RadixTree[str] = RadixTree()
    for words in ((1, 2, 3), (1, 2, 4), (1,), (1, 2, 3)):
        tree.add(words, "it")
    for words in ((1,), (1, 2, 3), (1, 2, 4), (1, 2, 3)):
        tree.remove(words, "it")
    assert tree.longest((1, 2, 3)) == (0, None)
