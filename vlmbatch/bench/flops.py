"""Floating-point operations and bytes of the model's arithmetic, from its shapes alone. A
multiply-add counts as two operations.

With P patches per tile of hidden size h, m the MLP's size, L layers, T tokens per tile, s the scale
factor, and H, M, D the language model's hidden, MLP and head sizes, Q query heads, K key heads, V
the vocabulary, and c cached tokens:

    a tile      2 P 3p² h  +  L (2 P (4h² + 2hm) + 4 P² h)  +  2 T (s² h) H
    a prompt    L (2 n (H D (2Q + 2K) + 3 H M) + 2 n (n + 1) Q D)  +  2 H V
    a token     L (2 (H D (2Q + 2K) + 3 H M) + 4 c Q D)  +  2 H V

The terms of the layers are projections and MLP, then the two products of attention (causal in a
prompt, so half of the square). Norms, activations, softmax and rotary embedding are not counted:
they are a few percent, and not done by units for matrix products.
"""

from __future__ import annotations

from vlmbatch.engine.torch.shape import ModelShape, TextShape


def tile_flops(shape: ModelShape) -> int:
    """Operations to encode one tile, connector included."""
    v = shape.vision
    patch_embedding = 2 * v.patches * 3 * v.patch_size**2 * v.hidden
    layer = 2 * v.patches * (4 * v.hidden**2 + 2 * v.hidden * v.mlp) + 4 * v.patches**2 * v.hidden
    connector = 2 * shape.tile_tokens * shape.scale_factor**2 * v.hidden * shape.text.hidden
    return patch_embedding + v.layers * layer + connector


def prompt_flops(shape: ModelShape, tokens: int) -> int:
    """Operations to prefill a prompt; the output matrix sees its last token only."""
    t = shape.text
    attention = 2 * tokens * (tokens + 1) * t.heads * t.head_dim
    return t.layers * (2 * tokens * _layer_weights(t) + attention) + 2 * t.hidden * t.vocabulary


def token_flops(shape: ModelShape, cached: int) -> int:
    """Operations to decode one token after ``cached`` others."""
    t = shape.text
    return (
        t.layers * (2 * _layer_weights(t) + 4 * cached * t.heads * t.head_dim)
        + 2 * t.hidden * t.vocabulary
    )


def step_weight_bytes(shape: ModelShape, itemsize: int) -> int:
    """Bytes of weights that a decode step reads, whatever its batch size: the language model's
    layers and the output matrix.

    Args:
        shape: The model's sizes.
        itemsize: Bytes per weight: 1 if these matrices are int8.
    """
    t = shape.text
    return (t.layers * _layer_weights(t) + t.hidden * t.vocabulary) * itemsize


def _layer_weights(t: TextShape) -> int:
    return t.hidden * t.head_dim * (2 * t.heads + 2 * t.kv_heads) + 3 * t.hidden * t.mlp
