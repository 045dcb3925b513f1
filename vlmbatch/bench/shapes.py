"""Sizes of the published SmolVLM2 and Idefics3 checkpoints, from their config.json, by the names
that ``--shape`` takes.
"""

from __future__ import annotations

from typing import Any

_VISION = {
    "model_type": "smolvlm_vision",
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
}
_LARGE_VISION = {
    "model_type": "smolvlm_vision",
    "hidden_size": 1152,
    "intermediate_size": 4304,
    "num_hidden_layers": 27,
    "num_attention_heads": 16,
}
_SMOLVLM2: dict[str, dict[str, Any]] = {
    "256m": {
        "text": {
            "hidden_size": 576,
            "intermediate_size": 1536,
            "num_hidden_layers": 30,
            "num_attention_heads": 9,
            "num_key_value_heads": 3,
            "rope_theta": 1e5,
        },
        "vision": {**_VISION, "image_size": 512, "patch_size": 16},
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
        "vision": {**_VISION, "image_size": 512, "patch_size": 16},
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
        "vision": {**_LARGE_VISION, "image_size": 384, "patch_size": 14},
        "scale_factor": 3,
        "longest_edge": 1536,
    },
}


def _idefics3(name: str, *, tied: bool = False, **text: int | float) -> dict[str, Any]:
    """The Idefics3 with the sizes of a SmolVLM2, but for some of its language model."""
    same = _SMOLVLM2[name]
    return {
        **same,
        "model_type": "idefics3",
        "text": {**same["text"], **text},
        "vision": {**same["vision"], "model_type": "idefics3_vision"},
        "tied": tied,
    }


SHAPES = {
    **_SMOLVLM2,
    "smolvlm-256m": _idefics3("256m"),
    "smolvlm-500m": _idefics3("500m"),
    "smolvlm-2.2b": _idefics3(
        "2.2b", vocab_size=49155, max_position_embeddings=16384, rope_theta=273768.0
    ),
    "smoldocling": _idefics3("256m"),
    "granite-docling": _idefics3("256m", tied=True, vocab_size=100352),
}
"""By name: the language model, the vision encoder, and tile settings."""
