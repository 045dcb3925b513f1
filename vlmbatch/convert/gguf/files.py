"""Write the two GGUF files, one tensor at a time."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from vlmbatch.checkpoint import Checkpoint
from vlmbatch.convert.gguf.tensors import Weight, Weights
from vlmbatch.convert.gguf.types import FILE_TYPES, tensor_type
from vlmbatch.convert.gguf.vocabulary import Vocabulary, add_vocabulary
from vlmbatch.engine.torch.shape import ModelShape
from vlmbatch.errors import ModelLoadError
from vlmbatch.gguf_files import import_gguf

Array = npt.NDArray[Any]


@dataclasses.dataclass(frozen=True)
class GgufFile:
    """A GGUF file before it is written.

    Attributes:
        name: Its file name.
        architecture: ``llama``, ``granite`` (Llama with multipliers) or ``clip``.
        describe: Adds its metadata to a ``GGUFWriter``.
        weights: Its tensors by name.
        types: The GGMLQuantizationType of each tensor.
        file_type: Name of the type of most of its tensors in ``LlamaFileType``.
    """

    name: str
    architecture: str
    describe: Callable[[Any], None]
    weights: Mapping[str, Weight]
    types: Mapping[str, Any]
    file_type: str

    @property
    def tensor_bytes(self) -> int:
        """Size of its tensors."""
        sizes = import_gguf().GGML_QUANT_SIZES
        total = 0
        for name, weight in self.weights.items():
            block, size = sizes[self.types[name]]
            total += math.prod(weight.shape) // block * size
        return total

    def write(self, path: Path) -> None:
        """Write it.

        Raises:
            ModelLoadError: A weight cannot be read, or is too large for the type.
            OSError: It cannot be written.
        """
        gguf = import_gguf()
        writer = gguf.GGUFWriter(path, self.architecture)
        try:
            writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
            writer.add_file_type(gguf.LlamaFileType[self.file_type])
            self.describe(writer)
            for name, weight in self.weights.items():
                kind = self.types[name]
                shape = gguf.quants.quant_shape_to_byte_shape(weight.shape, kind)
                # Sizes of whole bytes; a float has its own shape.
                is_float = kind in (gguf.GGMLQuantizationType.F32, gguf.GGMLQuantizationType.F16)
                writer.add_tensor_info(
                    name,
                    weight.shape if is_float else shape,
                    np.dtype(np.float32 if is_float else np.uint8),
                    math.prod(shape),
                    raw_dtype=kind,
                )
            writer.write_header_to_file()
            writer.write_kv_data_to_file()
            writer.write_ti_data_to_file()
            for name, weight in self.weights.items():
                writer.write_tensor_data(quantized(name, weight, self.types[name]))
        finally:
            writer.close()


def quantized(name: str, weight: Weight, kind: Any) -> Array:
    """Read a tensor and bring it into a type.

    Raises:
        ModelLoadError: A value is too large for the type.
    """
    values = np.ascontiguousarray(weight.read().float().numpy())
    with np.errstate(over="ignore"):  # looked for below
        array: Array = import_gguf().quants.quantize(values, kind)
    if array.dtype == np.float16 and not np.isfinite(array).all():
        raise ModelLoadError(f"{name} has values that float16 cannot hold: use --type bf16 or f32")
    return array


def text_file(
    name: str,
    checkpoint: Checkpoint,
    shape: ModelShape,
    weights: Weights,
    kind: str,
    vocabulary: Vocabulary,
) -> GgufFile:
    """Describe the language model's file.

    Args:
        name: Its file name.
        checkpoint: The checkpoint.
        shape: Its sizes.
        weights: Its tensors.
        kind: Type of the matrices.
        vocabulary: Its vocabulary.
    """
    tensors = weights.text()
    head = "token_embd.weight" if weights.tied else "output.weight"
    types = {
        each: tensor_type(each, weight.shape, kind, is_head=each == head)
        for each, weight in tensors.items()
    }

    text = shape.text
    architecture = "granite" if text.has_multipliers else "llama"

    def describe(writer: Any) -> None:
        writer.add_type(import_gguf().GGUFType.MODEL)
        writer.add_name(title(checkpoint))
        writer.add_vocab_size(text.vocabulary)
        writer.add_context_length(text.context)
        writer.add_embedding_length(text.hidden)
        writer.add_block_count(text.layers)
        writer.add_feed_forward_length(text.mlp)
        writer.add_head_count(text.heads)
        writer.add_head_count_kv(text.kv_heads)
        writer.add_key_length(text.head_dim)
        writer.add_value_length(text.head_dim)
        writer.add_layer_norm_rms_eps(text.norm_eps)
        writer.add_rope_dimension_count(text.head_dim)
        writer.add_rope_freq_base(text.rope_theta)
        if architecture == "granite":
            writer.add_embedding_scale(text.embedding_multiplier)
            writer.add_residual_scale(text.residual_multiplier)
            writer.add_attention_scale(text.query_multiplier / text.head_dim**0.5)
            writer.add_logit_scale(1.0)  # the checkpoint's class does not divide by it
        add_vocabulary(writer, checkpoint, vocabulary)

    return GgufFile(name, architecture, describe, tensors, types, FILE_TYPES[kind])


def vision_file(
    name: str, checkpoint: Checkpoint, shape: ModelShape, weights: Weights, kind: str
) -> GgufFile:
    """Describe the file of the vision encoder and the connector; arguments as above."""
    tensors = weights.vision()
    types = {each: tensor_type(each, weight.shape, kind) for each, weight in tensors.items()}

    def describe(writer: Any) -> None:
        gguf = import_gguf()
        vision, processor = shape.vision, checkpoint.image_processor()
        writer.add_type(gguf.GGUFType.MMPROJ)
        writer.add_name(title(checkpoint))
        writer.add_clip_has_vision_encoder(True)
        writer.add_clip_projector_type(gguf.VisionProjectorType.IDEFICS3)
        writer.add_vision_projection_dim(shape.text.hidden)
        writer.add_vision_image_size(vision.image_size)
        writer.add_vision_patch_size(vision.patch_size)
        writer.add_vision_embedding_length(vision.hidden)
        writer.add_vision_feed_forward_length(vision.mlp)
        writer.add_vision_block_count(vision.layers)
        writer.add_vision_head_count(vision.heads)
        writer.add_vision_attention_layernorm_eps(vision.norm_eps)
        writer.add_vision_projector_scale_factor(shape.scale_factor)
        writer.add_vision_use_gelu(True)
        writer.add_vision_image_mean(processor.get("image_mean", [0.5] * 3))
        writer.add_vision_image_std(processor.get("image_std", [0.5] * 3))
        writer.add_vision_preproc_image_size(processor["size"]["longest_edge"])

    return GgufFile(name, "clip", describe, tensors, types, FILE_TYPES[kind])


def title(checkpoint: Checkpoint) -> str:
    """Return the name of a model without its owner or the folders above it."""
    name = Path(checkpoint.name).expanduser().resolve().name if checkpoint.name else ""
    return name or "model"
