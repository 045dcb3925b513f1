"""Engines: requests in, completions out. One table row an engine; torch is imported only when one
is opened.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from vlmbatch.checkpoint import Checkpoint
from vlmbatch.core import Conversation, Request
from vlmbatch.engine.base import Engine, EngineStats, RequestQueue
from vlmbatch.errors import OutOfMemoryError
from vlmbatch.job import Job

if TYPE_CHECKING:
    Prepare = Callable[[Conversation, Sequence[str]], Request]
    Decode = Callable[[Sequence[int]], str]

__all__ = ["ENGINES", "Engine", "EngineStats", "RequestQueue", "open_engine"]


def _open_torch(job: Job, checkpoint: Checkpoint, prepare: Prepare, decode: Decode) -> Engine:
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
    from vlmbatch.engine.torch.sampling import SamplingOptions
    from vlmbatch.engine.torch.shape import ModelShape
    from vlmbatch.engine.torch.weights import load_model

    device = find_device(job.device)
    if device.type == "cpu":
        keep_freed_memory()
    shape = ModelShape.from_checkpoint(checkpoint)
    dtype = find_dtype(job.dtype, device, shape.parameters)
    limit = int(device_memory(device).free * job.memory_fraction)
    if job.max_memory_bytes is not None:
        limit = min(limit, job.max_memory_bytes)
    quantized = job.quantize == "int8"
    budget = MemoryBudget(shape, dtype.itemsize, limit, CAPS[device.type], quantized=quantized)
    budget.check(checkpoint.name, job.max_new_tokens)
    options = SamplingOptions(job.temperature, job.top_p, job.max_new_tokens)
    end_ids = checkpoint.end_token_ids()
    try:
        model = load_model(checkpoint, shape, device, dtype, quantized=quantized)
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        raise OutOfMemoryError(
            f"{checkpoint.name} did not fit while it was loaded ({' '.join(str(error).split())[:200]})"
        ) from error
    kernels = {}
    # A model as small as the demo gains little, and without a choice it answers alike on every
    # machine, to the last bit of its confidence.
    if shape.parameters >= SMALL_MODEL_PARAMETERS and device.type == "cpu":
        copies = can_pack(device, dtype) and budget.reserve_packed(
            packed_bytes(model.vision, model.language)
        )
        kernels = choose_kernels(model.vision, model.language, copies=copies)
        budget.packed_bytes = packed_bytes(model.vision, model.language, chosen=True)
    record = CudaGraphs(device) if device.type == "cuda" else None
    engine = TorchEngine(
        model,
        budget,
        prepare=prepare,
        decode=decode,
        end_ids=end_ids,
        options=options,
        batch_size=job.batch_size,
        record=record,
    )
    engine.stats.kernels = kernels
    return engine


ENGINES: dict[str, Callable[[Job, Checkpoint, Prepare, Decode], Engine]] = {"torch": _open_torch}
"""Factories by name; each imports what it needs when it is called."""


def open_engine(
    job: Job, checkpoint: Checkpoint, prepare: Prepare, decode: Decode, *, name: str = "torch"
) -> Engine:
    """Loads a checkpoint into an engine.

    Args:
        job: Device, dtype, memory and generation settings.
        checkpoint: What to load.
        prepare: Makes pixels and words into a request.
        decode: Makes token ids into words.
        name: Row of the table.

    Raises:
        ModelLoadError: The checkpoint is broken or of another kind.
        DeviceError: The device or dtype is not there.
        OutOfMemoryError: The model does not fit; nothing was loaded.
    """
    return ENGINES[name](job, checkpoint, prepare, decode)
