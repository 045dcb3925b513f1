"""The tensors of a checkpoint by their names in GGUF, read one at a time."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open

from vlmbatch.checkpoint import Checkpoint
from vlmbatch.engine.torch.shape import ModelShape
from vlmbatch.engine.torch.weights import TEXT, VISION, tensor_shapes
from vlmbatch.errors import ModelLoadError

CONNECTOR = "model.connector.modality_projection.proj"
HEAD = "lm_head.weight"
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


@dataclasses.dataclass(frozen=True)
class Weight:
    """A tensor of a GGUF file before it is read.

    Attributes:
        shape: Its shape.
        read: Reads it from the checkpoint, in the checkpoint's dtype.
    """

    shape: tuple[int, ...]
    read: Callable[[], torch.Tensor]


class Weights:
    """The tensors of a checkpoint, checked against config.json.

    Attributes:
        tied: Whether the head is the embedding matrix, so that GGUF has no ``output``.
    """

    def __init__(self, checkpoint: Checkpoint, shape: ModelShape) -> None:
        """Read the headers of the files.

        Args:
            checkpoint: The checkpoint.
            shape: Its sizes.

        Raises:
            ModelLoadError: A file is broken, or a tensor is missing or has another shape than
                config.json says.
        """
        self._checkpoint, self._shape = checkpoint, shape
        self._files = self._find(tensor_shapes(dataclasses.replace(shape, tied=False)))
        self.tied = HEAD not in self._files or (shape.tied and self._is_head_shared())

    def text(self) -> dict[str, Weight]:
        """The language model by the names of GGUF."""
        t = self._shape.text
        found = self._renamed(TEXT_NAMES, f"{TEXT}.layers.", TEXT_LAYER_NAMES, "blk.")
        if self.tied:
            found.pop("output.weight", None)
        for name, weight in found.items():
            heads = {"attn_q.weight": t.heads, "attn_k.weight": t.kv_heads}.get(
                name.split(".", 2)[-1]
            )
            if heads is not None:
                found[name] = _interleaving(weight, heads)
        return found

    def vision(self) -> dict[str, Weight]:
        """The vision encoder and the connector by the names of GGUF."""
        return self._renamed(
            VISION_NAMES, f"{VISION}.encoder.layers.", VISION_LAYER_NAMES, "v.blk."
        )

    def _find(self, expected: Mapping[str, tuple[int, ...]]) -> dict[str, tuple[Path, str]]:
        """Return file and stored name of each tensor."""
        files: dict[str, tuple[Path, str]] = {}
        for path in self._checkpoint.weight_files():
            try:
                with safe_open(path, framework="pt", device="cpu") as file:
                    for stored in file.keys():  # noqa: SIM118 (not a mapping)
                        # Files of the model without its head have no ``model.``.
                        name = stored if stored in expected else f"model.{stored}"
                        if name not in expected:
                            continue
                        size = tuple(file.get_slice(stored).get_shape())
                        if size != expected[name]:
                            raise ModelLoadError(
                                f"{self._checkpoint.name}: {name} is {size}, config.json says "
                                f"{expected[name]}"
                            )
                        files[name] = path, stored
            except (SafetensorError, OSError) as error:
                raise ModelLoadError(
                    f"{self._checkpoint.name}: {path.name} cannot be read: {error}"
                ) from error
        missing = expected.keys() - files.keys() - {HEAD}
        if missing:
            raise ModelLoadError(f"{self._checkpoint.name}: the weights lack {min(missing)}")
        return files

    def _is_head_shared(self) -> bool:
        """True if the files repeat the embedding matrix as the head."""
        return torch.equal(self._read(HEAD), self._read(f"{TEXT}.embed_tokens.weight"))

    def _read(self, name: str) -> torch.Tensor:
        path, stored = self._files[name]
        # Opened anew for each tensor: a file that stays mapped counts as memory in use.
        with safe_open(path, framework="pt", device="cpu") as file:
            tensor: torch.Tensor = file.get_tensor(stored)
        return tensor

    def _renamed(
        self, names: Mapping[str, str], layers: str, layer_names: Mapping[str, str], blocks: str
    ) -> dict[str, Weight]:
        sizes = tensor_shapes(dataclasses.replace(self._shape, tied=False))
        found: dict[str, Weight] = {}
        for name in self._files:
            part, kind = name.rsplit(".", 1)
            if part in names:
                renamed = f"{names[part]}.{kind}"
            elif part.startswith(layers):
                number, rest = part.removeprefix(layers).split(".", 1)
                renamed = f"{blocks}{number}.{layer_names[rest]}.{kind}"
            else:
                continue
            found[renamed] = Weight(sizes[name], lambda name=name: self._read(name))  # type: ignore[misc]
        return found


def interleaved(weight: torch.Tensor, heads: int) -> torch.Tensor:
    """Reorder a query or key matrix (heads * D, in) for llama.cpp's rotary embedding of Llama.

    Checkpoints rotate output ``i`` with ``i + D / 2``, llama.cpp neighbouring outputs.
    """
    pairs = weight.reshape(heads, 2, -1, weight.shape[-1])
    return pairs.transpose(1, 2).reshape(weight.shape)


def _interleaving(weight: Weight, heads: int) -> Weight:
    return Weight(weight.shape, lambda: interleaved(weight.read(), heads))
