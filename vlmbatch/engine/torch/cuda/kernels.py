"""The attention kernels of a device other than a CPU, and a check of them against the CPU."""

from __future__ import annotations

import copy
import dataclasses
from typing import Any, TypeVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from vlmbatch.engine.torch.cache import Cache, Segment, attend_last, attend_prompts
from vlmbatch.engine.torch.cache.packed import attend_grouped, attend_varlen
from vlmbatch.engine.torch.linear import Linear
from vlmbatch.engine.torch.model import LanguageModel, TextLayer, VisionEncoder, VisionLayer
from vlmbatch.engine.torch.weights import Model
from vlmbatch.errors import DeviceError

TOLERANCE = {torch.float32: 1e-3, torch.float16: 2e-2, torch.bfloat16: 5e-2}
"""Largest difference from the CPU's float32, relative to the largest number."""
CHECKED_PROMPTS, CHECKED_STEPS = (70, 33, 33), 2
CHECK_BYTES = 1 << 26
"""Most bytes of keys and values while a device is checked."""
Layers = TypeVar("Layers", LanguageModel, VisionEncoder)
FLASH_MAX_DIM = 256
"""Largest head that FlashAttention takes."""


def use_device_attention(model: Model) -> None:
    """Make a model on a GPU use the kernels of its device; on a CPU nothing changes."""
    device, language = model.device, model.language
    if device.type == "cpu":
        return
    language.attend_rows_of = attend_grouped
    if device.type == "cuda" and has_varlen(model):
        language.attend_rows_of = attend_varlen
    if device.type == "mps":
        language.attend_rows = attend_contiguous
        for layer in model.vision.layers:
            layer.attend = attend_contiguous


def has_varlen(model: Model) -> bool:
    """True if FlashAttention computes a model's attention: heads of at most 256 numbers in 16 bits,
    on NVIDIA's GPUs since Ampere.
    """
    try:
        from torch.nn.attention import varlen  # noqa: F401 (since torch 2.10)
    except ImportError:
        return False
    dim = model.shape.text.head_dim
    is_small = dim <= FLASH_MAX_DIM and dim % 8 == 0
    known = torch.cuda.get_device_properties(model.device)
    return is_small and model.dtype != torch.float32 and known.major >= 8


def attend_contiguous(
    query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None = None
) -> Tensor:
    """torch's attention with contiguous queries: MPS's kernel for few of them has mistaken the
    numbers of others for theirs (pytorch#163597, pytorch#181133).
    """
    return F.scaled_dot_product_attention(query.contiguous(), key, value, attn_mask=attn_mask)


@torch.inference_mode()
def check_device(model: Model) -> None:
    """Compute prompts, decode steps and a tile with the first layers of a model, on its device and
    on the CPU in float32.

    Raises:
        DeviceError: They differ by more than rounding.
    """
    device, dtype = model.device, model.dtype
    vision, language = _on_cpu(_first_layer(model.vision)), _on_cpu(_first_layer(model.language))
    wanted = _compute(model, vision, language, torch.device("cpu"), torch.float32)
    for what, found in first_layers(model).items():
        error = difference(found, wanted[what])
        if not error <= TOLERANCE[dtype]:  # also where it is not a number
            name = str(dtype).removeprefix("torch.")
            raise DeviceError(
                f"{device} computes {what} in {name} otherwise than the processor does (by "
                f"{error:.2g} of the largest number); use --device cpu, another --dtype or "
                "another version of torch"
            )


def first_layers(model: Model) -> dict[str, Tensor]:
    """Compute a tile, and prompts and decode steps, with the first layers of a model; return what
    they give on the CPU in float32.
    """
    vision, language = _first_layer(model.vision), _first_layer(model.language)
    return _compute(model, vision, language, model.device, model.dtype)


def difference(found: Tensor, wanted: Tensor) -> float:
    """Largest difference of two tensors, relative to the largest number."""
    return float((found - wanted).abs().max() / wanted.abs().max())


def _compute(
    model: Model,
    vision: VisionEncoder,
    language: LanguageModel,
    device: torch.device,
    dtype: torch.dtype,
) -> dict[str, Tensor]:
    drawn = np.random.default_rng(0)
    edge, hidden = model.shape.vision.image_size, model.shape.text.hidden
    tile = torch.from_numpy(drawn.integers(0, 256, (1, 3, edge, edge), dtype=np.uint8))
    tokens = sum(CHECKED_PROMPTS) + CHECKED_STEPS * len(CHECKED_PROMPTS)
    x = torch.from_numpy(drawn.standard_normal((tokens, hidden), dtype=np.float32))
    found = {
        "pictures": vision.hidden(tile.to(device)),
        "text": _states(language, x.to(device, dtype), model),
    }
    return {what: numbers.cpu().float() for what, numbers in found.items()}


def _states(language: LanguageModel, x: Tensor, model: Model) -> Tensor:
    """Hidden states of a few prompts and of tokens that follow them, prompt by prompt."""
    shape = dataclasses.replace(model.shape.text, layers=1)
    limit = CHECK_BYTES
    attend_rows, rows_of = language.attend_rows, language.attend_rows_of
    cache = Cache(shape, x.device, x.dtype, attend_rows, limit_bytes=lambda: limit)
    slots = [cache.take(tokens + CHECKED_STEPS) for tokens in CHECKED_PROMPTS]
    assert all(slots)
    segments = [Segment(s, n) for s, n in zip(slots, CHECKED_PROMPTS, strict=True) if s]
    kernels = language.attend_prompt, rows_of
    found: dict[int, list[Tensor]] = {number: [] for number in range(len(slots))}
    parts = list(x.split([*CHECKED_PROMPTS, *[1] * (len(x) - sum(CHECKED_PROMPTS))]))
    for step in range(1 + CHECKED_STEPS):
        attend, place = (
            attend_last(cache, [segment.slot for segment in segments], rows_of)
            if step
            else attend_prompts(cache, segments, *kernels)
        )
        given = [parts[step * len(slots) + slots.index(slot)] for slot in attend.slots]
        at = [
            slot.length + np.arange(len(part))
            for slot, part in zip(attend.slots, given, strict=True)
        ]
        (positions,) = place(np.concatenate(at))
        states = language(torch.cat(given), positions, attend).split([*map(len, given)])
        for slot, part in zip(attend.slots, states, strict=True):
            found[slots.index(slot)].append(part)
        attend.finish()
    return torch.cat([part for parts in found.values() for part in parts])


def _first_layer(network: Layers) -> Layers:
    found = copy.copy(network)
    found.layers = found.layers[:1]
    return found


def _on_cpu(value: Any) -> Any:
    """A copy of a network, layer, matrix or tensor on the CPU; fractions in float32, kernels those
    of a CPU.
    """
    if isinstance(value, Tensor):
        return value.cpu().float() if value.is_floating_point() else value.cpu()
    if isinstance(value, Linear):
        names = [field.name for field in dataclasses.fields(value)]
        moved = {name: _on_cpu(getattr(value, name)) for name in names}
        return dataclasses.replace(value, **moved)
    if isinstance(value, (list, tuple)):
        return type(value)(map(_on_cpu, value))
    if isinstance(value, (LanguageModel, VisionEncoder, TextLayer, VisionLayer)):
        found = copy.copy(value)
        vars(found).update({name: _on_cpu(part) for name, part in vars(value).items()})
        if isinstance(found, LanguageModel):
            found.attend_rows, found.attend_rows_of = F.scaled_dot_product_attention, None
        return found
    return value
