"""The pool of keys and values: places, references, growth, and prefixes that make room."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Sequence

import numpy as np
import psutil
import pytest
import torch
import torch.nn.functional as F

from vlmbatch.engine.torch.attention import attend_rows_in_products, attend_shared
from vlmbatch.engine.torch.cache import Cache, DecodeAttention, Slot, slot_capacity
from vlmbatch.engine.torch.cache.pool import ALIKE_PER_CHUNK, Extent, Layout, Pool
from vlmbatch.engine.torch.cache.slots import piece_views
from vlmbatch.engine.torch.shape import TextShape

SHAPE = TextShape(48, 2, 6, 2, 16, 96, 300, 2048, 1e-5, 1e4)
CPU = torch.device("cpu")
TOKEN_BYTES = 2 * SHAPE.layers * SHAPE.kv_heads * SHAPE.head_dim * 4


def new_pool() -> Pool:
    return Pool(SHAPE, CPU, torch.float32, Layout.HEADS)


def new_cache(tokens: int = 10**6, *, reuse_prefixes: bool = True) -> Cache:
    """A cache for so many tokens, in which prefixes of any length are shared."""
    limit = tokens * TOKEN_BYTES
    cache = Cache(
        SHAPE, CPU, torch.float32, limit_bytes=lambda: limit, reuse_prefixes=reuse_prefixes
    )
    cache.shared_tokens = 1
    return cache


def write(slot: Slot, tokens: int, seed: int) -> None:
    """Store random keys and values, as a prefill does."""
    drawn = np.random.default_rng(seed)
    for layer in range(SHAPE.layers):
        for store in slot.views(layer, slot.own_length + tokens):
            new = store[:, slot.own_length :]
            new.copy_(torch.from_numpy(drawn.standard_normal(new.shape)).float())
    slot.length += tokens


def stored(cache: Cache, slot: Slot) -> list[torch.Tensor]:
    """All keys and values of a slot, shared ones included: (kv_heads, tokens, D) each."""
    found = []
    for layer in range(SHAPE.layers):
        parts = [piece_views(piece, layer) for piece in slot.shared]
        parts.append(slot.views(layer, slot.own_length))
        found += [torch.cat(store, dim=1) for store in zip(*parts, strict=True)]
    return found


def test_extents_of_one_capacity_stand_side_by_side() -> None:
    pool = new_pool()
    taken = [pool.take(tokens, 10**9) for tokens in (100, 60, 110, 64, 120)]
    begins: dict[int, list[int]] = {}
    for extent in taken:
        begins.setdefault(extent.capacity, []).append(extent.begin)
    assert set(begins) == {64, 128}
    for capacity, at in begins.items():
        assert np.diff(at).tolist() == [capacity] * (len(at) - 1)


def test_a_place_that_was_given_back_is_taken_again() -> None:
    pool = new_pool()
    taken = [pool.take(60, 10**9) for _ in range(3)]
    pool.release(taken[1])
    again = pool.take(60, 10**9)
    assert again.begin == taken[1].begin


def test_an_extent_is_free_when_its_last_user_lets_it_go() -> None:
    pool = new_pool()
    extent = pool.take(60, 10**9)
    pool.retain(extent)
    pool.release(extent)
    assert pool.chunks[0].used == extent.capacity
    pool.release(extent)
    assert pool.chunks[0].used == 0
    assert pool.release_empty() > 0
    assert not pool.chunks


def test_growing_moves_nothing() -> None:
    pool = new_pool()
    taken: list[Extent] = []
    pointers: list[list[int]] = []
    while len(pool.chunks) < 3:
        extent = pool.take(60, 10**9)
        taken.append(extent)
        pointers.append([store.data_ptr() for store in extent.chunk.keys + extent.chunk.values])
    assert len(taken) > 2 * ALIKE_PER_CHUNK
    for extent, before in zip(taken, pointers, strict=True):
        assert [store.data_ptr() for store in extent.chunk.keys + extent.chunk.values] == before


def test_memory_is_taken_as_tokens_are_written() -> None:
    wide = dataclasses.replace(SHAPE, kv_heads=64, head_dim=64, heads=64)
    pool = Pool(wide, CPU, torch.float32, Layout.HEADS)
    resident = psutil.Process().memory_info().rss
    extent = pool.take(60, 10**9)
    assert pool.allocated_bytes > 200 << 20
    extent.chunk.values[0][: 1 << 20] = 1.0
    assert psutil.Process().memory_info().rss - resident < 40 << 20


def test_places_never_overlap_and_memory_stays_within_the_limit() -> None:
    pool, drawn = new_pool(), np.random.default_rng(3)
    limit = 5000 * TOKEN_BYTES
    live: list[Extent] = []
    refused = 0
    for _ in range(4000):
        if live and drawn.random() < 0.5:
            pool.release(live.pop(int(drawn.integers(len(live)))))
            continue
        extent = pool.take(int(drawn.integers(1, 900)), limit)
        refused += extent is None
        live += [] if extent is None else [extent]
        assert pool.allocated_bytes <= limit
        ranges = sorted((e.chunk.serial, e.begin, e.begin + e.capacity) for e in live)
        for (chunk, _, end), (other, begin, _) in itertools.pairwise(ranges):
            assert chunk != other or end <= begin
        assert sum(chunk.used for chunk in pool.chunks) >= sum(e.capacity for e in live)
    assert refused > 100
    while live:
        pool.release(live.pop())
    assert not any(chunk.used for chunk in pool.chunks)
    assert pool.take(4600, limit) is not None  # all of it can be one extent again


def test_holes_go_to_other_capacities_when_there_is_no_other_room() -> None:
    pool = new_pool()
    limit = 640 * TOKEN_BYTES
    small = [pool.take(64, limit) for _ in range(10)]
    assert pool.take(64, limit) is None
    for extent in (small[3], small[4], small[8]):
        pool.release(extent)
    large = pool.take(128, limit)
    assert large.begin == small[3].begin
    again = pool.take(64, limit)
    assert again.begin == small[8].begin


def test_capacities_waste_little() -> None:
    for tokens in range(1, 9000, 7):
        assert tokens <= slot_capacity(tokens) <= max(64, tokens * 1.13 + 64)


def test_a_prompt_continues_what_an_earlier_one_left() -> None:
    cache = new_cache()
    first = cache.take(200)
    write(first, 120, seed=1)
    kept = stored(cache, first)
    words = [b"tile"] * 64 + list(range(100, 156))
    cache.give_back(first, words)
    found = cache.find([*words[:110], 7, 8, 9])
    assert found is not None
    assert found.tokens == 110
    second = cache.take(150, found)
    cache.fill(second)
    assert second.length == 110
    for old, new in zip(kept, stored(cache, second), strict=True):
        assert torch.equal(old[:, :110], new)
    assert cache.find([b"other"] * 64) is None


@pytest.mark.parametrize("shared_tokens", [1, 50, 10**6])
def test_a_chain_of_turns_is_found_whole(shared_tokens: int) -> None:
    cache = new_cache()
    cache.shared_tokens = shared_tokens
    words: list[int] = []
    kept: list[torch.Tensor] = []
    for turn, tokens in enumerate((60, 40, 100, 30)):
        prefix = cache.find(words)
        slot = cache.take(len(words) + tokens + 10, prefix)
        cache.fill(slot)
        cache.let_go(prefix)
        assert slot.length == len(words)
        write(slot, tokens, seed=turn)
        for old, new in zip(kept, stored(cache, slot), strict=False):
            assert torch.equal(old, new[:, : old.shape[1]])
        kept = stored(cache, slot)
        words += range(1000 * turn, 1000 * turn + tokens)
        cache.give_back(slot, words)
    found = cache.find(words)
    assert found is not None
    assert found.tokens == len(words)


def test_the_prefix_used_longest_ago_makes_room_and_one_in_use_stays() -> None:
    cache = new_cache(4 * 64)
    for name in range(4):
        slot = cache.take(60)
        write(slot, 40, seed=name)
        cache.give_back(slot, [name] * 40)
    assert cache.find([1] * 40) is not None  # held from here on
    touched = cache.find([0] * 40)
    cache.let_go(touched)
    assert cache.take(60) is not None
    assert cache.take(60) is not None
    assert [cache.kept.find([name] * 40) is not None for name in range(4)] == [
        True,
        True,
        False,
        False,
    ]
    assert cache.take(60) is not None
    assert cache.take(60) is None
    assert cache.kept.find([1] * 40) is not None


def test_without_reuse_nothing_is_kept() -> None:
    cache = new_cache(reuse_prefixes=False)
    slot = cache.take(60)
    write(slot, 40, seed=0)
    cache.give_back(slot, list(range(40)))
    assert cache.find(list(range(40))) is None
    assert not cache.pool.chunks[0].used


def test_thousands_of_requests_find_what_was_written_within_the_limit() -> None:
    limit, drawn = 3000, np.random.default_rng(5)
    cache = new_cache(limit)
    live: list[tuple[Slot, list[int], list[torch.Tensor]]] = []
    known: dict[tuple[int, ...], list[torch.Tensor]] = {}
    waited = continued = 0
    for _ in range(3000):
        cache.shared_tokens = int(drawn.choice([1, 80, 10**6]))
        past = list(known)[int(drawn.integers(len(known)))] if known else ()
        words = [*past[: int(drawn.integers(20, 200))], *drawn.integers(0, 50, 20).tolist()]
        prefix = cache.find(words)
        slot = cache.take(len(words) + 30, prefix)
        if slot is None:
            waited += 1
        else:
            cache.fill(slot)
            before = stored(cache, slot)
            continued += slot.length > 0
            for length, store in enumerate(before[0][0, :, 0].tolist()):
                assert store == words[length]  # what a word writes is the word itself
            write_words(slot, words[slot.length :])
            live.append((slot, words, stored(cache, slot)))
        cache.let_go(prefix)
        assert cache.allocated_bytes <= limit * TOKEN_BYTES
        while live and (slot is None or drawn.random() < 0.5):
            ended, said, numbers = live.pop(int(drawn.integers(len(live))))
            for old, new in zip(numbers, stored(cache, ended), strict=True):
                assert torch.equal(old, new)
            cache.give_back(ended, said if drawn.random() < 0.8 else None)
            known[tuple(said)] = numbers
            if slot is None:
                break
    assert waited > 20
    assert continued > 500


def write_words(slot: Slot, words: list[int]) -> None:
    """Store each word as its own keys and values."""
    numbers = torch.tensor(words, dtype=torch.float32)[None, :, None]
    for layer in range(SHAPE.layers):
        for store in slot.views(layer, slot.own_length + len(words)):
            store[:, slot.own_length :] = numbers
    slot.length += len(words)


def rows_over(cache: Cache, seed: int) -> tuple[list[Slot], Slot]:
    """Sequences of several lengths that share a piece, in extents with a hole between them."""
    leader = cache.take(100)
    write(leader, 90, seed=seed)
    slots = []
    for number, tokens in enumerate((5, 17, 1, 30, 12)):
        slot = cache.take(70 + 60, leader.beginning(70))
        cache.fill(slot)
        write(slot, tokens, seed=10 * seed + number)
        slots.append(slot)
    cache.give_back(slots.pop(2))
    return slots, leader


@pytest.mark.parametrize("attend_rows", [F.scaled_dot_product_attention, attend_rows_in_products])
@pytest.mark.parametrize("shared_tokens", [1, 10**6], ids=["shared", "copied"])
def test_a_decode_step_attends_to_shared_and_own_tokens(
    attend_rows: object, shared_tokens: int
) -> None:
    cache = new_cache()
    cache.shared_tokens = shared_tokens
    cache.use(attend_rows)  # type: ignore[arg-type]
    slots, leader = rows_over(cache, 1)
    others, _ = rows_over(cache, 2)
    attend = DecodeAttention(cache, [*slots, leader, *others])
    assert len(attend.slots) == 9
    generator = torch.Generator().manual_seed(0)
    query = torch.randn(9, SHAPE.heads, SHAPE.head_dim, generator=generator)
    key, value = torch.randn(2, 9, SHAPE.kv_heads, SHAPE.head_dim, generator=generator)
    found = attend(1, query, key, value)
    attend.finish()
    for place, slot in enumerate(attend.slots):
        keys, values = stored(cache, slot)[2:]
        torch.testing.assert_close(keys[:, -1], key[place])
        wanted = F.scaled_dot_product_attention(
            query[place].view(SHAPE.kv_heads, -1, SHAPE.head_dim).double(),
            keys.double(),
            values.double(),
        )
        torch.testing.assert_close(found[place], wanted.flatten().float(), rtol=1e-4, atol=1e-5)


def test_shared_tokens_are_attended_as_precisely_in_bfloat16() -> None:
    generator = torch.Generator().manual_seed(0)

    def drawn(*size: int) -> torch.Tensor:
        return torch.randn(*size, generator=generator).bfloat16()

    query = drawn(4, 2, 3, 16) * 2
    own: Sequence[torch.Tensor] = (drawn(4, 2, 9, 16), drawn(4, 2, 9, 16))
    before = [(drawn(2, 40, 16), drawn(2, 40, 16)), (drawn(2, 7, 16), drawn(2, 7, 16))]
    whole = [
        torch.cat([*(pair[store].expand(4, -1, -1, -1) for pair in before), own[store]], dim=2)
        for store in (0, 1)
    ]
    exact = F.scaled_dot_product_attention(query.double(), *(part.double() for part in whole))
    plain = F.scaled_dot_product_attention(query, *whole)
    found = attend_shared(query, *own, None, before)
    errors = [float((way.double() - exact).square().mean().sqrt()) for way in (found, plain)]
    assert errors[0] <= 2 * errors[1]
