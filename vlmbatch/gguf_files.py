"""Read GGUF files: llama.cpp's weights with their vocabulary and settings."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from vlmbatch.errors import MissingDependencyError, ModelLoadError

NORMAL, CONTROL, USER_DEFINED, UNUSED = 1, 3, 4, 5
"""Token types in GGUF."""
VOCABULARY_FIELDS = tuple(
    f"tokenizer.ggml.{name}" for name in ("tokens", "token_type", "merges", "pre")
)
DIGITS = {"type": "Digits", "individual_digits": True}
BYTES = {"type": "ByteLevel", "add_prefix_space": False, "use_regex": True}
PRE_TOKENIZERS = {"smollm": (DIGITS, BYTES), "granite-docling": (BYTES,)}
"""llama.cpp's name of a pre-tokenizer, and the last steps in tokenizer.json that it stands for."""


def import_gguf() -> Any:
    """Import the gguf package.

    Raises:
        MissingDependencyError: It is not installed; the message says how to install it.
    """
    try:
        import gguf
        import gguf.quants
    except ImportError as error:
        raise MissingDependencyError(
            f"GGUF files need the package gguf: pip install 'vlmbatch[llama]' ({error})"
        ) from error
    return gguf


def open_gguf(path: Path) -> Any:
    """Open a file with the package's reader; weights are mapped, not read.

    Raises:
        MissingDependencyError: The package is not installed.
        ModelLoadError: It cannot be read, or is of another kind.
    """
    gguf = import_gguf()
    try:
        return gguf.GGUFReader(path)
    except (ValueError, OSError, KeyError, IndexError) as error:
        raise ModelLoadError(f"{path} is not a GGUF file that can be read: {error}") from error


def read_fields(reader: Any, *names: str) -> list[Any]:
    """Return values of a file's metadata; None for each that it does not have."""
    return [field.contents() if (field := reader.fields.get(name)) else None for name in names]


def read_tokenizer(reader: Any) -> Any:
    """Build a ``tokenizers.Tokenizer`` from the vocabulary of a file.

    Raises:
        ModelLoadError: It is not a byte-level BPE with a known pre-tokenizer.
    """
    tokens, kinds, merges, pre = read_fields(reader, *VOCABULARY_FIELDS)
    if not tokens or not kinds or merges is None or pre not in PRE_TOKENIZERS:
        raise ModelLoadError(
            f"the file's vocabulary is not of this family (pre-tokenizer {pre!r}); there are "
            f"{', '.join(PRE_TOKENIZERS)}"
        )
    return make_tokenizer(tokens, kinds, merges, pre)


def make_tokenizer(tokens: list[str], kinds: list[int], merges: list[str], pre: str) -> Any:
    """Build a ``tokenizers.Tokenizer`` that splits texts as llama.cpp does.

    Args:
        tokens: Tokens by id.
        kinds: Their types.
        merges: Pairs of tokens, joined by a space.
        pre: A key of ``PRE_TOKENIZERS``.
    """
    import tokenizers
    from tokenizers import decoders, models, pre_tokenizers

    special = [token for token, kind in zip(tokens, kinds, strict=True) if kind == CONTROL]
    added = [token for token, kind in zip(tokens, kinds, strict=True) if kind == USER_DEFINED]
    pairs: Any = [tuple(merge.split(" ", 1)) for merge in merges]
    model = models.BPE({token: number for number, token in enumerate(tokens)}, pairs)
    tokenizer = tokenizers.Tokenizer(model)
    steps: list[Any] = [pre_tokenizers.ByteLevel(add_prefix_space=False)]
    if DIGITS in PRE_TOKENIZERS[pre]:
        steps.insert(0, pre_tokenizers.Digits(individual_digits=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(steps)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_tokens(added)
    tokenizer.add_special_tokens(special)
    return tokenizer
