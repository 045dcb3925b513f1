"""Read a GGUF file back and compare it with the checkpoint."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from vlmbatch.checkpoint import Checkpoint
from vlmbatch.convert.gguf.files import GgufFile, quantized
from vlmbatch.convert.gguf.vocabulary import Vocabulary
from vlmbatch.errors import ModelLoadError, OutputError
from vlmbatch.gguf_files import VOCABULARY_FIELDS, make_tokenizer, open_gguf, read_fields

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


def check_vocabulary(vocabulary: Vocabulary, checkpoint: Checkpoint) -> None:
    """Tokenize a text with a vocabulary as llama.cpp does, and with the checkpoint's own tokenizer:
    before hours go into the weights.

    Raises:
        ModelLoadError: Tokens or text differ, or the checkpoint's own cannot be read.
    """
    own = checkpoint.tokenizer()
    try:
        theirs = make_tokenizer(
            vocabulary.tokens, vocabulary.kinds, vocabulary.merges, vocabulary.pre
        )
    except Exception as error:  # tokenizers raises bare Exception
        raise ModelLoadError(
            f"{checkpoint.name}: tokenizer.json does not fit into GGUF: {error}"
        ) from error
    expected = own.encode(SAMPLE, add_special_tokens=False).ids
    ids = theirs.encode(SAMPLE, add_special_tokens=False).ids
    spelled = theirs.decode(ids, skip_special_tokens=False)
    if ids != expected or spelled != own.decode(expected, skip_special_tokens=False):
        raise ModelLoadError(
            f"{checkpoint.name}: llama.cpp would split texts into other tokens than its own "
            "tokenizer: use --engine torch, or convert it --to onnx"
        )


def check_written_vocabulary(path: Path, vocabulary: Vocabulary) -> None:
    """Compare the vocabulary of a file with what was written.

    Raises:
        OutputError: They differ.
    """
    written = (vocabulary.tokens, vocabulary.kinds, vocabulary.merges, vocabulary.pre)
    if tuple(read_fields(_open(path), *VOCABULARY_FIELDS)) != written:
        raise OutputError(f"{path}: the vocabulary read back differs: try again")


def _open(path: Path) -> Any:
    try:
        return open_gguf(path)
    except ModelLoadError as error:
        raise OutputError(f"it cannot be read back: {error}") from error


def _size(file: GgufFile) -> Any:
    """Order matrices by their size: the smallest one is compared."""
    return lambda name: (len(file.weights[name].shape) < 2, np.prod(file.weights[name].shape))
