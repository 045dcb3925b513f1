"""Find a model that transformers knows, and load it."""

from __future__ import annotations

import functools
import math
from typing import Any

import torch
import transformers
from safetensors import safe_open
from transformers.models.auto import image_processing_auto, modeling_auto

from vlmbatch.checkpoint import Checkpoint, find_checkpoint
from vlmbatch.engine.base import EnginePlan
from vlmbatch.engine.threads import use_threads
from vlmbatch.engine.torch.device import (
    device_memory,
    find_device,
    find_dtype,
    is_out_of_memory,
    use_device,
)
from vlmbatch.engine.transformers.engine import TransformersEngine
from vlmbatch.engine.transformers.memory import MemoryLimit
from vlmbatch.engine.transformers.processing import OwnProcessor, Processor
from vlmbatch.engine.transformers.tiled import CLIP_TYPE, TILED_TYPES, TiledProcessor
from vlmbatch.errors import JobError, ModelLoadError, OutOfMemoryError
from vlmbatch.job import Detail, EngineOptions

NAME = "transformers"
_MODELS: Any = modeling_auto
_IMAGE_PROCESSORS: Any = image_processing_auto


def plan_engine(options: EngineOptions) -> EnginePlan:
    """Find the model's files and check that this engine can answer with them. Load nothing.

    Raises:
        JobError: An option that this engine cannot honour.
        ModelLoadError: There is no such model, or transformers cannot open it without torchvision.
    """
    if options.quantize != "none":
        raise JobError(
            f"engine {NAME} has no --quantize {options.quantize}; leave it out, or use "
            "--engine torch"
        )
    checkpoint = find_checkpoint(options.model, options.revision)
    model_type = str(checkpoint.read_json("config.json", required=True).get("model_type"))
    _check_type(checkpoint.name, model_type)
    if options.detail != "full" and model_type not in TILED_TYPES:
        raise JobError(
            f"--detail {options.detail} goes with models that cut pictures into tiles "
            f"({', '.join(TILED_TYPES)}); {checkpoint.name} is of type {model_type}: use full"
        )
    opened = functools.partial(_open, checkpoint, options)
    takes_clips = model_type == CLIP_TYPE
    return EnginePlan(NAME, checkpoint.name, checkpoint.revision, opened, takes_clips=takes_clips)


def _check_type(name: str, model_type: str) -> None:
    """Refuse types that transformers does not have, or has with torchvision only."""
    if model_type not in _MODELS.MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES:
        raise ModelLoadError(
            f"transformers {transformers.__version__} has no image-text-to-text model of type "
            f"{model_type}, which {name} is"
        )
    backends = _IMAGE_PROCESSORS.IMAGE_PROCESSOR_MAPPING_NAMES.get(model_type)
    if backends and "pil" not in backends:
        raise ModelLoadError(
            f"{name}: the image processor of {model_type} needs torchvision, which this engine "
            "does without; take another model"
        )


def _open(checkpoint: Checkpoint, options: EngineOptions) -> TransformersEngine:
    """Load a model. See ``EnginePlan.open``."""
    device = find_device(options.device)
    use_device(device)
    threads = use_threads(options) if device.type == "cpu" else 0
    parameters = _parameters(checkpoint)
    dtype = find_dtype(options.dtype, device, parameters)
    limit = MemoryLimit.of(
        options.memory_fraction, options.max_memory_bytes, device_memory(device).free
    )
    limit.take_weights(checkpoint.name, parameters * dtype.itemsize)
    model = _load(checkpoint, device, dtype)
    processor = _open_processor(checkpoint, model.config, options.detail)
    engine = TransformersEngine(
        model,
        processor,
        limit,
        name=NAME,
        checkpoint=checkpoint,
        batch_size=options.batch_size,
    )
    engine.stats.threads = threads
    return engine


def _load(checkpoint: Checkpoint, device: torch.device, dtype: torch.dtype) -> Any:
    transformers.utils.logging.disable_progress_bar()
    transformers.utils.logging.set_verbosity_error()
    try:
        loaded: Any = transformers.AutoModelForImageTextToText.from_pretrained(
            checkpoint.folder,
            dtype=dtype,
            use_safetensors=True,  # no pickled weights
            trust_remote_code=False,
            local_files_only=True,
            output_loading_info=True,
        )
        model, report = loaded
        model.to(device).eval()
    except Exception as error:  # transformers, safetensors and torch raise errors of many kinds
        if is_out_of_memory(error):
            raise OutOfMemoryError(
                f"{checkpoint.name} does not fit into the memory of {device}; use a smaller model"
            ) from error
        raise ModelLoadError(f"{checkpoint.name} cannot be loaded: {error}") from error
    for what in ("missing_keys", "mismatched_keys"):
        if report[what]:
            raise ModelLoadError(
                f"{checkpoint.name}: weights do not match config.json: "
                f"{what.replace('_', ' ')} {', '.join(map(str, sorted(report[what])[:3]))}"
            )
    if model.config.is_encoder_decoder:
        raise ModelLoadError(
            f"{checkpoint.name}: encoder-decoder models ({model.config.model_type}) take no "
            "conversations; take another model"
        )
    return model


def _open_processor(checkpoint: Checkpoint, config: Any, detail: Detail) -> Processor:
    try:
        if config.model_type in TILED_TYPES:
            return TiledProcessor(checkpoint, config, detail)
        return OwnProcessor(checkpoint, config.model_type)
    except ModelLoadError:
        raise
    except Exception as error:  # transformers raises errors of many kinds
        raise ModelLoadError(
            f"{checkpoint.name}: transformers cannot open its processor: {error}"
        ) from error


def _parameters(checkpoint: Checkpoint) -> int:
    """Number of weights, from the headers of the files."""
    count = 0
    try:
        for path in checkpoint.weight_files():
            with safe_open(path, framework="pt") as file:
                keys = file.keys()
                count += sum(math.prod(file.get_slice(key).get_shape()) for key in keys)
    except ModelLoadError:
        raise
    except Exception as error:  # safetensors has an error of its own, beside those of the system
        raise ModelLoadError(f"{checkpoint.name}: the weights cannot be read: {error}") from error
    return count
