"""The demo model while it is trained: the engine's own modules over weights that learn, and a head
that says what each patch shows.
"""

from __future__ import annotations

from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from tokenizers import Tokenizer
from torch import nn

from training.patches import PATCH_CLASSES
from vlmbatch.checkpoint import find_checkpoint
from vlmbatch.engine.torch.device import cpu_has_bfloat16
from vlmbatch.engine.torch.model import LanguageModel, VisionEncoder, Weights
from vlmbatch.engine.torch.shape import ModelShape
from vlmbatch.engine.torch.weights import pixel_normalization, tensor_shapes
from vlmbatch.finetune.examples import IGNORED

HALF = torch.bfloat16 if cpu_has_bfloat16() else torch.float32
MATRICES = ("_proj.weight", "fc1.weight", "fc2.weight", "modality_projection.proj.weight")
"""How the names of hidden matrices end."""
TOKEN_ROWS = {"model.text_model.embed_tokens.weight": 0.0, "lm_head.weight": 0.1}
"""Matrices with one row a token, and how much of a new token's row stays as it was drawn."""
EMPTY_WEIGHT = 0.1
"""Of a patch that shows nothing, in the head's loss."""


class Trainee(nn.Module):
    """The engine's own modules over trainable weights, so that training and answering compute the
    same thing.

    The weights are kept in float32 and cast to the dtype of a forward pass in it.
    """

    def __init__(self, folder: Path) -> None:
        super().__init__()
        checkpoint = find_checkpoint(str(folder))
        self.tokenizer = _tokenizer(folder)
        self.shape = ModelShape.from_checkpoint(checkpoint)
        tensors = load_file(checkpoint.require("model.safetensors"))
        self.names = list(tensor_shapes(self.shape))
        self.weights = nn.ParameterList(
            [nn.Parameter(tensors[name].float()) for name in self.names]
        )
        self.head = nn.Linear(self.shape.vision.hidden, sum(PATCH_CLASSES))
        self.normalization = pixel_normalization(checkpoint)

    def start_from(self, folder: Path) -> None:
        """Takes the weights of a trained checkpoint of the same shapes; its vocabulary may differ.

        Each token keeps its rows, whatever its number. A token that the checkpoint does not have
        begins at the mean of the rows that spell it there. In lm_head a little of what was drawn
        is added: equal rows would stay equal, as tokens in no answer get equal gradients.
        """
        tensors = load_file(folder / "model.safetensors")
        spelled = spelled_before(self.tokenizer, _tokenizer(folder))
        with torch.no_grad():
            for name, weight in self.named().items():
                if name not in TOKEN_ROWS:
                    weight.copy_(tensors[name])
                    continue
                for row, ids in zip(weight, spelled, strict=True):
                    if isinstance(ids, int):
                        row.copy_(tensors[name][ids])
                    else:
                        row.mul_(TOKEN_ROWS[name]).add_(tensors[name][ids].float().mean(0))

    def named(self) -> dict[str, torch.Tensor]:
        """The checkpoint's weights by name."""
        return dict(zip(self.names, self.weights, strict=True))

    def matrices(self) -> list[torch.Tensor]:
        """The hidden matrices, each (out, in)."""
        return [
            weight
            for name, weight in self.named().items()
            if weight.ndim == 2 and name.endswith(MATRICES)
        ]

    def vision(self, dtype: torch.dtype) -> VisionEncoder:
        """The encoder over weights cast to a dtype."""
        weights = Weights(
            {
                name: weight.to(dtype)
                for name, weight in self.named().items()
                if "text_model" not in name
            }
        )
        return VisionEncoder(
            self.shape, weights.under("model"), *self.normalization, plain_attention
        )

    def forward(
        self, batch: dict[str, torch.Tensor], dtype: torch.dtype
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Logits (n, vocabulary) at the answers' tokens, these tokens (n,), and the hidden states
        of the patches (tiles, patches, hidden).
        """
        vision = self.vision(dtype)
        language = LanguageModel(
            self.shape, Weights({name: weight.to(dtype) for name, weight in self.named().items()})
        )
        hidden = vision.hidden(batch["tiles"])
        rows, longest = batch["input_ids"].shape
        ids = batch["input_ids"].reshape(-1)
        x = language.embed(ids).masked_scatter(
            (ids == self.shape.image_token_id)[:, None], vision.project(hidden)
        )
        x = language(
            x,
            batch["position_ids"].reshape(-1),
            PackedAttention(rows, longest, batch["mask"], dtype),
        )
        labels = batch["labels"].reshape(-1)
        asked = labels != IGNORED
        return language.logits(x[asked]), labels[asked], hidden

    def patch_loss(self, hidden: torch.Tensor, patches: torch.Tensor) -> torch.Tensor:
        """Cross entropy of the head over hidden states (N, P, hidden) and classes (N, P, 4), added
        up over the four.
        """
        total = hidden.new_zeros((), dtype=torch.float32)
        for i, logits in enumerate(self.head(hidden.float()).split(PATCH_CLASSES, dim=-1)):
            weight = torch.ones(PATCH_CLASSES[i], device=hidden.device)
            weight[0] = EMPTY_WEIGHT
            total = total + F.cross_entropy(
                logits.reshape(-1, PATCH_CLASSES[i]), patches[..., i].reshape(-1), weight=weight
            )
        return total


def plain_attention(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
    """Attention as products and a softmax: in bfloat16, with 144 patches a tile, forward and
    backward take a quarter of the time of torch's own.
    """
    return torch.softmax((query * query.shape[-1] ** -0.5) @ key.transpose(-1, -2), dim=-1) @ value


class PackedAttention:
    """Attention within packed examples: (rows x longest) tokens side by side, a mask that keeps
    questions apart. Plain products: their backward is fast.
    """

    def __init__(self, rows: int, longest: int, mask: torch.Tensor, dtype: torch.dtype) -> None:
        self.rows, self.longest = rows, longest
        self.mask = torch.zeros(mask.shape, dtype=dtype).masked_fill_(~mask, -30000.0)

    def __call__(
        self, layer: int, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor
    ) -> torch.Tensor:
        heads, dim = query.shape[1:]
        groups = heads // key.shape[1]
        q = query.view(self.rows, self.longest, heads, dim).transpose(1, 2) * dim**-0.5
        k = (
            key.reshape(self.rows, self.longest, -1, dim)
            .transpose(1, 2)
            .repeat_interleave(groups, dim=1)
        )
        v = (
            value.reshape(self.rows, self.longest, -1, dim)
            .transpose(1, 2)
            .repeat_interleave(groups, dim=1)
        )
        weights = torch.softmax(q @ k.transpose(-1, -2) + self.mask, dim=-1)
        return (weights @ v).transpose(1, 2).reshape(self.rows * self.longest, heads * dim)


def spelled_before(now: Tokenizer, before: Tokenizer) -> list[int | list[int]]:
    """For each token of ``now``, its id in ``before``, or the ids that spell it there."""
    spelled: list[int | list[int]] = []
    for number in range(now.get_vocab_size()):
        token = now.id_to_token(number)
        known = None if token is None else before.token_to_id(token)
        if known is not None:
            spelled.append(known)
        else:
            text = now.decode([number], skip_special_tokens=False)
            spelled.append(before.encode(text, add_special_tokens=False).ids)
    return spelled


def _tokenizer(folder: Path) -> Tokenizer:
    return Tokenizer.from_file(str(folder / "tokenizer.json"))
