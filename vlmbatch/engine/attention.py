"""Other ways to attend on a CPU than torch's own attention: a tile's patches to each other, and a decode step's tokens to what came before them.

torch multiplies in blocks, by MKL. With a thousand patches a tile, oneDNN's product is on some processors more than twice as fast; the scores of one head are a
few megabytes, which stay in the caches between the product that makes them, the softmax and the product that uses them. With a few queries a key head, as in a
decode step, most of the time of torch's own is not spent on products at all.
"""

from __future__ import annotations

import torch
from torch import Tensor

from vlmbatch.engine.packed import multiply


def attend_in_products(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Attention (n, heads, patches, D) by torch's products: scores and softmax in float32, weights in the number format.

    That is how precise torch's own attention is in bfloat16, which multiplies it in smaller blocks.
    """
    count, heads, patches, dim = query.shape
    result = query.new_empty(count, patches, heads, dim)
    for tile in range(count):
        for head in range(heads):
            scores = torch.mm(query[tile, head].float() * dim**-0.5, key[tile, head].float().t())
            torch.mm(torch.softmax(scores, dim=-1).to(query.dtype), value[tile, head], out=result[tile, :, head])
    return result.transpose(1, 2)


def attend_in_onednn(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """The same by oneDNN's products. Keys and values take the place of a weight, for which the values of a head are turned to (D, patches)."""
    count, heads, patches, dim = query.shape
    result = value.new_empty(count, patches, heads, dim)
    for tile in range(count):  # so that what is laid out anew stays in the caches
        queries = torch.mul(query[tile].float(), dim**-0.5, out=query.new_empty(heads, patches, dim, dtype=torch.float32))
        keys = key[tile].float().contiguous()
        turned = value[tile].transpose(-1, -2).contiguous()
        for head in range(heads):
            weights = torch.softmax(multiply(queries[head], keys[head]), dim=-1).to(value.dtype)
            result[tile, :, head] = multiply(weights, turned[head])
    return result.transpose(1, 2)


def attend_rows_in_products(query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None = None) -> Tensor:
    """Attention of decode steps in float32, in one product for all rows.

    Args:
        query: (rows, kv_heads, queries a key head, D).
        key: (rows, kv_heads, tokens, D), of which rows and heads can be seen as one dimension.
        value: Likewise.
        attn_mask: What is added to the scores, (rows, kv_heads, queries a key head, tokens).
    """
    rows, heads, queries, dim = query.shape
    scores = torch.bmm((query * dim**-0.5).view(rows * heads, queries, dim), key.flatten(0, 1).transpose(1, 2))
    if attn_mask is not None:
        scores.view(attn_mask.shape).add_(attn_mask)
    return torch.bmm(torch.softmax(scores, dim=-1), value.flatten(0, 1)).view(query.shape)
