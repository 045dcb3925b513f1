"""``models``: list, describe, fetch, merge, convert and compare models."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

from vlmbatch.checkpoint import (
    DEMO,
    IDEFICS3_MODELS,
    KNOWN_MODELS,
    Checkpoint,
    find_checkpoint,
)
from vlmbatch.cli.models.clean import COMMAND as CLEAN
from vlmbatch.cli.models.compare import COMMAND as COMPARE
from vlmbatch.convert import TARGETS
from vlmbatch.errors import JobError
from vlmbatch.hub import cached_folder

PHOTO_TILES = 13
"""Tiles of a photo at full detail: 4 x 3 and the whole picture."""
MEGABYTE = 10**6


@click.group(name="models", no_args_is_help=True)
def _models() -> None:
    """List, describe, fetch, merge, convert and compare models."""


@_models.command(name="list")
def _list() -> None:
    """List the models that are known to work, and their folders."""
    from vlmbatch.engine.torch.budget import KNOWN_PARAMETERS, gib

    rows = [
        ("model", "16-bit weights", "takes", "where"),
        (
            *(DEMO, "6 MiB", _takes(takes_clips=True)),
            "in the package: answers about drawn shapes only, for trying and testing",
        ),
    ]
    for name in KNOWN_MODELS + IDEFICS3_MODELS:
        takes = _takes(takes_clips=name in KNOWN_MODELS)
        where = str(cached_folder(name) or "not fetched")
        rows.append((name, gib(2 * KNOWN_PARAMETERS[name]), takes, where))
    for name, size, takes, where in rows:
        click.echo(f"{name:<48}{size:<18}{takes:<18}{where}")
    click.echo(
        "Any SmolVLM2 or Idefics3 checkpoint in the hub's layout works: a hub id or a folder."
    )


def _takes(*, takes_clips: bool) -> str:
    return "pictures, video" if takes_clips else "pictures"


@_models.command(name="info")
@click.argument("model")
@click.option("--revision", metavar="REV", help="Branch, tag or commit of a hub id.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def _info(model: str, revision: str | None, as_json: bool) -> None:
    """Show the shape of a model, and how much of it fits into this machine's memory."""
    figures = describe_model(find_checkpoint(model, revision))
    if as_json:
        click.echo(json.dumps(figures, indent=2))
        return
    for name, value in figures.items():
        click.echo(f"{name:<20}{value}")


def describe_model(checkpoint: Checkpoint) -> dict[str, Any]:
    """Return the shape of a model, and its use of memory on this machine."""
    from vlmbatch.engine.torch.budget import CAPS, MemoryBudget, gib
    from vlmbatch.engine.torch.cpu.int8 import can_prepack_int8
    from vlmbatch.engine.torch.device import device_memory, find_device, find_dtype
    from vlmbatch.engine.torch.shape import ModelShape

    shape = ModelShape.from_checkpoint(checkpoint)
    device = find_device("auto")
    dtype = find_dtype("auto", device, shape.parameters)
    free = device_memory(device).free
    budget = MemoryBudget(shape, dtype.itemsize, int(free * 0.8), CAPS[device.type])
    photos = budget.sequences(shape.tile_tokens * PHOTO_TILES + 100)
    int8_weights = gib(shape.weight_bytes(dtype.itemsize, quantized=True))
    has_products = device.type == "cpu" and can_prepack_int8()
    v, t = shape.vision, shape.text
    return {
        "model": checkpoint.name,
        "folder": str(checkpoint.folder),
        "revision": checkpoint.revision,
        "type": checkpoint.config["model_type"],
        "takes": _takes(takes_clips=checkpoint.takes_clips),
        "parameters": shape.parameters,
        "vision": f"{v.layers} layers of {v.hidden}, tiles of {v.image_size} x {v.image_size} "
        f"pixels, {shape.tile_tokens} tokens a tile",
        "text": f"{t.layers} layers of {t.hidden}, {t.heads} heads, {t.kv_heads} key heads, "
        f"{t.vocabulary} tokens, context {t.context}",
        "device": f"{device} ({gib(free)} free), {str(dtype).removeprefix('torch.')}",
        "weights": gib(budget.weight_bytes),
        "weights_int8": f"{int8_weights} with --quantize int8",
        "int8_products": "exact, used where they measure faster"
        if has_products
        else f"not on this {device.type}: saves memory, no time",
        "kv_bytes_per_token": shape.kv_bytes(dtype.itemsize),
        "fits": f"{photos} sequences of a photo at full detail, "
        f"{budget.tiles_at_once} tiles at once"
        if budget.cache_bytes
        else "no",
    }


@_models.command(name="fetch")
@click.argument("model")
@click.option("--revision", metavar="REV", help="Branch, tag or commit of a hub id.")
def _fetch(model: str, revision: str | None) -> None:
    """Fetch a model from the hub into its cache.

    HF_HOME, HF_TOKEN and HF_HUB_OFFLINE are honoured.
    """
    checkpoint = find_checkpoint(model, revision, fetch=True)
    size = sum(path.stat().st_size for path in Path(checkpoint.folder).iterdir() if path.is_file())
    click.echo(
        f"{checkpoint.name} {checkpoint.revision}: {size / 1e6:.0f} MB in {checkpoint.folder}"
    )


@_models.command(name="merge")
@click.argument("adapter")
@click.option(
    "-o", "--output", required=True, metavar="FOLDER", help="Folder of the new checkpoint."
)
@click.option(
    "--model",
    metavar="MODEL",
    help="Checkpoint that the adapter belongs to. [default: the one that it names]",
)
@click.option("--revision", metavar="REV", help="Branch, tag or commit of a hub id.")
def _merge(adapter: str, output: str, model: str | None, revision: str | None) -> None:
    """Merge an adapter of `vlmbatch finetune` into its checkpoint."""
    from vlmbatch.finetune.extras import require

    require()
    from vlmbatch.finetune.merge import merge_adapter

    checkpoint = merge_adapter(Path(adapter), Path(output), model, revision)
    click.echo(f"{checkpoint.folder} is ready: vlmbatch caption INPUT --model {output}")


@_models.command(name="convert")
@click.argument("model")
@click.option(
    "--to",
    "target",
    required=True,
    type=click.Choice(list(TARGETS)),
    help="gguf: for llama.cpp, with Modelfiles for Ollama. onnx: for ONNX Runtime "
    "(--engine onnx) and transformers.js.",
)
@click.option(
    "-o", "--output", required=True, metavar="FOLDER", help="Folder for the files; made if missing."
)
@click.option(
    "--type",
    "kind",
    metavar="TYPE",
    help="Number format of the weights. gguf: f32, f16, bf16, q8_0, q5_0 or q4_0; with "
    "--llama-quantize also q4_k_m or q5_k_m. onnx: fp32, fp16, int8 or q4. [default: f16, fp32]",
)
@click.option(
    "--llama-quantize", metavar="PATH", help="gguf: llama.cpp's llama-quantize, for K-quants."
)
@click.option("--revision", metavar="REV", help="Branch, tag or commit of a hub id.")
def _convert(
    model: str,
    target: str,
    output: str,
    kind: str | None,
    llama_quantize: str | None,
    revision: str | None,
) -> None:
    """Convert a checkpoint for another program.

    The files are read back before they take their names.
    """
    from vlmbatch.convert import ConvertOptions, convert

    if llama_quantize is not None and target != "gguf":
        raise JobError(f"--llama-quantize goes with --to gguf, not with --to {target}")
    options = ConvertOptions(Path(output), kind and kind.lower(), llama_quantize)
    converted = convert(find_checkpoint(model, revision), target, options)
    for path in converted.files:
        size = path.stat().st_size
        click.echo(f"{path}: {size / MEGABYTE:.1f} MB" if size > MEGABYTE / 10 else str(path))
    for note in converted.notes:
        click.echo(note)


_models.add_command(COMPARE)
_models.add_command(CLEAN)

COMMANDS = {"models": _models}
