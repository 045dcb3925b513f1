"""From logits to the next token: greedy or sampled, each sequence from its own seed, so that
company in the batch changes nothing.
"""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor


@dataclasses.dataclass(frozen=True)
class SamplingOptions:
    """How the next token is chosen.

    Attributes:
        temperature: 0 takes the most likely token; above 0 it divides the logits.
        top_p: Sample from the smallest set of most likely tokens with at least this probability
            (nucleus sampling, arXiv:1904.09751).
        max_new_tokens: Longest answer.
    """

    temperature: float = 0.0
    top_p: float = 1.0
    max_new_tokens: int = 64


def choose_tokens(
    logits: Tensor, generators: list[torch.Generator | None], options: SamplingOptions
) -> tuple[list[int], list[float]]:
    """The next token of every sequence and its log-probability under the model, temperature left
    out; not finite where the logits are not.

    Args:
        logits: Float32, (n, vocabulary).
        generators: One CPU generator a sequence; unused when greedy.
        options: How to choose.
    """
    if options.temperature == 0:
        tokens = logits.argmax(dim=-1)
    else:
        # A row that is not finite cannot be drawn from; its log-probability tells.
        safe = torch.where(logits.isfinite().all(dim=-1, keepdim=True), logits, 0.0)
        rows = [
            sample(row, generator, options) for row, generator in zip(safe, generators, strict=True)
        ]
        tokens = torch.stack(rows).to(logits.device)
    logprobs = torch.log_softmax(logits, dim=-1).gather(1, tokens[:, None])[:, 0]
    return tokens.tolist(), logprobs.tolist()


def sample(logits: Tensor, generator: torch.Generator | None, options: SamplingOptions) -> Tensor:
    """One token, int64 (), drawn from float32 logits (vocabulary,)."""
    probabilities = torch.softmax(logits.cpu().double() / options.temperature, dim=-1)
    if options.top_p < 1:
        ordered, order = probabilities.sort(descending=True, stable=True)
        before = ordered.cumsum(0) - ordered
        probabilities = torch.zeros_like(probabilities).scatter(
            0, order, torch.where(before < options.top_p, ordered, 0.0)
        )
    return torch.multinomial(probabilities, 1, generator=generator)[0]
