"""The shape of a checkpoint: the sizes in config.json and those that follow, known before weights
are loaded.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

from vlmbatch.checkpoint import Checkpoint
from vlmbatch.errors import ModelLoadError

DEFAULT_TEXT = {"model_type": "llama", "rms_norm_eps": 1e-5}
"""Language model of a config.json without one (``Idefics3Config`` and ``SmolVLMConfig``)."""
DEFAULT_IMAGE_TOKEN_ID = 128257
"""Default of ``image_token_id`` in the same classes."""


@dataclasses.dataclass(frozen=True)
class VisionShape:
    """The vision encoder (SigLIP): sizes in features, edges in pixels."""

    hidden: int
    layers: int
    heads: int
    mlp: int
    image_size: int
    patch_size: int
    norm_eps: float

    @property
    def grid(self) -> int:
        """Patches per edge; pixels that do not fill a patch are dropped, as by the convolution."""
        return self.image_size // self.patch_size

    @property
    def patches(self) -> int:
        """Patches per tile."""
        return self.grid**2


@dataclasses.dataclass(frozen=True)
class TextShape:
    """The language model: Llama, or Granite, which is Llama with multipliers.

    Attributes:
        embedding_multiplier: Factor of the embeddings, those of pictures included.
        residual_multiplier: Factor of what attention and MLP add to the hidden states.
        query_multiplier: Factor of the queries, beside the usual ``head_dim ** -0.5``.
    """

    hidden: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    mlp: int
    vocabulary: int
    context: int
    norm_eps: float
    rope_theta: float
    embedding_multiplier: float = 1.0
    residual_multiplier: float = 1.0
    query_multiplier: float = 1.0

    @property
    def has_multipliers(self) -> bool:
        """True for a Granite that is not a Llama by another name."""
        own = self.embedding_multiplier, self.residual_multiplier, self.query_multiplier
        return own != (1.0, 1.0, 1.0)


@dataclasses.dataclass(frozen=True)
class ModelShape:
    """A whole SmolVLM2 or Idefics3.

    Attributes:
        vision: The vision encoder.
        text: The language model.
        scale_factor: Edge of the square of patches that the connector joins into one token.
        image_token_id: The token whose embedding a vision feature replaces.
        tied: Whether the output matrix is the embedding matrix.
    """

    vision: VisionShape
    text: TextShape
    scale_factor: int
    image_token_id: int
    tied: bool

    @property
    def tile_tokens(self) -> int:
        """Tokens per tile."""
        return self.vision.patches // self.scale_factor**2

    @property
    def parameters(self) -> int:
        """Number of weights."""
        v, t = self.vision, self.text
        vision_layer = (
            4 * v.hidden * (v.hidden + 1) + v.mlp * (2 * v.hidden + 1) + v.hidden + 4 * v.hidden
        )
        vision = (
            v.layers * vision_layer
            + (3 * v.patch_size**2 + 1) * v.hidden
            + v.patches * v.hidden
            + 2 * v.hidden
        )
        connector = v.hidden * self.scale_factor**2 * t.hidden
        text = (
            t.layers
            * (sum(outputs * inputs for outputs, inputs in self.text_layer_matrices) + 2 * t.hidden)
            + t.hidden
        )
        return vision + connector + text + (1 if self.tied else 2) * t.vocabulary * t.hidden

    @property
    def text_layer_matrices(self) -> tuple[tuple[int, int], ...]:
        """(out, in) of each matrix of a layer of the language model."""
        t = self.text
        query, key = t.heads * t.head_dim, t.kv_heads * t.head_dim
        return (
            (query, t.hidden),
            (key, t.hidden),
            (key, t.hidden),
            (t.hidden, query),
            (t.mlp, t.hidden),
            (t.mlp, t.hidden),
            (t.hidden, t.mlp),
        )

    def weight_bytes(self, itemsize: int, *, quantized: bool = False) -> int:
        """Bytes of the weights.

        Args:
            itemsize: Bytes per element of the model's dtype.
            quantized: Whether the matrices of the language model are int8 with a float32 scale per
                output. A head that is tied to the embeddings then has its own matrix.
        """
        if not quantized:
            return self.parameters * itemsize
        matrices = [
            *self.text_layer_matrices * self.text.layers,
            (self.text.vocabulary, self.text.hidden),
        ]
        whole = self.parameters - sum(
            outputs * inputs for outputs, inputs in matrices[: len(matrices) - self.tied]
        )
        return whole * itemsize + sum(outputs * (inputs + 4) for outputs, inputs in matrices)

    def kv_bytes(self, itemsize: int) -> int:
        """Bytes of keys and values per token; ``itemsize`` as above."""
        return 2 * self.text.layers * self.text.kv_heads * self.text.head_dim * itemsize

    def tile_bytes(self, itemsize: int) -> int:
        """Estimate the peak activation bytes of encoding one tile: residual, norm, MLP before and
        after the activation, float32 input; plus a quarter, as torch allocated 0.3 to 1.1 times the
        estimate (256M and demo model, float32 and bfloat16).
        """
        v = self.vision
        counted = v.patches * (4 * v.hidden + 2 * v.mlp) * itemsize + 3 * v.image_size**2 * 5
        return counted * 5 // 4

    @classmethod
    def from_checkpoint(cls, checkpoint: Checkpoint) -> ModelShape:
        """Read config.json; missing keys have the defaults of transformers' configuration classes.

        Raises:
            ModelLoadError: A key is invalid, or the checkpoint uses something that the two families
                do not have.
        """
        config, sizes = checkpoint.config, checkpoint.vision_sizes()
        try:
            return cls(
                _vision(config.get("vision_config") or {}, sizes),
                _text(config.get("text_config") or DEFAULT_TEXT),
                sizes["scale_factor"],
                int(config.get("image_token_id", DEFAULT_IMAGE_TOKEN_ID)),
                bool(config.get("tie_word_embeddings", False)),
            )
        except (KeyError, TypeError, ValueError) as error:
            raise ModelLoadError(
                f"{checkpoint.name}: config.json: {type(error).__name__}: {error}"
            ) from error


def _vision(config: Mapping[str, Any], sizes: Mapping[str, int]) -> VisionShape:
    _require(config, "hidden_act", "gelu_pytorch_tanh")
    return VisionShape(
        hidden=int(config.get("hidden_size", 1152)),
        layers=int(config.get("num_hidden_layers", 12)),
        heads=int(config.get("num_attention_heads", 16)),
        mlp=int(config.get("intermediate_size", 3072)),
        image_size=sizes["image_size"],
        patch_size=sizes["patch_size"],
        norm_eps=float(config.get("layer_norm_eps", 1e-6)),
    )


def _text(config: Mapping[str, Any]) -> TextShape:
    kind = config.get("model_type", "llama")
    if kind not in ("llama", "granite"):
        raise ValueError(f"text_config.model_type is {kind!r}; there are 'llama' and 'granite'")
    _require(config, "hidden_act", "silu")
    for name in (
        "attention_bias",
        "mlp_bias",
        "qk_layer_norms",
        "use_resampler",
        "rope_interleaved",
    ):
        _require(config, name, False)
    rope = config.get("rope_parameters") or config.get("rope_scaling") or {}
    rope_type = rope.get("rope_type", rope.get("type", "default"))
    if rope_type != "default":
        raise ValueError(f"rope of type {rope_type!r} is not supported")
    hidden, heads = int(config.get("hidden_size", 4096)), int(config.get("num_attention_heads", 32))
    shape = TextShape(
        hidden=hidden,
        layers=int(config.get("num_hidden_layers", 32)),
        heads=heads,
        kv_heads=int(config.get("num_key_value_heads") or heads),
        head_dim=int(config.get("head_dim") or hidden // heads),
        mlp=int(config.get("intermediate_size", 11008)),
        vocabulary=int(config.get("vocab_size", 32000)),
        context=int(config.get("max_position_embeddings", 2048)),
        norm_eps=float(config.get("rms_norm_eps", 1e-6)),
        rope_theta=float(rope.get("rope_theta", config.get("rope_theta", 10000.0))),
    )
    return _with_multipliers(shape, config) if kind == "granite" else shape


def _with_multipliers(shape: TextShape, config: Mapping[str, Any]) -> TextShape:
    """Add Granite's multipliers, each 1 if it is left out (``GraniteConfig``).

    Its attention multiplier takes the place of ``head_dim ** -0.5``. transformers'
    ``Idefics3ForConditionalGeneration`` does not divide by ``logits_scaling``, and neither do we.
    """
    queries = float(config.get("attention_multiplier", 1.0)) * shape.head_dim**0.5
    return dataclasses.replace(
        shape,
        embedding_multiplier=float(config.get("embedding_multiplier", 1.0)),
        residual_multiplier=float(config.get("residual_multiplier", 1.0)),
        query_multiplier=1.0 if math.isclose(queries, 1.0) else queries,
    )


def _require(config: Mapping[str, Any], name: str, value: object) -> None:
    if config.get(name, value) != value:
        raise ValueError(f"{name} is {config[name]!r}; only {value!r} is supported")
