"""Number formats of GGUF files: which tensor takes which."""

from __future__ import annotations

from typing import Any

from vlmbatch.errors import JobError
from vlmbatch.gguf_files import import_gguf

PLAIN_TYPES = ("f32", "f16", "bf16", "q8_0", "q5_0", "q4_0")
"""Types that the package gguf writes."""
K_TYPES = ("q4_k_m", "q5_k_m")
"""Types that only llama.cpp's ``llama-quantize`` writes."""
K_BLOCK = 256
"""A row of a K-quant is a multiple of this many weights."""
VISION_TYPES = {"q5_0": "q8_0", "q4_0": "q8_0", "q4_k_m": "q8_0", "q5_k_m": "q8_0"}
"""Type of the vision encoder where it is another one than the language model's: below 8 bits it
loses more than it saves.
"""
FILE_TYPES = {
    "f32": "ALL_F32",
    "f16": "MOSTLY_F16",
    "bf16": "MOSTLY_BF16",
    "q8_0": "MOSTLY_Q8_0",
    "q5_0": "MOSTLY_Q5_0",
    "q4_0": "MOSTLY_Q4_0",
}


def check_type(name: str, *, has_tool: bool, hidden: int) -> None:
    """Check that a type can be written.

    Args:
        name: The type.
        has_tool: Whether ``llama-quantize`` was named.
        hidden: Row length of the language model's matrices.

    Raises:
        JobError: There is no such type, or it needs the tool.
    """
    if name in K_TYPES and not has_tool:
        note = f"; {k_note(hidden)}" if hidden % K_BLOCK else ""
        raise JobError(
            f"type {name} is written by llama.cpp's own tool: give its path with "
            f"--llama-quantize, or take one of {', '.join(PLAIN_TYPES)}{note}"
        )
    if name in PLAIN_TYPES and has_tool:
        raise JobError(
            f"--llama-quantize goes with the types {' and '.join(K_TYPES)}: {name} needs no tool"
        )
    if name not in PLAIN_TYPES + K_TYPES:
        raise JobError(
            f"type must be one of {', '.join(PLAIN_TYPES + K_TYPES)} for gguf, not {name!r}"
        )


def k_note(hidden: int) -> str:
    """Return the line about rows that K-quants cannot hold."""
    return (
        f"rows of {hidden} are not a multiple of {K_BLOCK}: llama.cpp writes q5_0 and q8_0 in "
        "place of K-quants for them"
    )


def tensor_type(name: str, shape: tuple[int, ...], wanted: str, *, is_head: bool = False) -> Any:
    """Return the GGMLQuantizationType of a tensor.

    Norms, biases and the embeddings of patches and positions are float32, as llama.cpp's converter
    has them. The head stays at 8 bits. A row that is no multiple of a type's block is float16.

    Args:
        name: Its name in GGUF.
        shape: Its shape.
        wanted: The type of the file, one of ``PLAIN_TYPES``.
        is_head: Whether the head reads it.
    """
    gguf = import_gguf()
    kinds = gguf.GGMLQuantizationType
    if len(shape) != 2 or name in ("v.patch_embd.weight", "v.position_embd.weight"):
        return kinds.F32
    kind = kinds[wanted.upper()]
    if is_head and kind in (kinds.Q5_0, kinds.Q4_0):
        kind = kinds.Q8_0
    block, _ = gguf.GGML_QUANT_SIZES[kind]
    return kind if shape[-1] % block == 0 else kinds.F16
