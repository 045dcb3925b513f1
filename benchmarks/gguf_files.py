"""Convert a checkpoint's weights to the two GGUF files that llama.cpp takes: the language model,
and the vision encoder with its connector.

Names, order and dtypes are those of llama.cpp's own ``convert_hf_to_gguf.py``, which does not know
the tokenizer of random weights.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open

from vlmbatch.checkpoint import Checkpoint
from vlmbatch.engine.torch.shape import ModelShape
from vlmbatch.engine.torch.weights import TEXT, VISION
from vlmbatch.errors import MissingDependencyError

CONNECTOR = "model.connector.modality_projection.proj"
TEXT_NAMES = {
    f"{TEXT}.embed_tokens": "token_embd",
    f"{TEXT}.norm": "output_norm",
    "lm_head": "output",
}
TEXT_LAYER_NAMES = {
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
VISION_NAMES = {
    f"{VISION}.embeddings.patch_embedding": "v.patch_embd",
    f"{VISION}.embeddings.position_embedding": "v.position_embd",
    f"{VISION}.post_layernorm": "v.post_ln",
    CONNECTOR: "mm.model.fc",
}
VISION_LAYER_NAMES = {
    "layer_norm1": "ln1",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.out_proj": "attn_out",
    "layer_norm2": "ln2",
    "mlp.fc1": "ffn_up",
    "mlp.fc2": "ffn_down",
}
NORMAL, CONTROL, UNUSED = 1, 3, 5
"""Token types in GGUF."""


def import_gguf() -> Any:
    """Import the gguf package.

    Raises:
        MissingDependencyError: It is not installed; the message says how to install it.
    """
    try:
        import gguf
    except ImportError as error:
        raise MissingDependencyError(
            f"writing GGUF files needs the gguf package: pip install gguf ({error})"
        ) from error
    return gguf


def interleaved(weight: torch.Tensor, heads: int) -> torch.Tensor:
    """Reorder a query or key matrix (heads * D, in) for llama.cpp's rotary embedding of Llama.

    Checkpoints rotate output ``i`` with ``i + D / 2``, llama.cpp neighbouring outputs.
    """
    return weight.unflatten(0, (heads, 2, -1)).transpose(1, 2).reshape(weight.shape)


def text_tensors(checkpoint: Checkpoint, shape: ModelShape) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield name and tensor of the language model."""
    for name, tensor in _renamed(
        checkpoint, TEXT_NAMES, f"{TEXT}.layers.", TEXT_LAYER_NAMES, "blk."
    ):
        if name.endswith(".attn_q.weight"):
            tensor = interleaved(tensor, shape.text.heads)
        elif name.endswith(".attn_k.weight"):
            tensor = interleaved(tensor, shape.text.kv_heads)
        if name != "output.weight" or not shape.tied:
            yield name, tensor


def vision_tensors(checkpoint: Checkpoint) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield name and tensor of the vision encoder and the connector."""
    return _renamed(
        checkpoint, VISION_NAMES, f"{VISION}.encoder.layers.", VISION_LAYER_NAMES, "v.blk."
    )


def _renamed(
    checkpoint: Checkpoint,
    names: dict[str, str],
    layers: str,
    layer_names: dict[str, str],
    blocks: str,
) -> Iterator[tuple[str, torch.Tensor]]:
    for path in checkpoint.weight_files():
        with safe_open(path, framework="pt", device="cpu") as file:
            for name in file.keys():  # noqa: SIM118 (not a mapping)
                part, kind = name.rsplit(".", 1)
                if part in names:
                    yield f"{names[part]}.{kind}", file.get_tensor(name)
                elif part.startswith(layers):
                    number, rest = part.removeprefix(layers).split(".", 1)
                    yield f"{blocks}{number}.{layer_names[rest]}.{kind}", file.get_tensor(name)


def write_text(checkpoint: Checkpoint, path: Path, dtype: torch.dtype) -> None:
    """Write the language model with the checkpoint's tokenizer, padded with unused tokens to the
    size of the vocabulary.

    Args:
        checkpoint: The checkpoint.
        path: The file.
        dtype: Dtype of the matrices, float32 or bfloat16; norms are float32.

    Raises:
        MissingDependencyError: gguf is not installed.
    """
    gguf = import_gguf()
    shape = ModelShape.from_checkpoint(checkpoint)
    text = shape.text
    writer = gguf.GGUFWriter(path, "llama")
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
    tokens, kinds, merges = vocabulary(checkpoint, text.vocabulary)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list(tokens)
    writer.add_token_types(kinds)
    writer.add_token_merges(merges)
    writer.add_eos_token_id(min(checkpoint.end_token_ids(), default=0))
    writer.add_add_bos_token(False)
    _write(gguf, writer, text_tensors(checkpoint, shape), dtype)


def vocabulary(checkpoint: Checkpoint, size: int) -> tuple[list[str], list[int], list[str]]:
    """Return tokens and their kinds by id, and the merges, of a byte-level BPE in tokenizer.json.
    Ids that it does not have are unused tokens.

    Args:
        checkpoint: The checkpoint, with its tokenizer.
        size: Number of tokens.
    """
    tokenizer = checkpoint.read_json("tokenizer.json", required=True)
    tokens, kinds = [f"<unused_{number}>" for number in range(size)], [UNUSED] * size
    for token, number in tokenizer["model"]["vocab"].items():
        tokens[number], kinds[number] = token, NORMAL
    for added in tokenizer["added_tokens"]:
        tokens[added["id"]], kinds[added["id"]] = (
            added["content"],
            CONTROL if added["special"] else NORMAL,
        )
    return (
        tokens,
        kinds,
        [
            merge if isinstance(merge, str) else " ".join(merge)
            for merge in tokenizer["model"]["merges"]
        ],
    )


def write_vision(checkpoint: Checkpoint, path: Path, dtype: torch.dtype) -> None:
    """Write the vision encoder and the connector.

    Args:
        checkpoint: The checkpoint.
        path: The file.
        dtype: Dtype of the matrices, float32 or bfloat16; norms, biases and embeddings are float32.

    Raises:
        MissingDependencyError: gguf is not installed.
    """
    gguf = import_gguf()
    shape = ModelShape.from_checkpoint(checkpoint)
    vision, processor = shape.vision, checkpoint.image_processor()
    writer = gguf.GGUFWriter(path, "clip")
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
    writer.add_vision_image_mean(processor["image_mean"])
    writer.add_vision_image_std(processor["image_std"])
    writer.add_vision_preproc_image_size(processor["size"]["longest_edge"])
    _write(gguf, writer, vision_tensors(checkpoint), dtype)


def _write(
    gguf: Any, writer: Any, tensors: Iterator[tuple[str, torch.Tensor]], dtype: torch.dtype
) -> None:
    writer.add_file_type(
        gguf.LlamaFileType.MOSTLY_BF16 if dtype == torch.bfloat16 else gguf.LlamaFileType.ALL_F32
    )
    for name, tensor in tensors:
        if dtype == torch.bfloat16 and tensor.ndim == 2 and "position_embd" not in name:
            bits = (
                tensor.to(torch.bfloat16).contiguous().view(torch.uint8).numpy()
            )  # numpy has no bfloat16
            writer.add_tensor(name, bits, raw_dtype=gguf.GGMLQuantizationType.BF16)
        else:
            writer.add_tensor(name, tensor.float().contiguous().numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
