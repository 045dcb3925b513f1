"""Load a checkpoint as a transformers model, and select the weights to train."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator
from typing import Any

import peft
import torch
import transformers
from safetensors import SafetensorError, safe_open

from vlmbatch.checkpoint import Checkpoint
from vlmbatch.errors import ModelLoadError
from vlmbatch.finetune.job import FinetuneJob

PARTS = {
    "text": ("model.text_model.", "lm_head."),
    "connector": ("model.connector.",),
    "vision": ("model.vision_model.",),
}
"""Prefixes of the weights' names by part of the model."""

ADAPTED = {
    "text": r"model\.text_model\.layers\.\d+\.(self_attn\.[qkvo]_proj|mlp\.(gate|up|down)_proj)",
    "connector": r"model\.connector\.modality_projection\.proj",
    "vision": (
        r"model\.vision_model\.encoder\.layers\.\d+\.(self_attn\.([qkv]|out)_proj|mlp\.fc[12])"
    ),
}
"""Pattern of the matrices that get an adapter, by part of the model."""

_DTYPES = {"F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16}


def load_network(checkpoint: Checkpoint, dtype: torch.dtype) -> Any:
    """Load a checkpoint as transformers' model of its type, on the CPU:
    ``SmolVLMForConditionalGeneration`` or ``Idefics3ForConditionalGeneration``.

    Args:
        checkpoint: The checkpoint.
        dtype: Number format of the weights.

    Raises:
        ModelLoadError: A file is missing or broken, or lacks weights.
    """
    assert checkpoint.config  # refuses other types
    checkpoint.weight_files()
    transformers.utils.logging.disable_progress_bar()
    loaded: Any
    try:
        loaded = transformers.AutoModelForImageTextToText.from_pretrained(
            checkpoint.folder,
            dtype=dtype,
            use_safetensors=True,
            local_files_only=True,
            output_loading_info=True,
        )
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
        raise ModelLoadError(
            f"{checkpoint.name} cannot be loaded: {' '.join(str(error).split())[:300]}"
        ) from error
    model, info = loaded
    missing = set(info["missing_keys"])
    if missing == {"lm_head.weight"}:
        # Files omit a shared tensor, whatever the flag in config.json says.
        with torch.no_grad():
            model.lm_head.weight.copy_(model.get_input_embeddings().weight)
    elif missing:
        raise ModelLoadError(f"{checkpoint.name}: the weights lack {min(missing)}")
    return model


@contextlib.contextmanager
def quiet_peft() -> Iterator[None]:
    """Suppress the warning about a deprecated name of transformers that peft reads."""
    with warnings.catch_warnings():
        warnings.filterwarnings(
            "ignore", message="`is_gradient_checkpointing` is deprecated", category=FutureWarning
        )
        yield


def stored_dtype(checkpoint: Checkpoint) -> torch.dtype:
    """Return the number format of a checkpoint's weights.

    Raises:
        ModelLoadError: They cannot be read, or have a format that cannot be trained.
    """
    path = checkpoint.weight_files()[0]
    try:
        with safe_open(path, framework="pt") as file:
            name = file.get_slice(next(iter(file.keys()))).get_dtype()
    except (SafetensorError, OSError) as error:
        raise ModelLoadError(f"{checkpoint.name}: {path.name} cannot be read: {error}") from error
    if name not in _DTYPES:
        raise ModelLoadError(
            f"{checkpoint.name}: weights of the format {name} cannot be trained; there is "
            f"{', '.join(_DTYPES)}"
        )
    return _DTYPES[name]


def trainable(model: Any, job: FinetuneJob) -> Any:
    """Return a ``peft.PeftModel``, or with --full the model with its frozen parts."""
    if job.full:
        frozen = tuple(
            prefix
            for part, prefixes in PARTS.items()
            if part not in job.parts
            for prefix in prefixes
        )
        for name, weight in model.named_parameters():
            weight.requires_grad_(not name.startswith(frozen) if frozen else True)
        return model
    targets = "|".join(f"({ADAPTED[part]})" for part in job.parts)
    config = peft.LoraConfig(
        r=job.lora_rank,
        lora_alpha=job.lora_alpha,  # type: ignore[arg-type]
        lora_dropout=job.lora_dropout,
        target_modules=targets,
    )
    with quiet_peft():
        return peft.get_peft_model(model, config)
