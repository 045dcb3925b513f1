"""Open the torch engine: find the checkpoint, check the memory budget, load the weights, choose
kernels.
"""

from __future__ import annotations

import functools
import logging
from typing import TYPE_CHECKING, Any

from vlmbatch.checkpoint import Checkpoint, find_checkpoint
from vlmbatch.engine.base import EnginePlan
from vlmbatch.errors import JobError, OutOfMemoryError
from vlmbatch.job import EngineOptions
from vlmbatch.prepare import Preparer

if TYPE_CHECKING:
    import torch

    from vlmbatch.engine.torch.budget import MemoryBudget
    from vlmbatch.engine.torch.cpu.choices import KeptChoice
    from vlmbatch.engine.torch.cpu.trial import BackgroundDecoder
    from vlmbatch.engine.torch.cuda.graphs import CudaGraphs
    from vlmbatch.engine.torch.engine import TorchEngine
    from vlmbatch.engine.torch.shape import ModelShape
    from vlmbatch.engine.torch.weights import Model


logger = logging.getLogger(__name__)


def plan_engine(options: EngineOptions) -> EnginePlan:
    """Find a SmolVLM2 or Idefics3 checkpoint and read its small files; torch is not loaded yet.

    Raises:
        JobError: An option that this engine cannot honour.
        ModelLoadError: It is missing, or of another kind.
    """
    if options.quantize not in ("none", "int8"):
        other = "onnx" if options.quantize == "q4" else "llama-server"
        raise JobError(
            f"engine torch has no --quantize {options.quantize}; use int8, or --engine {other}"
        )
    checkpoint = find_checkpoint(options.model, options.revision)
    preparer = Preparer.from_checkpoint(checkpoint, options.detail, options.cache_folder)
    opened = functools.partial(_open, options, checkpoint, preparer)
    return EnginePlan(
        "torch",
        options.model,
        checkpoint.revision,
        opened,
        functools.partial(opened, reuse_prefixes=True),
        can_cut=True,
        takes_clips=preparer.takes_clips,
        takes_constraints=True,
        open_again=functools.partial(_open, options, checkpoint, preparer, continued=True),
    )


def _open(
    options: EngineOptions,
    checkpoint: Checkpoint,
    preparer: Preparer,
    *,
    continued: bool = False,
    reuse_prefixes: bool = False,
) -> TorchEngine:
    from vlmbatch.engine.threads import use_threads
    from vlmbatch.engine.torch.budget import CAPS, MemoryBudget
    from vlmbatch.engine.torch.device import (
        device_memory,
        find_device,
        find_dtype,
        keep_freed_memory,
        use_device,
    )
    from vlmbatch.engine.torch.engine import TorchEngine
    from vlmbatch.engine.torch.shape import ModelShape

    device = find_device(options.device)
    use_device(device)
    threads = 0
    if device.type == "cpu":
        keep_freed_memory()
        threads = use_threads(options)
    shape = ModelShape.from_checkpoint(checkpoint)
    dtype = find_dtype(options.dtype, device, shape.parameters)
    limit = int(device_memory(device).free * options.memory_fraction)
    if options.max_memory_bytes is not None:
        limit = min(limit, options.max_memory_bytes)
    quantized = options.quantize == "int8"
    budget = MemoryBudget(shape, dtype.itemsize, limit, CAPS[device.type], quantized=quantized)
    budget.check(checkpoint.name, options.max_new_tokens or 64)
    end_ids = checkpoint.end_token_ids()
    model = _load(checkpoint, shape, device, dtype, quantized=quantized)
    fused = _use_gpu(model) if device.type != "cpu" else {}
    preparer, resizing = _share_resizing(preparer, device, budget)
    recorder, graphs = _recorder(device)
    choice, native = _choose_kernels(options, model, budget, continued=continued)
    engine = TorchEngine(
        model,
        budget,
        preparer,
        model_name=options.model,
        revision=checkpoint.revision,
        end_ids=end_ids,
        batch_size=options.batch_size,
        reuse_prefixes=reuse_prefixes,
        recorder=recorder,
        native=native,
    )
    engine.stats.threads, engine.stats.fused = threads, fused
    engine.stats.graphs, engine.stats.resizing = graphs or engine.stats.graphs, resizing
    if choice is not None:
        engine.stats.kernels = {kind: list(rows) for kind, rows in choice.kernels.items()}
        engine.stats.kernel_choice = choice.steadiness.describe()
    return engine


def _use_gpu(model: Model) -> dict[str, Any]:
    """Make a model use the kernels of its GPU, and check them; return ``EngineStats.fused``.

    Raises:
        DeviceError: The GPU computes otherwise than the CPU.
    """
    from vlmbatch.engine.torch.cuda.fused import fuse_layers
    from vlmbatch.engine.torch.cuda.kernels import check_device, use_device_attention

    use_device_attention(model)
    check_device(model)
    return fuse_layers(model) if model.device.type == "cuda" else {}


def _recorder(device: torch.device) -> tuple[CudaGraphs | None, dict[str, Any]]:
    """Return what records decode steps on CUDA, or ``EngineStats.graphs`` with the reason why
    nothing does.
    """
    from vlmbatch.engine.torch.cuda.graphs import CudaGraphs, why_no_graphs

    if device.type != "cuda":
        return None, {}
    if reason := why_no_graphs():
        note = f"{reason}; install torch 2.13 or newer"
        return None, {"recorded": 0, "replayed": 0, "notes": [note]}
    return CudaGraphs(device), {}


def _load(
    checkpoint: Checkpoint,
    shape: ModelShape,
    device: torch.device,
    dtype: torch.dtype,
    *,
    quantized: bool,
) -> Model:
    """Load the weights.

    Raises:
        OutOfMemoryError: They do not fit.
    """
    from vlmbatch.engine.torch.device import is_out_of_memory
    from vlmbatch.engine.torch.weights import load_model

    try:
        return load_model(checkpoint, shape, device, dtype, quantized=quantized)
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        message = " ".join(str(error).split())[:200]
        raise OutOfMemoryError(
            f"{checkpoint.name} did not fit while it was loaded ({message})"
        ) from error


def _share_resizing(
    preparer: Preparer, device: torch.device, budget: MemoryBudget
) -> tuple[Preparer, dict[str, Any]]:
    """Leave resizing to a GPU that has the bits of Pillow. Return the preparer, and
    ``EngineStats.resizing``.
    """
    if device.type == "cpu":
        return preparer, {}
    from vlmbatch.engine.torch.cuda.resizing_check import find_resizing_fault

    note = find_resizing_fault(device)
    if note:
        logger.warning("pictures are resized on the CPU: on %s %s", device, note)
        return preparer, {"used": False, "notes": [note]}
    return preparer.leaving_pictures(budget.resizing_bytes), {"used": True, "notes": []}


def _choose_kernels(
    options: EngineOptions, model: Model, budget: MemoryBudget, *, continued: bool
) -> tuple[KeptChoice | None, BackgroundDecoder | None]:
    """Make a model on a CPU use the fastest kernels, and the compiled decode step. A model as small
    as the demo gains little, and without them its output is bit-identical on every machine.
    """
    from vlmbatch.engine.torch.cpu.choices import KernelChoices, processor_model
    from vlmbatch.engine.torch.cpu.kernels import packed_bytes
    from vlmbatch.engine.torch.cpu.native import (
        NativeWeights,
        can_decode,
        library_of,
    )
    from vlmbatch.engine.torch.cpu.onednn import can_pack
    from vlmbatch.engine.torch.cpu.pages import use_huge_pages
    from vlmbatch.engine.torch.cpu.trial import BackgroundDecoder
    from vlmbatch.engine.torch.device import SMALL_MODEL_PARAMETERS

    if model.shape.parameters < SMALL_MODEL_PARAMETERS or model.device.type != "cpu":
        return None, None
    use_huge_pages(model.language)
    weights = NativeWeights(model.language)
    copies = can_pack(model.device, model.dtype) and budget.reserve_packed(
        packed_bytes(model.vision, model.language) + weights.int8_bytes
    )
    choices = KernelChoices(options.cache_folder)
    choice = choices.settle(model, copies=copies, continued=continued)
    budget.packed_bytes = packed_bytes(model.vision, model.language, chosen=True)
    if not can_decode(model.language) or not (copies or weights.int8_bytes == 0):
        return choice, None
    budget.packed_bytes += weights.int8_bytes
    library = library_of(weights, options.cache_folder / "native", str(processor_model()))
    return choice, BackgroundDecoder(weights, library, choices.native_rows(model, copies=copies))
