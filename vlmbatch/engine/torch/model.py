"""SmolVLM2 and Idefics3 in plain torch: vision encoder, connector, language model.

The language model takes tokens of many sequences side by side, without padding. Only attention
knows where a sequence ends; the caller passes it in (see cache.py). Query, key and value
projections are one matrix, and so are gate and up. What stands between the products is in
pointwise.py. Norms, rotary embedding and softmax follow transformers' modules in order and
precision. The sum of a layer's output and its input is left to the next layer, which adds and
normalizes in one operation.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from vlmbatch.engine.torch.attention import (
    Attend,
    AttendPrompt,
    AttendRows,
    AttendTiles,
    attend_prompt,
)
from vlmbatch.engine.torch.cache.packed import AttendRowsOf
from vlmbatch.engine.torch.linear import Linear, QuantizedLinear
from vlmbatch.engine.torch.pointwise import EAGER, Pointwise, add
from vlmbatch.engine.torch.shape import ModelShape, TextShape, VisionShape

WIDENED_BYTES = 16 << 20
"""Bytes of the MLP's inner activations for the tiles that a CPU encodes side by side. With four
times as much, products of the 256M shape reached 295 instead of 430 GFLOP/s on an AMD EPYC: their
output left the caches.
"""
SCALE = "weight_scale"
"""Suffix of the name of a quantized weight's scales."""


class Weights:
    """The tensors of a checkpoint by name. Tensors that are stacked into one matrix are removed."""

    def __init__(self, tensors: dict[str, Tensor], prefix: str = "") -> None:
        self.tensors, self.prefix = tensors, prefix

    def under(self, prefix: str) -> Weights:
        """Restrict to the names with a prefix."""
        return Weights(self.tensors, f"{self.prefix}{prefix}.")

    def __call__(self, name: str) -> Tensor:
        """Return a tensor by name."""
        return self.tensors[self.prefix + name]

    def linear(self, *names: str, bias: bool = False) -> Linear:
        """Stack one or several matrices along their outputs. int8 matrices come with their scales,
        see ``SCALE``.
        """
        take = (
            self.tensors.pop if len(names) > 1 else self.tensors.__getitem__
        )  # free the originals of a stacked matrix
        weights = [take(f"{self.prefix}{name}.weight") for name in names]
        biases = [take(f"{self.prefix}{name}.bias") for name in names] if bias else None
        weight, stacked = _stack(weights), _stack(biases) if biases else None
        if weight.dtype == torch.int8:
            return QuantizedLinear(
                weight,
                stacked,
                scale=_stack([take(f"{self.prefix}{name}.{SCALE}") for name in names]),
            )
        return Linear(weight, stacked)

    def __contains__(self, name: str) -> bool:
        return self.prefix + name in self.tensors


def _stack(parts: list[Tensor]) -> Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(parts)


class VisionEncoder:
    """SigLIP over square tiles, and the connector, which joins ``scale_factor``² patches into one
    token of the language model.
    """

    def __init__(
        self,
        shape: ModelShape,
        weights: Weights,
        scale: Tensor,
        shift: Tensor,
        attend: AttendTiles = F.scaled_dot_product_attention,
    ) -> None:
        """Take the weights under ``model.`` and the pixel normalization ``x * scale + shift`` by
        channel, each (3,) float32.
        """
        self.shape, self.scale_factor = shape.vision, shape.scale_factor
        self.scale, self.shift = scale, shift
        vision = weights.under("vision_model")
        patch = vision("embeddings.patch_embedding.weight")
        self.patch = Linear(
            patch.reshape(patch.shape[0], -1), vision("embeddings.patch_embedding.bias")
        )
        self.position = F.embedding(
            position_ids(shape.vision).to(patch.device),
            vision("embeddings.position_embedding.weight"),
        )
        self.layers = [
            VisionLayer(shape.vision, vision.under(f"encoder.layers.{i}"), attend)
            for i in range(shape.vision.layers)
        ]
        self.norm = (vision("post_layernorm.weight"), vision("post_layernorm.bias"))
        self.pointwise = EAGER
        self.projection = weights.linear("connector.modality_projection.proj")

    def __call__(self, tiles: Tensor) -> Tensor:
        """Encode tiles, uint8 (n, 3, E, E), to features (n, tile_tokens, text hidden)."""
        parts = [self.project(self.hidden(part)) for part in tiles.split(self._together(tiles))]
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    def _together(self, tiles: Tensor) -> int:
        """Number of tiles to encode side by side: on a CPU, as many as keep the MLP's activations
        in cache.
        """
        if tiles.device.type != "cpu":
            return len(tiles)
        return max(
            1, WIDENED_BYTES // (self.shape.patches * self.shape.mlp * self.patch.weight.itemsize)
        )

    def hidden(self, tiles: Tensor) -> Tensor:
        """Hidden states of the patches after the last norm, (n, patches, hidden)."""
        x, change = self.patch(self._patches(tiles)) + self.position, None
        for layer in self.layers:
            x, change = layer(x, change, self.pointwise)
        return self.pointwise.add_layer_norm(x, change, *self.norm, self.shape.norm_eps)[1]

    def project(self, x: Tensor) -> Tensor:
        """Join patches and project them to the language model: (n, patches, hidden) to (n,
        tile_tokens, text hidden).
        """
        return self.projection(pixel_shuffle(x, self.shape.grid, self.scale_factor))

    def _patches(self, tiles: Tensor) -> Tensor:
        """Normalized patches (n, patches, 3 * p * p) in the model's dtype. A convolution with
        stride = kernel size is a matrix product.
        """
        n, grid, p = tiles.shape[0], self.shape.grid, self.shape.patch_size
        x = tiles[:, :, : grid * p, : grid * p].to(torch.float32)
        x = (
            (x * self.scale.view(1, 3, 1, 1))
            .add_(self.shift.view(1, 3, 1, 1))
            .to(self.patch.weight.dtype)
        )
        return (
            x.view(n, 3, grid, p, grid, p)
            .permute(0, 2, 4, 1, 3, 5)
            .reshape(n, grid * grid, 3 * p * p)
        )


class VisionLayer:
    """One layer of the vision encoder: attention over all patches of a tile, then the MLP."""

    def __init__(self, shape: VisionShape, weights: Weights, attend: AttendTiles) -> None:
        self.attend = attend
        self.heads, self.eps = shape.heads, shape.norm_eps
        self.norm1 = (weights("layer_norm1.weight"), weights("layer_norm1.bias"))
        self.qkv = weights.linear(
            "self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", bias=True
        )
        self.out = weights.linear("self_attn.out_proj", bias=True)
        self.norm2 = (weights("layer_norm2.weight"), weights("layer_norm2.bias"))
        self.fc1 = weights.linear("mlp.fc1", bias=True)
        self.fc2 = weights.linear("mlp.fc2", bias=True)

    def __call__(
        self, x: Tensor, change: Tensor | None, pointwise: Pointwise
    ) -> tuple[Tensor, Tensor]:
        """Map x (n, patches, hidden), and what is to be added to it, to the same of the next
        layer.
        """
        n, patches, hidden = x.shape
        x, normed = pointwise.add_layer_norm(x, change, *self.norm1, self.eps)
        qkv = self.qkv(normed)
        query, key, value = qkv.view(n, patches, 3, self.heads, hidden // self.heads).permute(
            2, 0, 3, 1, 4
        )
        attended = self.attend(query, key, value)
        change = self.out(attended.transpose(1, 2).reshape(n, patches, hidden))
        x, normed = pointwise.add_layer_norm(x, change, *self.norm2, self.eps)
        return x, self.fc2(self.fc1.gelu(normed))


class LanguageModel:
    """Llama or Granite over tokens of many sequences side by side."""

    def __init__(self, shape: ModelShape, weights: Weights) -> None:
        """Take all weights of the checkpoint."""
        text = weights.under("model.text_model")
        self.shape = shape.text
        self.embedding = text("embed_tokens.weight")
        self.layers = [
            TextLayer(shape.text, text.under(f"layers.{i}")) for i in range(shape.text.layers)
        ]
        self.norm = text("norm.weight")
        self.head = (
            weights.linear("lm_head") if "lm_head.weight" in weights else Linear(self.embedding)
        )
        self.cos, self.sin = rotary_table(shape.text, self.embedding.device, self.embedding.dtype)
        self.attend_prompt: AttendPrompt = attend_prompt
        self.attend_rows: AttendRows = F.scaled_dot_product_attention
        self.attend_rows_of: AttendRowsOf | None = None
        """Attention of rows over a pool with tokens first; None on a CPU."""
        self.pointwise = EAGER

    def embed(self, ids: Tensor) -> Tensor:
        """Embeddings (N, hidden) of token ids (N,)."""
        return F.embedding(ids, self.embedding)

    def __call__(self, x: Tensor, positions: Tensor, attend: Attend) -> Tensor:
        """Hidden states (N, hidden) after the last layer, before the final norm.

        Args:
            x: Embeddings (N, hidden).
            positions: Position of each token in its sequence, int64 (N,).
            attend: Attention.
        """
        cos, sin = self.cos[positions].unsqueeze(1), self.sin[positions].unsqueeze(1)
        if self.shape.embedding_multiplier != 1:
            x = x * self.shape.embedding_multiplier
        change = None
        for number, layer in enumerate(self.layers):
            x, change = layer(number, x, change, (cos, sin), attend, self.pointwise)
        return add(x, change, self.shape.residual_multiplier)

    def logits(self, x: Tensor) -> Tensor:
        """Float32 logits (n, vocabulary) of hidden states (n, hidden)."""
        shape = self.shape
        norm = self.norm, shape.norm_eps, shape.residual_multiplier
        return self.head(self.pointwise.add_rms_norm(x, None, *norm)[1]).float()


class TextLayer:
    """One layer of the language model."""

    def __init__(self, shape: TextShape, weights: Weights) -> None:
        self.shape = shape
        self.input_norm = weights("input_layernorm.weight")
        self.qkv = weights.linear("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")
        self.out = weights.linear("self_attn.o_proj")
        self.mlp_norm = weights("post_attention_layernorm.weight")
        self.gate_up = weights.linear("mlp.gate_proj", "mlp.up_proj")
        self.down = weights.linear("mlp.down_proj")

    def __call__(
        self,
        number: int,
        x: Tensor,
        change: Tensor | None,
        rotation: tuple[Tensor, Tensor],
        attend: Attend,
        pointwise: Pointwise,
    ) -> tuple[Tensor, Tensor]:
        """Map x (N, hidden), and what is to be added to it, to the same of the next layer.

        Args:
            number: Number of the layer.
            x: Hidden states.
            change: The layer before, as what is to be added; None for the first layer.
            rotation: Cosines and sines of the tokens' positions, each (N, 1, head_dim).
            attend: Attention.
            pointwise: What is done between the products.
        """
        shape, added = self.shape, self.shape.residual_multiplier
        x, normed = pointwise.add_rms_norm(x, change, self.input_norm, shape.norm_eps, added)
        qkv = self.qkv(normed).view(len(x), -1, shape.head_dim)
        query, key = pointwise.rotate(
            qkv, *rotation, shape.heads, shape.kv_heads, shape.query_multiplier
        )
        value = qkv[:, shape.heads + shape.kv_heads :]
        change = self.out(attend(number, query, key, value))
        x, normed = pointwise.add_rms_norm(x, change, self.mlp_norm, shape.norm_eps, added)
        return x, self.down(pointwise.gate(self.gate_up(normed)))


def rotary_table(
    shape: TextShape, device: torch.device, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """Cosines and sines (context, head_dim) with frequencies theta^(-2i/D), computed in float32
    (RoFormer, arXiv:2104.09864).

    A pair (a, b) rotates to (a cos - b sin, b cos + a sin): the sines of the first half are
    negated.
    """
    exponents = torch.arange(0, shape.head_dim, 2, dtype=torch.float32) / shape.head_dim
    angles = torch.arange(shape.context, dtype=torch.float32)[:, None] * (
        1.0 / shape.rope_theta**exponents
    )
    cos, sin = angles.cos(), angles.sin()
    return torch.cat((cos, cos), dim=-1).to(device, dtype), torch.cat((-sin, sin), dim=-1).to(
        device, dtype
    )


def position_ids(shape: VisionShape) -> Tensor:
    """Position numbers of a tile's patches, int64 (patches,).

    transformers computes them with ``bucketize`` on float32 fractions. Rounding makes some patches
    share a neighbour's position (at 27 patches per edge, for one). The checkpoints were trained
    with it, so the same arithmetic is done here.
    """
    grid = shape.grid
    boundaries = torch.arange(1 / grid, 1.0, 1 / grid)
    fractions = torch.arange(grid, dtype=torch.float32) * (1.0 / torch.tensor(grid))
    bucket = torch.bucketize(fractions.clamp(max=1.0 - 1e-6), boundaries, right=True)
    return (bucket[:, None] * grid + bucket[None, :]).reshape(-1)


def pixel_shuffle(x: Tensor, grid: int, factor: int) -> Tensor:
    """Join squares of factor x factor patches: (n, grid², hidden) to (n, (grid / factor)², hidden *
    factor²).
    """
    n, _, hidden = x.shape
    side = grid // factor
    x = x.view(n, side, factor, side, factor, hidden).permute(0, 1, 3, 2, 4, 5)
    return x.reshape(n, side * side, factor * factor * hidden)
