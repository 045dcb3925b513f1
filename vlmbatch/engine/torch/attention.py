"""Interfaces of attention; attention of a prompt; CPU alternatives to torch's attention, for the
patches of a tile, for prompts and for decode steps.

torch multiplies in blocks, by MKL. With a thousand patches a tile, oneDNN's product is more than
twice as fast on some processors; the scores of one head are a few megabytes, which stay in cache
between the first product, the softmax and the second product. In a decode step, with a few queries
per key head, products are the smaller part of the time of torch's attention.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from vlmbatch.engine.torch.cpu.onednn import multiply

BLOCK = 256
"""Tokens of a prompt that attend at a time: few enough to multiply little that is masked, many
enough for a fast product.
"""
MAX_BATCHED_QUERIES = 64
"""Maximum queries per key head for which torch's batched product is the fastest, in float32."""


class Attend(Protocol):
    """Attention of one layer, over the caller's KV cache."""

    def __call__(self, layer: int, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """Map rotated queries (N, heads, D), keys and values (N, kv_heads, D) of N tokens to (N,
        heads * D).
        """
        ...


class AttendTiles(Protocol):
    """Attention of all patches of a tile to each other."""

    def __call__(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """Map queries, keys and values to the output, all (n, heads, patches, D)."""
        ...


class AttendPrompt(Protocol):
    """Causal attention of the last tokens of one sequence over the whole sequence."""

    def __call__(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """Map queries (heads, tokens, D), keys and values (kv_heads, all tokens, D) to (tokens,
        heads, D).
        """
        ...


class AttendRows(Protocol):
    """Attention of one new token of each of many sequences over their cached keys and values."""

    def __call__(
        self, query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None = None
    ) -> Tensor:
        """Map queries (rows, kv_heads, queries per key head, D), keys and values (rows, kv_heads,
        tokens, D) and an additive mask to the shape of the queries.
        """
        ...


def attend_in_products(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Attention (n, heads, patches, D) by torch's products: scores and softmax in float32, weights
    in the value's dtype.

    This is as precise as torch's own bfloat16 attention, which multiplies in smaller blocks.
    """
    count, heads, patches, dim = query.shape
    result = query.new_empty(count, patches, heads, dim)
    for tile in range(count):
        for head in range(heads):
            scores = torch.mm(query[tile, head].float() * dim**-0.5, key[tile, head].float().t())
            torch.mm(
                torch.softmax(scores, dim=-1).to(query.dtype),
                value[tile, head],
                out=result[tile, :, head],
            )
    return result.transpose(1, 2)


def attend_in_onednn(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """The same attention by oneDNN's products, with keys and values in the place of a weight."""
    count, heads, patches, dim = query.shape
    result = value.new_empty(count, patches, heads, dim)
    for tile in range(count):  # one tile at a time, so that copies stay in cache
        queries = torch.mul(
            query[tile].float(),
            dim**-0.5,
            out=query.new_empty(heads, patches, dim, dtype=torch.float32),
        )
        keys, values = (
            key[tile].float().contiguous(),
            value[tile].contiguous(),
        )  # with other strides oneDNN takes a thousand times as long
        for head in range(heads):
            weights = torch.softmax(multiply(queries[head], keys[head]), dim=-1).to(value.dtype)
            result[tile, :, head] = multiply(weights, values[head].t())
    return result.transpose(1, 2)


def attend_prompt(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Causal attention of the last tokens of a sequence over the whole sequence, by torch.

    Args:
        query: (heads, tokens, D).
        key: (kv_heads, all tokens, D).
        value: (kv_heads, all tokens, D).

    Returns:
        (tokens, heads, D).
    """
    tokens, end = query.shape[1], key.shape[1]
    groups = len(query) // len(key)
    q, k, v = (
        query[None],
        key.repeat_interleave(groups, dim=0)[None],
        value.repeat_interleave(groups, dim=0)[None],
    )
    if tokens == end:
        return F.scaled_dot_product_attention(q, k, v, is_causal=tokens > 1)[0].transpose(0, 1)
    mask = torch.ones(tokens, end, dtype=torch.bool, device=q.device).tril(end - tokens)
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask)[0].transpose(0, 1)


def attend_prompt_in_onednn(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """The same attention by oneDNN's products, in blocks, as precise as ``attend_in_onednn``.

    Queries that share a key head are rows of one product; tokens after a block are not multiplied.
    torch computes short sequences, and a few tokens after many: oneDNN would have to reorder the
    keys for these.
    """
    (heads, tokens, dim), (kv_heads, end, _) = query.shape, key.shape
    groups = heads // kv_heads
    if groups * tokens <= MAX_BATCHED_QUERIES and query.dtype == torch.float32:
        return _attend_few(query, key, value)
    if end < BLOCK:
        return attend_prompt(query, key, value)
    queries, keys = (
        (query.float() * dim**-0.5).view(kv_heads, groups, tokens, dim),
        key.float().contiguous(),
    )
    result = value.new_empty(tokens, heads, dim)
    for begin in range(0, tokens, BLOCK):
        block = slice(begin, min(begin + BLOCK, tokens))
        count = block.stop - begin
        seen = end - tokens + block.stop
        hidden = torch.full((count, count), -torch.inf).triu_(1)
        for head in range(kv_heads):
            scores = multiply(
                queries[head, :, block].reshape(groups * count, dim), keys[head, :seen]
            )
            scores.view(groups, count, seen)[:, :, seen - count :].add_(hidden)
            weights = torch.softmax(scores, dim=-1).to(value.dtype)
            attended = multiply(weights, value[head, :seen].t())
            result[block, head * groups : (head + 1) * groups] = attended.view(
                groups, count, dim
            ).transpose(0, 1)
    return result


def _attend_few(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """The same attention for a few tokens in float32, as one row of a decode step."""
    (heads, tokens, dim), (kv_heads, end, _) = query.shape, key.shape
    hidden = torch.full((tokens, end), -torch.inf).triu_(end - tokens + 1)
    mask = hidden.repeat(heads // kv_heads, 1).expand(1, kv_heads, -1, -1)
    attended = attend_rows_in_products(
        query.reshape(1, kv_heads, -1, dim), key[None], value[None], mask
    )
    return attended.view(heads, tokens, dim).transpose(0, 1)


def attend_rows_in_products(
    query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None = None
) -> Tensor:
    """Attention of decode steps in float32, in one product for all rows.

    Args:
        query: (rows, kv_heads, queries per key head, D).
        key: (rows, kv_heads, tokens, D); rows and heads must be viewable as one dimension. Fastest
            if transposed in memory, tokens contiguous (``transposed_keys`` in cache.py): MKL
            multiplies few rows with such a matrix in half the time.
        value: (rows, kv_heads, tokens, D), with D contiguous.
        attn_mask: Added to the scores, (rows, kv_heads, queries per key head, tokens).
    """
    rows, heads, queries, dim = query.shape
    scores = torch.bmm(
        (query * dim**-0.5).view(rows * heads, queries, dim), key.flatten(0, 1).transpose(1, 2)
    )
    if attn_mask is not None:
        scores.view(attn_mask.shape).add_(attn_mask)
    return torch.bmm(torch.softmax(scores, dim=-1), value.flatten(0, 1)).view(query.shape)


def attend_shared_in_products(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None,
    before: Sequence[tuple[Tensor, Tensor]],
) -> Tensor:
    """The same attention of rows that also see shared tokens: one product multiplies a shared piece
    with the queries of all rows, so that it is read once.

    Args:
        query, key, value, attn_mask: As of ``attend_rows_in_products``.
        before: Keys and values (kv_heads, tokens, D) of each shared piece.
    """
    rows, heads, queries, dim = query.shape
    scaled = query * dim**-0.5
    own = torch.bmm(scaled.view(rows * heads, queries, dim), key.flatten(0, 1).transpose(1, 2))
    own = own.view(rows, heads, queries, -1)
    if attn_mask is not None:
        own.add_(attn_mask)
    together = scaled.transpose(0, 1).reshape(heads, rows * queries, dim)
    scores = [
        torch.bmm(together, keys.transpose(1, 2)).view(heads, rows, queries, -1).transpose(0, 1)
        for keys, _ in before
    ]
    weights = torch.softmax(torch.cat([*scores, own], dim=-1), dim=-1)
    *shared, last = weights.split([*(part.shape[-1] for part in scores), own.shape[-1]], dim=-1)
    result = torch.bmm(last.reshape(rows * heads, queries, -1), value.flatten(0, 1))
    result = result.view(query.shape)
    for part, (_, values) in zip(shared, before, strict=True):
        flat = part.transpose(0, 1).reshape(heads, rows * queries, -1)
        result += torch.bmm(flat, values).view(heads, rows, queries, dim).transpose(0, 1)
    return result


def attend_shared(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None,
    before: Sequence[tuple[Tensor, Tensor]],
) -> Tensor:
    """The same attention by torch's kernel for a CPU, in any precision: each part by itself, joined
    by the logarithms of their sums of exponentials (FlashAttention, arXiv:2205.14135).
    """
    rows, heads, queries, dim = query.shape
    attend = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
    found, total = attend(query, key, value, attn_mask=attn_mask)
    result: Tensor = found.float()
    together = query.transpose(0, 1).reshape(1, heads, rows * queries, dim)
    for keys, values in before:
        found, log_sum = attend(together, keys[None], values[None])
        log_sum = log_sum.reshape(heads, rows, queries).transpose(0, 1)
        found = found.view(heads, rows, queries, dim).transpose(0, 1)
        joined = torch.logaddexp(total, log_sum)
        result = result * (total - joined).exp()[..., None]
        result += found * (log_sum - joined).exp()[..., None]
        total = joined
    return result.to(query.dtype)
