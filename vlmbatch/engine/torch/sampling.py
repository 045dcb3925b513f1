"""Choose next tokens from logits: greedy or sampled, with a seed per sequence, so that the rest of
the batch changes nothing.
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
        generator: The sequence's own CPU generator.
    """

    temperature: float
    top_p: float
    generator: torch.Generator


def choose_tokens(logits: Tensor, draws: Sequence[Draw | None]) -> tuple[list[int], Tensor]:
    """Choose the next token of every sequence.

    Args:
        logits: Float32, (n, vocabulary).
        draws: Sampling options of each sequence; None takes the most likely token.

    Returns:
        The tokens, and the log-probabilities under the model, before temperature: float32, (n,
        vocabulary), not finite where the logits are not.
    """
    # Draws come last: a step that runs out of memory is done again from the same generators.
    logprobs = torch.log_softmax(logits, dim=-1)
    tokens = logits.argmax(dim=-1).tolist()
    for place, draw in enumerate(draws):
        # A row that is not finite cannot be sampled; its log-probability shows it to the caller.
        if draw is not None and bool(logits[place].isfinite().all()):
            tokens[place] = int(sample(logits[place], draw))
    return tokens, logprobs


def sample(logits: Tensor, draw: Draw) -> Tensor:
    """Sample one token, int64 (), from float32 logits (vocabulary,)."""
    scaled = logits.cpu().double() / draw.temperature
    if not scaled.isfinite().all():  # a temperature close to 0
        return scaled.argmax()
    probabilities = torch.softmax(scaled, dim=-1)
    if draw.top_p < 1:
        ordered, order = probabilities.sort(descending=True, stable=True)
        before = ordered.cumsum(0) - ordered
        kept = torch.where(before < draw.top_p, ordered, 0.0)
        probabilities = torch.zeros_like(probabilities).scatter(0, order, kept)
    return torch.multinomial(probabilities, 1, generator=draw.generator)[0]
