"""The vocabulary of a checkpoint as GGUF has it."""

from __future__ import annotations

import dataclasses
from typing import Any

from vlmbatch.checkpoint import Checkpoint
from vlmbatch.errors import ModelLoadError
from vlmbatch.gguf_files import CONTROL, NORMAL, PRE_TOKENIZERS, UNUSED, USER_DEFINED

INEXACT_NOTE = (
    "the tokenizer has a step before these that llama.cpp lacks: it splits some texts, such as "
    "runs of capitals, into other tokens"
)


@dataclasses.dataclass(frozen=True)
class Vocabulary:
    """A byte-level BPE.

    Attributes:
        tokens: Tokens by id.
        kinds: Their types, see ``NORMAL`` and the others.
        merges: Pairs of tokens, joined by a space, in their order.
        pre: llama.cpp's name of the pre-tokenizer.
        is_exact: Whether that one splits every text as the checkpoint's does.
    """

    tokens: list[str]
    kinds: list[int]
    merges: list[str]
    pre: str
    is_exact: bool


def read_vocabulary(checkpoint: Checkpoint, size: int) -> Vocabulary:
    """Read the vocabulary in tokenizer.json. Ids that it does not have are unused tokens.

    Args:
        checkpoint: The checkpoint, with its tokenizer.
        size: Number of tokens.

    Raises:
        ModelLoadError: It is no byte-level BPE, splits words in a way that llama.cpp does not, or
            has ids beyond the size.
    """
    tokenizer = checkpoint.read_json("tokenizer.json", required=True)
    try:
        pre, is_exact = _pre_tokenizer(tokenizer.get("pre_tokenizer"))
        tokens, kinds = [f"<unused_{number}>" for number in range(size)], [UNUSED] * size
        for token, number in tokenizer["model"]["vocab"].items():
            tokens[number], kinds[number] = token, NORMAL
        for added in tokenizer["added_tokens"]:
            kind = CONTROL if added["special"] else USER_DEFINED
            tokens[added["id"]], kinds[added["id"]] = added["content"], kind
        merges = [
            merge if isinstance(merge, str) else " ".join(merge)
            for merge in tokenizer["model"]["merges"]
        ]
    except (KeyError, TypeError, IndexError, ValueError) as error:
        raise ModelLoadError(
            f"{checkpoint.name}: tokenizer.json does not fit into GGUF: "
            f"{type(error).__name__}: {error}"
        ) from error
    return Vocabulary(tokens, kinds, merges, pre, is_exact)


def _pre_tokenizer(settings: Any) -> tuple[str, bool]:
    """Return llama.cpp's name of a pre-tokenizer, and whether it does all that this one does.

    Raises:
        ValueError: llama.cpp has none like it.
    """
    steps = settings.get("pretokenizers", [settings]) if isinstance(settings, dict) else []
    for name, wanted in PRE_TOKENIZERS.items():
        last = steps[-len(wanted) :]
        if len(last) == len(wanted) and all(
            {key: step.get(key, known) for key, known in expected.items()} == expected
            for step, expected in zip(last, wanted, strict=True)
        ):
            return name, len(steps) == len(wanted)
    raise ValueError(f"llama.cpp has no pre-tokenizer like {settings!r}")


def add_vocabulary(writer: Any, checkpoint: Checkpoint, vocabulary: Vocabulary) -> None:
    """Add tokenizer, special tokens and chat template to a GGUF file.

    Args:
        writer: A ``GGUFWriter``.
        checkpoint: The checkpoint.
        vocabulary: Its vocabulary.
    """
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(vocabulary.pre)
    writer.add_token_list(vocabulary.tokens)
    writer.add_token_types(vocabulary.kinds)
    writer.add_token_merges(vocabulary.merges)
    ids = {token: number for number, token in enumerate(vocabulary.tokens)}
    named = checkpoint.tokenizer_config()
    for name in ("bos", "pad", "unk"):
        token = named.get(f"{name}_token")
        token = token.get("content") if isinstance(token, dict) else token
        if token in ids:
            getattr(writer, f"add_{name}_token_id")(ids[token])
    ends = sorted(checkpoint.end_token_ids())
    writer.add_eos_token_id(ends[0])
    if len(ends) > 1:
        writer.add_eot_token_id(ends[1])
    writer.add_add_bos_token(False)
    writer.add_add_space_prefix(False)
    writer.add_chat_template(checkpoint.chat_template())
