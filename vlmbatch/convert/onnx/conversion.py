"""Convert a checkpoint to ONNX: check, write beside, read back, rename."""

from __future__ import annotations

import json
import logging
import shutil
import tempfile
from pathlib import Path
from typing import Any

import torch

from vlmbatch.checkpoint import Checkpoint
from vlmbatch.convert import Converted, ConvertOptions
from vlmbatch.convert.onnx.export import DECODER, export_graphs, save_graph
from vlmbatch.convert.onnx.types import GraphType, converted, expected_bytes, find_type
from vlmbatch.convert.onnx.verification import check_graph
from vlmbatch.convert.publishing import check_space, publish
from vlmbatch.engine.torch.device import device_memory
from vlmbatch.engine.torch.shape import ModelShape
from vlmbatch.engine.torch.weights import load_model
from vlmbatch.errors import OutputError, one_line
from vlmbatch.hub import FILES

logger = logging.getLogger(__name__)

DEFAULT_TYPE = "fp32"
WEIGHT_COPIES = 4
"""Copies of the weights in float32 that a conversion holds at its peak, as measured."""
GRAPHS = "onnx"
"""Folder of the graphs within that of the model."""
SETTINGS = "transformers.js_config"
SOURCE = "converted_from"
"""Key of config.json with the revision of the checkpoint."""


def convert(checkpoint: Checkpoint, options: ConvertOptions) -> Converted:
    """Write the graphs, and the small files beside them. See ``vlmbatch.convert.convert``."""
    name = options.type or DEFAULT_TYPE
    kind = find_type(name)
    shape = ModelShape.from_checkpoint(checkpoint)
    folder = options.output
    try:
        (folder / GRAPHS).mkdir(parents=True, exist_ok=True)
        _check_source(folder, checkpoint)
        _warn_of_memory(checkpoint, shape)
        check_space(folder, expected_bytes(shape, kind))
        with tempfile.TemporaryDirectory(prefix=".converting-", dir=folder) as temporary:
            room = Path(temporary)
            graphs, distance = _write_graphs(checkpoint, shape, name, kind, room)
            publish(graphs, folder / GRAPHS)
            small = _write_small(checkpoint, shape, folder, room)
            publish(small, folder)
    except OSError as error:
        raise OutputError(f"cannot write to {folder}: {one_line(error)}") from error
    notes = [] if kind.tolerance else [f"logits differ from float32's by {distance:.1%} (RMS)"]
    return Converted(tuple(folder / GRAPHS / path.name for path in graphs), tuple(notes))


def _warn_of_memory(checkpoint: Checkpoint, shape: ModelShape) -> None:
    """Say so if memory may run out: the system then ends the program without a word."""
    needed = WEIGHT_COPIES * expected_bytes(shape, find_type("fp32"))
    free = device_memory(torch.device("cpu")).free
    if needed > free:
        logger.warning(
            "converting %s takes about %.1f GB of memory, and %.1f GB are free: if it is ended, "
            "convert on a machine with more",
            checkpoint.name,
            needed / 1e9,
            free / 1e9,
        )


def _write_graphs(
    checkpoint: Checkpoint, shape: ModelShape, name: str, kind: GraphType, room: Path
) -> tuple[list[Path], float]:
    """Export and check the graphs.

    Returns:
        The files, those with weights before the graphs that name them; and the error of the logits.
    """
    model = load_model(checkpoint, shape, torch.device("cpu"), torch.float32)
    files: list[Path] = []
    errors: dict[str, float] = {}
    for graph_name, graph in export_graphs(model):
        path = room / f"{graph_name}{kind.suffix}.onnx"
        saved = save_graph(converted(graph, graph_name, name), path)
        del graph
        errors[graph_name] = check_graph(path, graph_name, model, kind)
        files += reversed(saved)
    return files, errors[DECODER]


def _check_source(folder: Path, checkpoint: Checkpoint) -> None:
    """Refuse a folder with graphs of another checkpoint.

    Raises:
        OutputError: There are such.
    """
    path = folder / "config.json"
    if path.is_file() and _read(path).get(SOURCE) != checkpoint.revision:
        raise OutputError(f"{folder} holds another model: take another -o, or remove it")


def _write_small(checkpoint: Checkpoint, shape: ModelShape, folder: Path, room: Path) -> list[Path]:
    """Write configuration, tokenizer, template and processor files, config.json last."""
    paths = []
    for pattern in FILES:
        for path in sorted(checkpoint.folder.glob(pattern)):
            is_weights = path.suffix == ".safetensors" or path.name.endswith(".index.json")
            if path.name != "config.json" and not is_weights:
                paths.append(Path(shutil.copyfile(path, room / path.name)))
    config = _described(checkpoint.config, shape, folder / GRAPHS) | {SOURCE: checkpoint.revision}
    path = room / "config.json"
    path.write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    return [*paths, path]


def _described(config: dict[str, Any], shape: ModelShape, graphs: Path) -> dict[str, Any]:
    """Return a config.json with what transformers.js reads of it; it has no default of a size."""
    text = shape.text
    sizes = {
        "hidden_size": text.hidden,
        "num_hidden_layers": text.layers,
        "num_attention_heads": text.heads,
        "num_key_value_heads": text.kv_heads,
        "head_dim": text.head_dim,
        "vocab_size": text.vocabulary,
    }
    text_config = {"model_type": "llama", **(config.get("text_config") or {}), **sizes}
    beside = {path.name.removesuffix("_data"): 1 for path in sorted(graphs.glob("*.onnx_data"))}
    settings = {**config.get(SETTINGS, {}), "kv_cache_dtype": {"fp16": "float16"}}
    if beside:
        settings["use_external_data_format"] = beside
    return {
        **config,
        "image_token_id": shape.image_token_id,
        "text_config": text_config,
        SETTINGS: settings,
    }


def _read(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except ValueError:
        return {}
    return value if isinstance(value, dict) else {}
