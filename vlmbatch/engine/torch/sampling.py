"""From logits to the next token: greedy or sampled, each sequence from its own seed, so that the
other sequences of a batch change nothing.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import torch
from torch import Tensor


@dataclasses.dataclass(frozen=True)
class Draw:
    """Sampling options of a sequence.

    Attributes:
        temperature: Divides the logits; above 0.
        top_p: Sample from the smallest set of most likely tokens with at least this probability
            (nucleus sampling, arXiv:1904.09751).
        generator: A CPU generator of its own.
    """

    temperature: float
    top_p: float
    generator: torch.Generator


def choose_tokens(logits: Tensor, draws: Sequence[Draw | None]) -> tuple[list[int], Tensor]:
    """Choose the next token of every sequence.

    Args:
        logits: Float32, (n, vocabulary).
        draws: How each sequence samples; None takes the most likely token.

    Returns:
        The tokens, and the log-probabilities under the model, temperature left out: float32, (n,
        vocabulary), not finite where the logits are not.
    """
    tokens = logits.argmax(dim=-1).tolist()
    for place, draw in enumerate(draws):
        # A row that is not finite cannot be drawn from; its log-probability tells.
        if draw is not None and bool(logits[place].isfinite().all()):
            tokens[place] = int(sample(logits[place], draw))
    return tokens, torch.log_softmax(logits, dim=-1)


def sample(logits: Tensor, draw: Draw) -> Tensor:
    """Draw one token, int64 (), from float32 logits (vocabulary,)."""
    scaled = logits.cpu().double() / draw.temperature
    if not scaled.isfinite().all():  # a temperature next to nothing
        return scaled.argmax()
    probabilities = torch.softmax(scaled, dim=-1)
    if draw.top_p < 1:
        ordered, order = probabilities.sort(descending=True, stable=True)
        before = ordered.cumsum(0) - ordered
        kept = torch.where(before < draw.top_p, ordered, 0.0)
        probabilities = torch.zeros_like(probabilities).scatter(0, order, kept)
    return torch.multinomial(probabilities, 1, generator=draw.generator)[0]
