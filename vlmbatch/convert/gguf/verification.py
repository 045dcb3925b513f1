"""Read a GGUF file back and compare it with the checkpoint."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import tokenizers

from vlmbatch.checkpoint import Checkpoint
from vlmbatch.convert.gguf.files import GgufFile, quantized
from vlmbatch.errors import ModelLoadError, OutputError
from vlmbatch.gguf_files import open_gguf, read_tokenizer

SAMPLE = (
    "<|im_start|>User: What's in this picture, taken on 12.03.2024 at 7:45?\n\n"
    "  Größe: 42 m² – naïve café, 图片, עברית, 🙂<end_of_utterance>\nAssistant:"
)
"""Text of words, digits, white space, several scripts and special tokens."""


def check_file(path: Path, file: GgufFile) -> None:
    """Compare names, shapes and types of all tensors, and the values of one.

    Args:
        path: The written file.
        file: Its description.

    Raises:
        OutputError: They differ.
    """
    found = {tensor.name: tensor for tensor in _open(path).tensors}
    if found.keys() != file.weights.keys():
        raise OutputError(f"{path}: it has other tensors than were written")
    for name, weight in file.weights.items():
        shape = tuple(int(size) for size in reversed(found[name].shape))
        if (shape, found[name].tensor_type) != (weight.shape, file.types[name]):
            raise OutputError(
                f"{path}: {name} reads back as {shape}, {found[name].tensor_type.name}, not as "
                f"{weight.shape}, {file.types[name].name}"
            )
    name = min((each for each in file.weights if each.endswith(".weight")), key=_size(file))
    written = quantized(name, file.weights[name], file.types[name])
    if not np.array_equal(found[name].data.view(np.uint8), written.view(np.uint8)):
        raise OutputError(f"{path}: the values of {name} read back differ: try again")


def check_vocabulary(path: Path, checkpoint: Checkpoint) -> None:
    """Tokenize a text with the vocabulary of a file, and with the checkpoint's own.

    Raises:
        ModelLoadError: The checkpoint's own cannot be read.
        OutputError: Tokens or text differ.
    """
    try:
        own = tokenizers.Tokenizer.from_file(str(checkpoint.require("tokenizer.json")))
    except ModelLoadError:
        raise
    except Exception as error:  # tokenizers raises bare Exception
        raise ModelLoadError(
            f"{checkpoint.name}: tokenizer.json cannot be read: {error}"
        ) from error
    own.no_truncation()
    own.no_padding()
    expected = own.encode(SAMPLE, add_special_tokens=False).ids
    theirs = read_tokenizer(_open(path))
    ids = theirs.encode(SAMPLE, add_special_tokens=False).ids
    if ids != expected:
        raise OutputError(f"{path}: its tokenizer gives other tokens than the checkpoint's")
    if theirs.decode(ids, skip_special_tokens=False) != own.decode(ids, skip_special_tokens=False):
        raise OutputError(f"{path}: its tokenizer gives another text than the checkpoint's")


def _open(path: Path) -> Any:
    try:
        return open_gguf(path)
    except ModelLoadError as error:
        raise OutputError(f"it cannot be read back: {error}") from error


def _size(file: GgufFile) -> Any:
    """Order matrices by their size: the smallest one is compared."""
    return lambda name: (len(file.weights[name].shape) < 2, np.prod(file.weights[name].shape))
