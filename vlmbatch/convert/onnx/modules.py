"""The three graphs as torch modules: vision encoder, embeddings, and the language model with keys
and values as inputs and outputs.

The matrices are stored as (in, out), so that each product is one MatMul of a constant, which the
quantizers of ONNX Runtime recognise. Norms and rotary embedding are written out as in
engine/torch/model.py.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vlmbatch.engine.torch.linear import Linear
from vlmbatch.engine.torch.model import (
    LanguageModel,
    TextLayer,
    VisionEncoder,
    VisionLayer,
    pixel_shuffle,
)
from vlmbatch.engine.torch.shape import TextShape, VisionShape

UNSEEN = -1e4
"""Added to the scores of what a token does not see. Not minus infinity: a row of padding sees
nothing, and must not give NaN. float16 has room for it and a score.
"""


class Product(nn.Module):
    """A matrix and an optional bias."""

    matrix: Tensor
    bias: Tensor | None

    def __init__(self, linear: Linear) -> None:
        super().__init__()
        self.register_buffer("matrix", linear.weight.detach().t().contiguous())
        self.register_buffer("bias", None if linear.bias is None else linear.bias.detach())

    def forward(self, x: Tensor) -> Tensor:
        """Multiply: (…, in) to (…, out)."""
        product = x @ self.matrix
        return product if self.bias is None else product + self.bias


class Norm(nn.Module):
    """A layer norm with bias, or an RMS norm without."""

    weight: Tensor
    bias: Tensor | None

    def __init__(self, weight: Tensor, bias: Tensor | None, eps: float) -> None:
        super().__init__()
        self.register_buffer("weight", weight.detach())
        self.register_buffer("bias", None if bias is None else bias.detach())
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        """Normalize the last dimension."""
        if self.bias is not None:
            return F.layer_norm(x, x.shape[-1:], self.weight, self.bias, self.eps)
        # Divided by a square root: ONNX Runtime fuses this form into one kernel.
        return x / (x.pow(2).mean(-1, keepdim=True) + self.eps).sqrt() * self.weight


class VisionGraph(nn.Module):
    """Pixels to features of the language model."""

    position: Tensor

    def __init__(self, vision: VisionEncoder) -> None:
        super().__init__()
        self.shape, self.factor = vision.shape, vision.scale_factor
        self.patch = Product(vision.patch)
        self.register_buffer("position", vision.position.detach())
        self.layers = nn.ModuleList(VisionBlock(vision.shape, layer) for layer in vision.layers)
        self.norm = Norm(*vision.norm, vision.shape.norm_eps)
        self.projection = Product(vision.projection)

    def forward(self, pixel_values: Tensor, pixel_attention_mask: Tensor) -> Tensor:
        """Encode tiles.

        Args:
            pixel_values: Normalized pixels, float32 (batch, tiles, 3, E, E).
            pixel_attention_mask: Bool (batch, tiles, E, E): a tile without a True is padding and
                has no features.

        Returns:
            Features (tiles · tile_tokens, hidden) of all tiles that are no padding, in order.
        """
        grid, p = self.shape.grid, self.shape.patch_size
        x = pixel_values.flatten(0, 1)[:, :, : grid * p, : grid * p]
        x = x.reshape(-1, 3, grid, p, grid, p).permute(0, 2, 4, 1, 3, 5)
        x = self.patch(x.reshape(-1, grid * grid, 3 * p * p)) + self.position
        for layer in self.layers:
            x = layer(x)
        features: Tensor = self.projection(pixel_shuffle(self.norm(x), grid, self.factor))
        is_tile = pixel_attention_mask.flatten(0, 1).flatten(1).any(dim=1)
        return features[is_tile].flatten(0, 1)


class VisionBlock(nn.Module):
    """One layer of the vision encoder."""

    def __init__(self, shape: VisionShape, layer: VisionLayer) -> None:
        super().__init__()
        self.heads, self.size = shape.heads, shape.hidden // shape.heads
        self.norm1 = Norm(*layer.norm1, layer.eps)
        self.qkv = Product(layer.qkv)
        self.out = Product(layer.out)
        self.norm2 = Norm(*layer.norm2, layer.eps)
        self.fc1, self.fc2 = Product(layer.fc1), Product(layer.fc2)

    def forward(self, x: Tensor) -> Tensor:
        """Map (n, patches, hidden) to the same shape."""
        patches, hidden = x.shape[1:]
        qkv = self.qkv(self.norm1(x)).reshape(-1, patches, 3, self.heads, self.size)
        query, key, value = qkv.permute(2, 0, 3, 1, 4).unbind(0)
        scores = (query * self.size**-0.5) @ key.transpose(-1, -2)
        mixed = (scores.softmax(dim=-1) @ value).transpose(1, 2)
        x = x + self.out(mixed.reshape(-1, patches, hidden))
        inner = F.gelu(self.fc1(self.norm2(x)), approximate="tanh")
        done: Tensor = x + self.fc2(inner)
        return done


class EmbeddingGraph(nn.Module):
    """Token ids to embeddings."""

    embedding: Tensor

    def __init__(self, language: LanguageModel) -> None:
        super().__init__()
        self.register_buffer("embedding", language.embedding.detach())

    def forward(self, input_ids: Tensor) -> Tensor:
        """Map int64 (batch, sequence) to (batch, sequence, hidden)."""
        return F.embedding(input_ids, self.embedding)


class DecoderGraph(nn.Module):
    """The language model."""

    cos: Tensor
    sin: Tensor

    def __init__(self, language: LanguageModel) -> None:
        super().__init__()
        self.shape = language.shape
        self.register_buffer("cos", language.cos.detach())
        self.register_buffer("sin", language.sin.detach())
        self.layers = nn.ModuleList(DecoderBlock(language.shape, each) for each in language.layers)
        self.norm = Norm(language.norm, None, language.shape.norm_eps)
        self.head = Product(language.head)

    def forward(
        self,
        inputs_embeds: Tensor,
        attention_mask: Tensor,
        position_ids: Tensor,
        past_key_values: list[Tensor],
    ) -> tuple[Tensor, ...]:
        """Compute the next logits.

        Args:
            inputs_embeds: (batch, sequence, hidden).
            attention_mask: Int64 (batch, past + sequence), 0 for padding, which may stand anywhere.
            position_ids: Position of each token in its sequence, int64 (batch, sequence).
            past_key_values: Keys and values of each layer, (batch, kv_heads, past, head_dim).

        Returns:
            Logits (batch, sequence, vocabulary), then the keys and values with the new tokens.
        """
        total, tokens = attention_mask.shape[1], inputs_embeds.shape[1]
        columns = torch.arange(total)
        is_before = columns[None, :] <= columns[total - tokens :, None]
        seen = is_before[None] & (attention_mask[:, None, :] != 0)
        bias = torch.where(seen, 0.0, UNSEEN)[:, None]
        cos, sin = (F.embedding(position_ids, table)[:, :, None] for table in (self.cos, self.sin))
        x = inputs_embeds * self.shape.embedding_multiplier
        present: list[Tensor] = []
        for layer, key, value in zip(
            self.layers, past_key_values[::2], past_key_values[1::2], strict=True
        ):
            x, *kept = layer(x, cos, sin, bias, key, value)
            present += kept
        return self.head(self.norm(x)), *present


class DecoderBlock(nn.Module):
    """One layer of the language model."""

    def __init__(self, shape: TextShape, layer: TextLayer) -> None:
        super().__init__()
        self.shape = shape
        self.input_norm = Norm(layer.input_norm, None, shape.norm_eps)
        self.qkv = Product(layer.qkv)
        self.out = Product(layer.out)
        self.mlp_norm = Norm(layer.mlp_norm, None, shape.norm_eps)
        self.gate_up = Product(layer.gate_up)
        self.down = Product(layer.down)

    def forward(
        self, x: Tensor, cos: Tensor, sin: Tensor, bias: Tensor, key: Tensor, value: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Map (batch, sequence, hidden) to the same shape, keys and values to longer ones."""
        shape = self.shape
        batch, tokens = x.shape[:2]
        heads, kv_heads, size = shape.heads, shape.kv_heads, shape.head_dim
        qkv = self.qkv(self.input_norm(x))
        qkv = qkv.reshape(batch, tokens, heads + 2 * kv_heads, size)
        unrotated, new_value = qkv.split((heads + kv_heads, kv_heads), dim=2)
        first, second = unrotated.chunk(2, dim=-1)
        rotated = unrotated * cos + torch.cat((second, first), dim=-1) * sin
        query, new_key = rotated.split((heads, kv_heads), dim=2)
        key = torch.cat((key, new_key.transpose(1, 2)), dim=2)
        value = torch.cat((value, new_value.transpose(1, 2)), dim=2)
        # The queries of a group of heads share keys: rows of one product, so that no key is copied.
        query = query.transpose(1, 2) * (shape.query_multiplier / math.sqrt(size))
        grouped = query.reshape(batch, kv_heads, heads // kv_heads * tokens, size)
        scores = (grouped @ key.transpose(-1, -2)).reshape(batch, heads, tokens, key.shape[2])
        weights = (scores + bias).softmax(dim=-1)
        mixed = weights.reshape(batch, kv_heads, heads // kv_heads * tokens, key.shape[2]) @ value
        mixed = mixed.reshape(batch, heads, tokens, size).transpose(1, 2)
        mixed = self.out(mixed.reshape(batch, tokens, heads * size))
        x = x + mixed * shape.residual_multiplier
        gate, up = self.gate_up(self.mlp_norm(x)).chunk(2, dim=-1)
        return x + self.down(F.silu(gate) * up) * shape.residual_multiplier, key, value
