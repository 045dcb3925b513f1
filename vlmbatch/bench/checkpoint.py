"""Checkpoints with random weights in a published model's true shapes: speed depends on shapes, not
on weights.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file

from vlmbatch.bench.shapes import SHAPES
from vlmbatch.checkpoint import DEMO, find_checkpoint
from vlmbatch.engine.torch.shape import ModelShape
from vlmbatch.engine.torch.weights import tensor_shapes
from vlmbatch.errors import OutputError

VOCABULARY, CONTEXT = 49280, 8192
ARCHITECTURES = {
    "smolvlm": "SmolVLMForConditionalGeneration",
    "idefics3": "Idefics3ForConditionalGeneration",
}
COPIED = (
    "tokenizer.json",
    "tokenizer_config.json",
    "chat_template.jinja",
    "generation_config.json",
)


def cached_checkpoint(name: str, root: Path | None = None) -> Path:
    """Return the folder of a random checkpoint; write it if it is missing.

    Args:
        name: A row of ``SHAPES``.
        root: Parent folder; by default a folder of this user's in the system's temporary folder.

    Raises:
        OutputError: It cannot be written; the message names TMPDIR.
    """
    root = root or Path(tempfile.gettempdir()) / f"vlmbatch-bench-{os.getuid()}"
    demo = find_checkpoint(DEMO)
    copied = [(demo.folder / file).read_text(encoding="utf-8") for file in COPIED]
    digest = hashlib.sha256(
        json.dumps(
            [
                SHAPES[name],
                VOCABULARY,
                CONTEXT,
                demo.config["image_token_id"],
                demo.image_processor(),
                copied,
            ]
        ).encode()
    ).hexdigest()
    folder = root / f"{name}-{digest[:12]}"
    if folder.is_dir():
        return folder
    try:
        root.mkdir(mode=0o700, parents=True, exist_ok=True)
        fresh = Path(tempfile.mkdtemp(prefix=f"{name}-", dir=root))
        try:
            write_checkpoint(name, fresh)
            if not folder.is_dir():
                fresh.rename(folder)
        finally:
            shutil.rmtree(fresh, ignore_errors=True)
    except (OSError, SafetensorError) as error:
        raise OutputError(
            f"cannot write random weights to {root}: {error}; TMPDIR names another place"
        ) from error
    return folder


def write_checkpoint(
    name: str, folder: Path, seed: int = 0, *, vision_layers: int | None = None
) -> Path:
    """Write weights (bfloat16, normal, 0.02) and files. Tokenizer and template are the demo
    model's; its ids are all in the vocabulary.

    Args:
        name: A row of ``SHAPES``.
        folder: Target folder; created if missing.
        seed: Seed of the weights.
        vision_layers: Layers of the vision encoder, where it does not matter; None for all.

    Returns:
        The folder.
    """
    write_settings(name, folder, vision_layers=vision_layers)
    shape = ModelShape.from_checkpoint(find_checkpoint(str(folder)))
    generator = torch.Generator().manual_seed(seed)
    tensors = {}
    for tensor, size in tensor_shapes(shape).items():
        if "norm" in tensor:
            tensors[tensor] = (torch.zeros if tensor.endswith("bias") else torch.ones)(
                size, dtype=torch.bfloat16
            )
        else:
            tensors[tensor] = (torch.randn(size, generator=generator) * 0.02).to(torch.bfloat16)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def write_settings(name: str, folder: Path, *, vision_layers: int | None = None) -> None:
    """Write every file of a random checkpoint except the weights."""
    folder.mkdir(parents=True, exist_ok=True)
    demo = find_checkpoint(DEMO)
    settings = SHAPES[name]
    vision, longest = settings["vision"], settings["longest_edge"]
    if vision_layers is not None:
        vision = vision | {"num_hidden_layers": vision_layers}
    text = {
        "model_type": "llama",
        "vocab_size": VOCABULARY,
        "max_position_embeddings": CONTEXT,
        "rms_norm_eps": 1e-5,
        "head_dim": 64,
        **settings["text"],
    }
    for file in COPIED:
        shutil.copy(demo.folder / file, folder)
    model_type = settings.get("model_type", "smolvlm")
    config = {
        "model_type": model_type,
        "architectures": [ARCHITECTURES[model_type]],
        "image_token_id": demo.config["image_token_id"],
        "scale_factor": settings["scale_factor"],
        "tie_word_embeddings": settings.get("tied", False),
        "text_config": {**text, "pad_token_id": 2},
        "vision_config": vision,
    }
    processor = demo.image_processor() | {
        "max_image_size": {"longest_edge": vision["image_size"]},
        "size": {"longest_edge": longest},
    }
    if model_type == "smolvlm":
        processor["video_sampling"] = {
            "fps": 1,
            "max_frames": 64,
            "video_size": {"longest_edge": vision["image_size"]},
        }
    else:
        processor.pop("video_sampling", None)
        processor["image_processor_type"] = "Idefics3ImageProcessor"
        processor["processor_class"] = "Idefics3Processor"
    _write_json(folder / "config.json", config)
    _write_json(folder / "preprocessor_config.json", processor)


def _write_json(path: Path, value: object) -> None:
    path.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")
