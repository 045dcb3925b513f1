"""Writes a checkpoint in a published model's true shapes with random weights: speed depends on shapes, not on what was learned.

python -m benchmarks.checkpoint 256m build/256m
"""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from vlmbatch.checkpoint import find_checkpoint
from vlmbatch.engine.shape import ModelShape
from vlmbatch.engine.weights import tensor_shapes

VISION = {"model_type": "smolvlm_vision", "hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12}
LARGE_VISION = {"model_type": "smolvlm_vision", "hidden_size": 1152, "intermediate_size": 4304, "num_hidden_layers": 27, "num_attention_heads": 16}
SHAPES: dict[str, dict[str, Any]] = {
    "256m": {
        "text": {"hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 30, "num_attention_heads": 9, "num_key_value_heads": 3, "rope_theta": 1e5},
        "vision": {**VISION, "image_size": 512, "patch_size": 16},
        "scale_factor": 4,
        "longest_edge": 2048,
    },
    "500m": {
        "text": {
            "hidden_size": 960,
            "intermediate_size": 2560,
            "num_hidden_layers": 32,
            "num_attention_heads": 15,
            "num_key_value_heads": 5,
            "rope_theta": 1e5,
        },
        "vision": {**VISION, "image_size": 512, "patch_size": 16},
        "scale_factor": 4,
        "longest_edge": 2048,
    },
    "2.2b": {
        "text": {
            "hidden_size": 2048,
            "intermediate_size": 8192,
            "num_hidden_layers": 24,
            "num_attention_heads": 32,
            "num_key_value_heads": 32,
            "rope_theta": 1.3e5,
        },
        "vision": {**LARGE_VISION, "image_size": 384, "patch_size": 14},
        "scale_factor": 3,
        "longest_edge": 1536,
    },
}
VOCABULARY, CONTEXT = 49280, 8192


def write_checkpoint(name: str, folder: Path, seed: int = 0) -> Path:
    """Writes weights (bfloat16, normal, 0.02) and files; tokenizer and template are the demo model's, whose ids all lie in the vocabulary."""
    folder.mkdir(parents=True, exist_ok=True)
    demo = find_checkpoint("demo")
    settings = SHAPES[name]
    vision, longest = settings["vision"], settings["longest_edge"]
    text = {"model_type": "llama", "vocab_size": VOCABULARY, "max_position_embeddings": CONTEXT, "rms_norm_eps": 1e-5, "head_dim": 64, **settings["text"]}
    for file in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "generation_config.json"):
        shutil.copy(demo.folder / file, folder)
    config = {
        "model_type": "smolvlm",
        "architectures": ["SmolVLMForConditionalGeneration"],
        "image_token_id": demo.config["image_token_id"],
        "scale_factor": settings["scale_factor"],
        "tie_word_embeddings": False,
        "text_config": {**text, "pad_token_id": 2},
        "vision_config": vision,
    }
    processor = demo.image_processor() | {"max_image_size": {"longest_edge": vision["image_size"]}, "size": {"longest_edge": longest}}
    processor["video_sampling"] = {"fps": 1, "max_frames": 64, "video_size": {"longest_edge": vision["image_size"]}}
    _write_json(folder / "config.json", config)
    _write_json(folder / "preprocessor_config.json", processor)
    shape = ModelShape.from_checkpoint(find_checkpoint(str(folder)))
    generator = torch.Generator().manual_seed(seed)
    tensors = {}
    for tensor, size in tensor_shapes(shape).items():
        if "norm" in tensor:
            tensors[tensor] = (torch.zeros if tensor.endswith("bias") else torch.ones)(size, dtype=torch.bfloat16)
        else:
            tensors[tensor] = (torch.randn(size, generator=generator) * 0.02).to(torch.bfloat16)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def _write_json(path: Path, value: object) -> None:
    path.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("shape", choices=SHAPES)
    parser.add_argument("folder", type=Path)
    arguments = parser.parse_args()
    print(write_checkpoint(arguments.shape, arguments.folder))
