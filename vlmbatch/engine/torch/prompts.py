"""The part of prompts that a prefill computes, side by side as arrays: put together on the host, so
that they reach the device in one copy.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from torch import Tensor

from vlmbatch.engine.torch.scheduler import LiveSequence, Work

Numbers = npt.NDArray[np.int64]


@dataclasses.dataclass(frozen=True)
class Prompts:
    """Tokens of several prompts, one after the other.

    Attributes:
        ids: Token ids (tokens,).
        positions: Position of each in its sequence (tokens,).
        images: Places of the image tokens among them (image tokens,).
        ends: Place of the last token of each prompt (prompts,).
        counts: Number of tokens of each prompt.
        prefixes: The part of them that other questions share.
        features: Features of the image tokens, (tokens, hidden) each, in order.
    """

    ids: Numbers
    positions: Numbers
    images: Numbers
    ends: Numbers
    counts: list[int]
    prefixes: list[int]
    features: list[Tensor]


def remaining_ids(sequence: LiveSequence) -> tuple[list[int], int]:
    """Token ids of a prompt that its slot does not have yet, and how many of them are its
    prefix's.
    """
    work, start = sequence.work, sequence.slot.length
    prefix = list(work.payload.prefix_ids[start:])
    begin = max(0, start - len(work.payload.prefix_ids))
    return prefix + work.prompt_ids(sequence.question)[begin:], len(prefix)


def join_prompts(sequences: Sequence[LiveSequence], image_token_id: int) -> Prompts:
    """Put together what is not computed of prompts; their slots must be filled."""
    ids: list[int] = []
    positions, counts, prefixes = [], [], []
    features: list[Tensor] = []
    for sequence in sequences:
        own, prefix = remaining_ids(sequence)
        start = sequence.slot.length
        ids += own
        positions.append(np.arange(start, start + len(own)))
        counts.append(len(own))
        prefixes.append(prefix)
        if sequence.work.features:
            features += last_features(sequence.work, own[:prefix].count(image_token_id))
    all_ids = np.array(ids, np.int64)
    return Prompts(
        all_ids,
        np.concatenate(positions),
        (all_ids == image_token_id).nonzero()[0] if features else np.zeros(0, np.int64),
        np.cumsum(counts) - 1,
        counts,
        prefixes,
        features,
    )


def last_features(work: Work, tokens: int) -> list[Tensor]:
    """Features of the last image tokens of a request's pictures."""
    found: list[Tensor] = []
    for tile in reversed(work.features):
        if tokens <= 0:
            break
        found.append(tile[max(0, len(tile) - tokens) :])
        tokens -= len(tile)
    return found[::-1]
