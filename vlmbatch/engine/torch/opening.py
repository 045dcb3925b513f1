"""Open the torch engine: find the checkpoint, check the memory budget, load the weights, choose
kernels.
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING

from vlmbatch.checkpoint import Checkpoint, find_checkpoint
from vlmbatch.engine.base import EnginePlan
from vlmbatch.errors import OutOfMemoryError
from vlmbatch.job import EngineOptions
from vlmbatch.prepare import Preparer

if TYPE_CHECKING:
    from vlmbatch.engine.torch.engine import TorchEngine


def plan_engine(options: EngineOptions) -> EnginePlan:
    """Find a SmolVLM2 or Idefics3 checkpoint and read its small files; torch is not loaded yet.

    Raises:
        ModelLoadError: It is missing, or of another kind.
    """
    checkpoint = find_checkpoint(options.model, options.revision)
    preparer = Preparer.from_checkpoint(checkpoint, options.detail)
    return EnginePlan(
        "torch",
        options.model,
        checkpoint.revision,
        functools.partial(_open, options, checkpoint, preparer),
        can_cut=True,
        takes_clips=preparer.takes_clips,
    )


def _open(options: EngineOptions, checkpoint: Checkpoint, preparer: Preparer) -> TorchEngine:
    from vlmbatch.engine.torch.budget import CAPS, MemoryBudget
    from vlmbatch.engine.torch.cpu.kernels import choose_kernels, packed_bytes
    from vlmbatch.engine.torch.cpu.onednn import can_pack
    from vlmbatch.engine.torch.cuda.buckets import CudaGraphs
    from vlmbatch.engine.torch.device import (
        SMALL_MODEL_PARAMETERS,
        device_memory,
        find_device,
        find_dtype,
        is_out_of_memory,
        keep_freed_memory,
    )
    from vlmbatch.engine.torch.engine import TorchEngine
    from vlmbatch.engine.torch.shape import ModelShape
    from vlmbatch.engine.torch.weights import load_model

    device = find_device(options.device)
    if device.type == "cpu":
        keep_freed_memory()
    shape = ModelShape.from_checkpoint(checkpoint)
    dtype = find_dtype(options.dtype, device, shape.parameters)
    limit = int(device_memory(device).free * options.memory_fraction)
    if options.max_memory_bytes is not None:
        limit = min(limit, options.max_memory_bytes)
    quantized = options.quantize == "int8"
    budget = MemoryBudget(shape, dtype.itemsize, limit, CAPS[device.type], quantized=quantized)
    budget.check(checkpoint.name, options.max_new_tokens or 64)
    end_ids = checkpoint.end_token_ids()
    try:
        model = load_model(checkpoint, shape, device, dtype, quantized=quantized)
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        message = " ".join(str(error).split())[:200]
        raise OutOfMemoryError(
            f"{checkpoint.name} did not fit while it was loaded ({message})"
        ) from error
    kernels = {}
    # A model as small as the demo gains little; without the choice its output is bit-identical on
    # every machine.
    if shape.parameters >= SMALL_MODEL_PARAMETERS and device.type == "cpu":
        copies = can_pack(device, dtype) and budget.reserve_packed(
            packed_bytes(model.vision, model.language)
        )
        kernels = choose_kernels(model.vision, model.language, copies=copies)
        budget.packed_bytes = packed_bytes(model.vision, model.language, chosen=True)
    engine = TorchEngine(
        model,
        budget,
        preparer,
        model_name=options.model,
        revision=checkpoint.revision,
        end_ids=end_ids,
        batch_size=options.batch_size,
        recorder=CudaGraphs(device) if device.type == "cuda" else None,
    )
    engine.stats.kernels = kernels
    return engine
