"""Export the three graphs with torch.onnx."""

from __future__ import annotations

import contextlib
import io
import logging
import math
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import onnx
import torch
from onnx import TensorProto, helper

from vlmbatch.convert.onnx.modules import DecoderGraph, EmbeddingGraph, VisionGraph
from vlmbatch.engine.torch.shape import TextShape
from vlmbatch.engine.torch.weights import Model

VISION, EMBEDDING, DECODER = "vision_encoder", "embed_tokens", "decoder_model_merged"
"""Names of the graphs, as on the hub."""
OPSET = 20
"""The first with an operator for GELU."""
INLINE_BYTES = 1 << 30
"""Larger weights go into a file beside the graph; protobuf ends at 2 GiB."""
KEEP = "num_logits_to_keep"


def export_graphs(model: Model) -> Iterator[tuple[str, onnx.ModelProto]]:
    """Export the graphs of a model in float32, one at a time."""
    yield VISION, _export_vision(model)
    yield EMBEDDING, _export_embedding(model)
    yield DECODER, _export_decoder(model)


def save_graph(graph: onnx.ModelProto, path: Path, inline_bytes: int | None = None) -> list[Path]:
    """Write a graph, with its weights in a file beside it if it is larger than ``inline_bytes``
    (``INLINE_BYTES`` if None).

    Returns:
        The files.
    """
    if weight_bytes(graph) <= (INLINE_BYTES if inline_bytes is None else inline_bytes):
        onnx.save(graph, path)
        return [path]
    beside = path.with_name(f"{path.name}_data")
    onnx.save(graph, path, save_as_external_data=True, location=beside.name, size_threshold=1 << 10)
    return [path, beside]


def weight_bytes(graph: onnx.ModelProto) -> int:
    """Return the bytes of a graph's weights. protobuf cannot tell the size of a graph that is
    larger than its limit.
    """
    return sum(
        math.prod(each.dims) * helper.tensor_dtype_to_np_dtype(each.data_type).itemsize
        for each in graph.graph.initializer
    )


def cache_names(shape: TextShape, prefix: str) -> list[str]:
    """Names of keys and values of all layers."""
    return [f"{prefix}.{i}.{kind}" for i in range(shape.layers) for kind in ("key", "value")]


def example_cache(shape: TextShape, batch: int, past: int) -> list[torch.Tensor]:
    """Keys and values of random numbers, (batch, kv_heads, past, head_dim)."""
    size = batch, shape.kv_heads, past, shape.head_dim
    return [torch.randn(size) for _ in range(2 * shape.layers)]


def _export_vision(model: Model) -> onnx.ModelProto:
    edge = model.shape.vision.image_size
    return _export(
        VisionGraph(model.vision),
        (torch.rand(2, 3, 3, edge, edge), torch.ones(2, 3, edge, edge, dtype=torch.bool)),
        {
            "pixel_values": {0: "batch", 1: "tiles"},
            "pixel_attention_mask": {0: "batch", 1: "tiles"},
        },
        ["pixel_values", "pixel_attention_mask"],
        {"image_features": ("features", model.shape.text.hidden)},
    )


def _export_embedding(model: Model) -> onnx.ModelProto:
    return _export(
        EmbeddingGraph(model.language),
        (torch.ones(2, 3, dtype=torch.int64),),
        {"input_ids": {0: "batch", 1: "sequence"}},
        ["input_ids"],
        {"inputs_embeds": ("batch", "sequence", model.shape.text.hidden)},
    )


def _export_decoder(model: Model) -> onnx.ModelProto:
    shape, batch, past, tokens = model.shape.text, 2, 5, 3
    rows = {0: "batch", 1: "sequence"}
    kept = ("batch", shape.kv_heads, "past + sequence", shape.head_dim)
    graph = _export(
        DecoderGraph(model.language),
        (
            torch.randn(batch, tokens, shape.hidden),
            torch.ones(batch, past + tokens, dtype=torch.int64),
            torch.arange(past, past + tokens).expand(batch, -1),
            example_cache(shape, batch, past),
        ),
        {
            "inputs_embeds": rows,
            "attention_mask": {0: "batch", 1: "past + sequence"},
            "position_ids": rows,
            "past_key_values": [{0: "batch", 2: "past"}] * (2 * shape.layers),
        },
        [
            "inputs_embeds",
            "attention_mask",
            "position_ids",
            *cache_names(shape, "past_key_values"),
        ],
        {"logits": ("batch", "kept", shape.vocabulary)}
        | dict.fromkeys(cache_names(shape, "present"), kept),
    )
    _keep_last(graph)
    return graph


def _keep_last(graph: onnx.ModelProto) -> None:
    """Add the input ``num_logits_to_keep``: only the last hidden states are multiplied with the
    vocabulary, which takes an eighth of a prompt's time; 0 keeps all.
    """
    nodes = graph.graph.node
    place = next(i for i, node in enumerate(nodes) if "logits" in node.output)
    hidden = nodes[place].input[0]
    for name, values in {"minus_one": [-1], "end": [(1 << 63) - 1], "axis": [1]}.items():
        graph.graph.initializer.append(
            helper.make_tensor(f"{KEEP}/{name}", TensorProto.INT64, [1], values)
        )
    graph.graph.input.append(helper.make_tensor_value_info(KEEP, TensorProto.INT64, []))
    added = [
        helper.make_node("Mul", [KEEP, f"{KEEP}/minus_one"], [f"{KEEP}/start"]),
        helper.make_node(
            "Slice",
            [hidden, f"{KEEP}/start", f"{KEEP}/end", f"{KEEP}/axis"],
            [f"{KEEP}/last"],
        ),
    ]
    for node in reversed(added):
        nodes.insert(place, node)
    nodes[place + len(added)].input[0] = f"{KEEP}/last"


def _export(
    module: torch.nn.Module,
    example: tuple[Any, ...],
    dynamic: dict[str, Any],
    inputs: list[str],
    outputs: dict[str, tuple[str | int, ...]],
) -> onnx.ModelProto:
    """Export a module.

    Args:
        module: The module.
        example: Example inputs.
        dynamic: Names of the dimensions that vary, by argument.
        inputs: Names of the inputs.
        outputs: Names and shapes of the outputs.
    """
    with quiet():
        program = torch.onnx.export(
            module.eval(),
            example,
            input_names=inputs,
            output_names=list(outputs),
            dynamic_shapes=dynamic,
            opset_version=OPSET,
            dynamo=True,
            verbose=False,
        )
    assert program is not None
    graph: onnx.ModelProto = program.model_proto
    # Shapes within the graph follow from the inputs; the exporter's names for them differ from the
    # names of the dimensions here.
    del graph.graph.value_info[:]
    del graph.metadata_props[:]
    for node in graph.graph.node:
        del node.metadata_props[:]
        node.doc_string = ""
    for output in graph.graph.output:
        kind = output.type.tensor_type.elem_type
        output.CopyFrom(helper.make_tensor_value_info(output.name, kind, outputs[output.name]))
    return graph


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keep the exporter's and the quantizers' progress from the user."""
    level = logging.root.manager.disable
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        logging.disable(logging.WARNING)
        try:
            yield
        finally:
            logging.disable(level)
