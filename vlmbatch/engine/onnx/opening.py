"""Open the ONNX engine: find the graphs, convert a checkpoint once, check the budget, load."""

from __future__ import annotations

import functools
import importlib.util
from typing import TYPE_CHECKING

from vlmbatch.engine.base import EnginePlan
from vlmbatch.engine.onnx.files import OnnxModel, find_model
from vlmbatch.errors import JobError, MissingDependencyError
from vlmbatch.job import EngineOptions
from vlmbatch.prepare import Preparer

if TYPE_CHECKING:
    from vlmbatch.engine.onnx.engine import OnnxEngine

NAME = "onnx"
CONVERTERS = ("onnx", "onnxscript")
"""Packages that a checkpoint is converted with."""
SCORE_COPIES = 3
"""Copies of the attention scores that a graph holds: products, with the mask, after the softmax."""


def plan_engine(options: EngineOptions) -> EnginePlan:
    """Find the graphs, or a checkpoint to convert. Nothing is converted or loaded yet.

    Raises:
        JobError: An option that this engine cannot honour.
        ModelLoadError: There is no such model, or it is of another kind.
        MissingDependencyError: ONNX Runtime is not installed, or what a conversion needs.
    """
    _check_options(options)
    if importlib.util.find_spec("onnxruntime") is None:
        raise MissingDependencyError(
            f"engine {NAME} needs ONNX Runtime: pip install 'vlmbatch[onnx]', or "
            "'vlmbatch[onnx-gpu]' for CUDA"
        )
    model = find_model(options)
    missing = [name for name in CONVERTERS if importlib.util.find_spec(name) is None]
    if model.given is None and missing:
        raise MissingDependencyError(
            f"{options.model} has no ONNX graphs, and converting it needs the package "
            f"{missing[0]}: pip install 'vlmbatch[onnx-export]'"
        )
    preparer = Preparer.from_checkpoint(model.checkpoint, options.detail)
    return EnginePlan(
        NAME,
        options.model,
        model.revision,
        functools.partial(_open, options, model, preparer),
        can_cut=True,
        takes_clips=preparer.takes_clips,
        takes_constraints=True,
    )


def _check_options(options: EngineOptions) -> None:
    if options.dtype == "bfloat16":
        raise JobError(
            f"engine {NAME} has no --dtype bfloat16; use float32 or float16, or --engine torch"
        )
    if options.quantize not in ("none", "int8", "q4"):
        raise JobError(
            f"engine {NAME} has no --quantize {options.quantize}; use int8 or q4, or --engine "
            "llama-server"
        )
    if options.quantize != "none" and options.dtype == "float16":
        raise JobError(
            f"engine {NAME} has no --quantize {options.quantize} with --dtype float16; leave out "
            "one of them"
        )


def _open(options: EngineOptions, model: OnnxModel, preparer: Preparer) -> OnnxEngine:
    """Load the graphs. See ``EnginePlan.open``."""
    import torch

    from vlmbatch.engine.onnx.engine import GraphBudget, OnnxEngine
    from vlmbatch.engine.onnx.graphs import load_graphs
    from vlmbatch.engine.onnx.providers import find_provider
    from vlmbatch.engine.threads import use_threads
    from vlmbatch.engine.torch.budget import CAPS
    from vlmbatch.engine.torch.device import device_memory, keep_freed_memory
    from vlmbatch.engine.torch.shape import ModelShape
    from vlmbatch.engine.torch.weights import pixel_normalization

    provider = find_provider(options.device, options.provider)
    shape = ModelShape.from_checkpoint(model.checkpoint)
    end_ids = model.checkpoint.end_token_ids()
    files = model.ready(options.cache_folder)
    is_gpu = provider.cache_device == "cuda"
    device = torch.device("cuda", provider.index) if is_gpu else torch.device("cpu")
    if is_gpu and not torch.cuda.is_available():  # a torch without CUDA beside an ONNX Runtime with
        device = torch.device("cpu")
    limit = int(device_memory(device).free * options.memory_fraction)
    limit = min(limit, options.max_memory_bytes or limit)
    v = shape.vision
    budget = GraphBudget(
        shape,
        2 if files.dtype.startswith("float16") else 4,
        limit,
        CAPS["cuda" if is_gpu else "cpu"],
        tile_bytes=shape.tile_bytes(4) + SCORE_COPIES * 4 * v.heads * v.patches**2,
        file_bytes=files.weight_bytes,
    )
    budget.check(options.model, options.max_new_tokens or 64)
    threads = use_threads(options)
    keep_freed_memory()
    graphs = load_graphs(files, shape, pixel_normalization(model.checkpoint), provider, threads)
    engine = OnnxEngine(
        graphs,
        budget,
        preparer,
        device=provider.device,
        dtype=files.dtype,
        model_name=options.model,
        revision=model.revision,
        end_ids=end_ids,
        batch_size=options.batch_size,
    )
    engine.stats.threads = threads if provider.device == "cpu" else 0
    return engine
