"""Check graphs: by onnx's own checker, and by running them beside torch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import torch

from vlmbatch.convert.onnx.export import (
    DECODER,
    EMBEDDING,
    KEEP,
    VISION,
    cache_names,
    example_cache,
)
from vlmbatch.convert.onnx.modules import DecoderGraph, EmbeddingGraph, VisionGraph
from vlmbatch.convert.onnx.types import GraphType
from vlmbatch.engine.torch.weights import Model
from vlmbatch.errors import OutputError

Array = npt.NDArray[Any]


def check_graph(path: Path, name: str, model: Model, kind: GraphType) -> float:
    """Check a graph that was written.

    Args:
        path: Its file.
        name: Its name.
        model: The model that it was exported from.
        kind: Its number format.

    Returns:
        The error of its outputs: root mean square of the difference from torch's, as a share of
        torch's own.

    Raises:
        OutputError: It is not valid, or gives other numbers than torch.
    """
    import onnxruntime

    try:
        onnx.checker.check_model(str(path))
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        feeds, expected = _example(name, model)
        kinds = {each.name: each.type for each in session.get_inputs()}
        feeds = {
            key: value.astype(np.float16) if kinds[key] == "tensor(float16)" else value
            for key, value in feeds.items()
        }
        found = session.run(None, feeds)
    except Exception as error:  # onnx and ONNX Runtime raise errors of many kinds
        text = " ".join(str(error).split())[:300]
        raise OutputError(f"{path.name} cannot be run by ONNX Runtime: {text}") from error
    # The first row has padding, whose keys and values mean nothing.
    pairs = [
        (mine, theirs) if number == 0 else (mine[1:], theirs[1:])
        for number, (mine, theirs) in enumerate(zip(found, expected, strict=True))
    ]
    worst = max(_error(mine, theirs) for mine, theirs in pairs)
    if not np.isfinite(worst) or (kind.tolerance is not None and worst > kind.tolerance):
        raise OutputError(
            f"{path.name} gives other numbers than torch (they differ by {worst:.1%}): convert to "
            "another --type"
        )
    return worst


def _example(name: str, model: Model) -> tuple[dict[str, Array], list[Array]]:
    """Inputs of a graph by name, and torch's outputs."""
    shape, generator = model.shape, torch.Generator().manual_seed(0)
    text, edge = shape.text, shape.vision.image_size
    inputs: dict[str, torch.Tensor]
    ids = torch.arange(5)[None] % text.vocabulary
    with torch.inference_mode():
        if name == VISION:
            pixels = torch.rand(1, 2, 3, edge, edge, generator=generator) * 2 - 1
            mask = torch.tensor([True, False]).view(1, 2, 1, 1).expand(1, 2, edge, edge)
            inputs = {"pixel_values": pixels, "pixel_attention_mask": mask}
            outputs = [VisionGraph(model.vision)(pixels, mask)]
        elif name == EMBEDDING:
            inputs, outputs = {"input_ids": ids}, [EmbeddingGraph(model.language)(ids)]
        else:
            assert name == DECODER
            embeds = EmbeddingGraph(model.language)(ids).expand(2, -1, -1)
            mask = torch.ones(2, 5, dtype=torch.int64)
            mask[0, :2] = 0
            positions = (mask.cumsum(1) - 1).clamp(min=0)
            past = example_cache(text, 2, 0)
            outputs = list(DecoderGraph(model.language)(embeds, mask, positions, past))
            outputs[0] = outputs[0][:, -1:]
            inputs = {"inputs_embeds": embeds, "attention_mask": mask, "position_ids": positions}
            inputs |= dict(zip(cache_names(text, "past_key_values"), past, strict=True))
            inputs[KEEP] = torch.tensor(1)
    return {key: value.numpy() for key, value in inputs.items()}, [each.numpy() for each in outputs]


def _error(found: Array, expected: Array) -> float:
    if found.shape != expected.shape:
        return float("nan")
    difference = np.sqrt(np.mean((found.astype(np.float64) - expected) ** 2))
    return float(difference / max(np.sqrt(np.mean(expected.astype(np.float64) ** 2)), 1e-9))
