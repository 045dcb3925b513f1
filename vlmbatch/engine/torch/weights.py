"""Load a checkpoint's safetensors into torch, tensor by tensor, check them against config.json, and
quantize if asked to.
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Mapping

import safetensors
import torch
from safetensors import safe_open

from vlmbatch.checkpoint import Checkpoint
from vlmbatch.engine.torch.linear import quantize
from vlmbatch.engine.torch.model import SCALE, LanguageModel, VisionEncoder, Weights
from vlmbatch.engine.torch.shape import ModelShape
from vlmbatch.errors import ModelLoadError

logger = logging.getLogger(__name__)

VISION, TEXT = "model.vision_model", "model.text_model"
"""Name prefixes of the tensors of the encoder and of the language model."""
HEAD, EMBEDDING = "lm_head.weight", f"{TEXT}.embed_tokens.weight"


@dataclasses.dataclass(frozen=True)
class Model:
    """A loaded SmolVLM2 or Idefics3.

    Attributes:
        shape: Its sizes.
        vision: Vision encoder and connector.
        language: The language model.
        device: Device of the weights.
        dtype: The dtype that it computes in.
        quantized: Whether the matrices of the language model are int8.
    """

    shape: ModelShape
    vision: VisionEncoder
    language: LanguageModel
    device: torch.device
    dtype: torch.dtype
    quantized: bool = False


def load_model(
    checkpoint: Checkpoint,
    shape: ModelShape,
    device: torch.device,
    dtype: torch.dtype,
    *,
    quantized: bool = False,
) -> Model:
    """Load the weights onto a device in a dtype.

    Args:
        checkpoint: The checkpoint.
        shape: The sizes of its config.json.
        device: The device.
        dtype: The dtype to compute in.
        quantized: Whether to quantize the matrices of the language model to int8 (linear.py). Each
            is quantized as it is read, so that only one is held in both forms.

    Raises:
        ModelLoadError: A file is broken, or a tensor is missing or has another shape than
            config.json says.
    """
    wanted = tensor_shapes(dataclasses.replace(shape, tied=False))
    tensors: dict[str, torch.Tensor] = {}
    for path in checkpoint.weight_files():
        try:
            with safe_open(path, framework="pt", device="cpu") as file:
                for stored in file.keys():  # noqa: SIM118 (not a mapping)
                    name = _full_name(stored, wanted)
                    if name is None:
                        logger.debug("%s: tensor %s is not used", path.name, stored)
                        continue
                    tensor = file.get_tensor(stored)
                    if quantized and is_quantized(name) and not (name == HEAD and shape.tied):
                        _put_quantized(tensors, name, tensor, device)
                    else:
                        tensors[name] = tensor.to(device, dtype)
        except (safetensors.SafetensorError, OSError) as error:
            raise ModelLoadError(
                f"{checkpoint.name}: {path.name} cannot be read: {error}"
            ) from error
    shape = _settle_head(tensors, shape)
    expected = tensor_shapes(shape)
    for name, size in expected.items():
        if name not in tensors:
            raise ModelLoadError(f"{checkpoint.name}: the weights lack {name}")
        if tuple(tensors[name].shape) != size:
            raise ModelLoadError(
                f"{checkpoint.name}: {name} is {tuple(tensors[name].shape)}, config.json says "
                f"{size}"
            )
    if quantized and (head := tensors[EMBEDDING if shape.tied else HEAD]).dtype != torch.int8:
        # The embeddings stay as they are; the head reads its whole matrix for every token.
        _put_quantized(tensors, HEAD, head, device)
    scale, shift = pixel_normalization(checkpoint)
    weights = Weights(tensors)
    vision = VisionEncoder(shape, weights.under("model"), scale.to(device), shift.to(device))
    return Model(shape, vision, LanguageModel(shape, weights), device, dtype, quantized)


def _full_name(stored: str, wanted: Mapping[str, object]) -> str | None:
    """Return the name of a tensor in the hub's layout, or None if it is not used.

    Files of the model without its head have no ``model.``; transformers adds or removes it too.
    """
    names = (stored, stored.removeprefix("model."), f"model.{stored}")
    return next((name for name in names if name in wanted), None)


def _settle_head(tensors: dict[str, torch.Tensor], shape: ModelShape) -> ModelShape:
    """Return the shape with ``tied`` as the files say, whatever the flag in config.json says: they
    leave a shared matrix out, and transformers keeps two that differ apart.
    """
    if shape.tied and EMBEDDING not in tensors and HEAD in tensors:
        tensors[EMBEDDING] = tensors[HEAD]
    tied = HEAD not in tensors or (shape.tied and torch.equal(tensors[HEAD], tensors[EMBEDDING]))
    if tied:
        tensors.pop(HEAD, None)
    return dataclasses.replace(shape, tied=tied)


def is_quantized(name: str) -> bool:
    """True for tensors to quantize: the matrices that a decode step reads, those of the language
    model's layers and the head.

    Embeddings are looked up, norms are small, and the vision encoder multiplies each weight with a
    thousand patches, so reading weights takes little of its time.
    """
    return name == HEAD or (name.startswith(f"{TEXT}.layers.") and name.endswith("_proj.weight"))


def _put_quantized(
    tensors: dict[str, torch.Tensor], name: str, tensor: torch.Tensor, device: torch.device
) -> None:
    if tensor.ndim != 2:
        tensors[name] = tensor  # the check of shapes reports the error
        return
    weight, scale = quantize(tensor)
    tensors[name], tensors[f"{name.removesuffix('weight')}{SCALE}"] = (
        weight.to(device),
        scale.to(device),
    )


def pixel_normalization(checkpoint: Checkpoint) -> tuple[torch.Tensor, torch.Tensor]:
    """Scale and shift by channel, each float32 (3,), to normalize uint8 pixels for the encoder."""
    settings = checkpoint.image_processor()
    ones = torch.ones(3, dtype=torch.float64)
    rescale = (
        float(settings.get("rescale_factor", 1 / 255)) if settings.get("do_rescale", True) else 1.0
    )
    if not settings.get("do_normalize", True):
        return (ones * rescale).float(), (ones * 0).float()
    mean = torch.tensor(settings.get("image_mean", [0.5] * 3), dtype=torch.float64)
    std = torch.tensor(settings.get("image_std", [0.5] * 3), dtype=torch.float64)
    return (rescale / std).float(), (-mean / std).float()


def tensor_shapes(shape: ModelShape) -> dict[str, tuple[int, ...]]:
    """Name and shape of every tensor of a checkpoint in the hub's layout."""
    v, t = shape.vision, shape.text
    vision, text = VISION, TEXT
    shapes: dict[str, tuple[int, ...]] = {
        f"{vision}.embeddings.patch_embedding.weight": (v.hidden, 3, v.patch_size, v.patch_size),
        f"{vision}.embeddings.patch_embedding.bias": (v.hidden,),
        f"{vision}.embeddings.position_embedding.weight": (v.patches, v.hidden),
        f"{vision}.post_layernorm.weight": (v.hidden,),
        f"{vision}.post_layernorm.bias": (v.hidden,),
        "model.connector.modality_projection.proj.weight": (
            t.hidden,
            v.hidden * shape.scale_factor**2,
        ),
        EMBEDDING: (t.vocabulary, t.hidden),
        f"{text}.norm.weight": (t.hidden,),
    }
    if not shape.tied:
        shapes[HEAD] = (t.vocabulary, t.hidden)
    for i in range(v.layers):
        layer = f"{vision}.encoder.layers.{i}"
        linears = {
            f"self_attn.{name}": (v.hidden, v.hidden)
            for name in ("q_proj", "k_proj", "v_proj", "out_proj")
        }
        linears |= {"mlp.fc1": (v.mlp, v.hidden), "mlp.fc2": (v.hidden, v.mlp)}
        for name, size in linears.items():
            shapes[f"{layer}.{name}.weight"], shapes[f"{layer}.{name}.bias"] = size, size[:1]
        for norm in ("layer_norm1", "layer_norm2"):
            shapes[f"{layer}.{norm}.weight"] = shapes[f"{layer}.{norm}.bias"] = (v.hidden,)
    for i in range(t.layers):
        layer = f"{text}.layers.{i}"
        query, key = t.heads * t.head_dim, t.kv_heads * t.head_dim
        sizes = {
            "self_attn.q_proj": (query, t.hidden),
            "self_attn.k_proj": (key, t.hidden),
            "self_attn.v_proj": (key, t.hidden),
        }
        sizes |= {
            "self_attn.o_proj": (t.hidden, query),
            "mlp.gate_proj": (t.mlp, t.hidden),
            "mlp.up_proj": (t.mlp, t.hidden),
        }
        sizes |= {"mlp.down_proj": (t.hidden, t.mlp)}
        shapes |= {f"{layer}.{name}.weight": size for name, size in sizes.items()}
        for norm in ("input_layernorm", "post_attention_layernorm"):
            shapes[f"{layer}.{norm}.weight"] = (t.hidden,)
    return shapes
