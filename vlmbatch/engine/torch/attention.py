"""Attention of a prompt's tokens, and, on a CPU, other ways to attend than torch's own: patches of
a tile to each other, tokens of a prompt and of decode steps to what came before them.

torch multiplies in blocks, by MKL. With a thousand patches a tile, oneDNN's product is on some
processors more than twice as fast; the scores of one head are a few megabytes, which stay in the
caches between the product that makes them, the softmax and the product that uses them. With a few
queries a key head, as in a decode step, most of the time of torch's own is not spent on products at
all.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from vlmbatch.engine.torch.cpu.onednn import multiply

BLOCK = 256
"""Tokens of a prompt that attend at a time: few enough that little is multiplied only to be hidden,
many enough for a product to be fast.
"""
FEW = 64
"""Queries of a key head that torch's own product of all heads multiplies fastest, in float32."""


def attend_in_products(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Attention (n, heads, patches, D) by torch's products: scores and softmax in float32, weights
    in the number format.

    That is how precise torch's own attention is in bfloat16, which multiplies it in smaller blocks.
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
    """The same by oneDNN's products, in which keys and values take the place of a weight."""
    count, heads, patches, dim = query.shape
    result = value.new_empty(count, patches, heads, dim)
    for tile in range(count):  # so that what is laid out anew stays in the caches
        queries = torch.mul(
            query[tile].float(),
            dim**-0.5,
            out=query.new_empty(heads, patches, dim, dtype=torch.float32),
        )
        keys, values = (
            key[tile].float().contiguous(),
            value[tile].contiguous(),
        )  # other strides would take oneDNN a thousand times as long
        for head in range(heads):
            weights = torch.softmax(multiply(queries[head], keys[head]), dim=-1).to(value.dtype)
            result[tile, :, head] = multiply(weights, values[head].t())
    return result.transpose(1, 2)


def attend_prompt(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Attention of the last tokens of a sequence, each to itself and to all before it, by torch's
    own.

    Args:
        query: (heads, tokens, D).
        key: (kv_heads, all tokens, D).
        value: Likewise.

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
    """The same by oneDNN's products, block by block, as precise as ``attend_in_onednn``.

    Queries that share a key head are rows of one product; what lies behind a block is not
    multiplied. Short sequences are left to torch, and so are a few
    tokens behind many: for these oneDNN would have to lay out the keys anew.
    """
    (heads, tokens, dim), (kv_heads, end, _) = query.shape, key.shape
    groups = heads // kv_heads
    if groups * tokens <= FEW and query.dtype == torch.float32:
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
    """The same for a few tokens in float32, seen as one row of a decode step."""
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
        query: (rows, kv_heads, queries a key head, D).
        key: (rows, kv_heads, tokens, D), of which rows and heads can be seen as one dimension; read
            fastest where the tokens lie side by side in memory (``turned`` in cache.py): MKL
            multiplies few rows with such a matrix in half the time.
        value: Likewise, but with D side by side.
        attn_mask: What is added to the scores, (rows, kv_heads, queries a key head, tokens).
    """
    rows, heads, queries, dim = query.shape
    scores = torch.bmm(
        (query * dim**-0.5).view(rows * heads, queries, dim), key.flatten(0, 1).transpose(1, 2)
    )
    if attn_mask is not None:
        scores.view(attn_mask.shape).add_(attn_mask)
    return torch.bmm(torch.softmax(scores, dim=-1), value.flatten(0, 1)).view(query.shape)
