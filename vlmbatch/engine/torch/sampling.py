"""Choose next tokens from logits: greedy or sampled, all rows of a step at once on its device.

A sampled token is where one uniform number falls in the row's cumulated probabilities. The number
comes from the sequence's own generator, on the CPU, and no row's probabilities depend on another
row: the rest of the batch changes nothing.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from vlmbatch.engine.torch.cuda.transfers import upload


@dataclasses.dataclass(slots=True)
class Draw:
    """Sampling options of a sequence.

    Attributes:
        temperature: Divides the logits; above 0.
        top_p: Sample from the smallest set of most likely tokens with at least this probability
            (nucleus sampling, arXiv:1904.09751).
        generator: The sequence's own CPU generator.
        drawn: The number that chooses the next token, once it is drawn.
    """

    temperature: float
    top_p: float
    generator: torch.Generator
    drawn: float | None = None

    def number(self) -> float:
        """Return the number in [0, 1) that chooses the next token: the same until ``taken``, also
        when a step that ran out of memory is done again.
        """
        if self.drawn is None:
            self.drawn = float(torch.rand(1, generator=self.generator))
        return self.drawn

    def taken(self) -> None:
        """Note that the token was taken."""
        self.drawn = None


def choose_tokens(
    logits: Tensor, draws: Sequence[Draw | None], bits: npt.NDArray[np.int32] | None = None
) -> tuple[Tensor, Tensor]:
    """Choose the next token of every sequence.

    Args:
        logits: Float32, (n, vocabulary).
        draws: Sampling options of each sequence; None takes the most likely token.
        bits: The tokens that may be chosen, see ``allowed_logits``; None: all.

    Returns:
        The tokens and their log-probabilities, as one float32 tensor (2, n); and all
        log-probabilities, (n, vocabulary). These are under the model, before temperature and of all
        tokens, and not finite where the logits are not. float32 holds numbers of tokens up to 2^24.
    """
    logprobs = torch.log_softmax(logits, dim=-1)
    if bits is not None:
        logits = allowed_logits(logits, upload(bits, logits.device))
    tokens = logits.argmax(dim=-1)
    rows = [row for row, draw in enumerate(draws) if draw is not None]
    if rows:
        settings = upload(settings_of([draws[row] for row in rows]), logits.device)
        is_nucleus = any(draw is not None and draw.top_p < 1 for draw in draws)
        if len(rows) == len(draws):
            tokens = sample(logits, settings, is_nucleus=is_nucleus)
        else:
            index = upload(np.array(rows), logits.device)
            drawn = sample(logits.index_select(0, index), settings, is_nucleus=is_nucleus)
            tokens.index_copy_(0, index, drawn)
    return with_logprobs(tokens, logprobs), logprobs


def allowed_logits(logits: Tensor, bits: Tensor) -> Tensor:
    """Return logits with minus infinity for the tokens that may not be chosen.

    Args:
        logits: Float32, (n, vocabulary).
        bits: int32 (n, words): a bit for each token, the lowest first, set for those allowed.
    """
    octets = bits.view(torch.uint8)[:, :, None]
    steps = torch.arange(8, dtype=torch.uint8, device=bits.device)
    allowed = ((octets >> steps) & 1).flatten(1)[:, : logits.shape[1]]
    return logits.masked_fill(allowed == 0, -torch.inf)


def with_logprobs(tokens: Tensor, logprobs: Tensor) -> Tensor:
    """Join tokens (n,) and their log-probabilities, of (n, vocabulary), to float32 (2, n)."""
    own = logprobs.gather(1, tokens[:, None])[:, 0]
    return torch.stack((tokens.float(), own))


def settings_of(draws: Sequence[Draw | None]) -> npt.NDArray[np.float32]:
    """Temperature, top_p and the next number of each sequence, float32 (3, n); a temperature of 0
    where there are no options.
    """
    found = [(d.temperature, d.top_p, d.number()) if d else (0.0, 1.0, 0.0) for d in draws]
    return np.ascontiguousarray(np.array(found, np.float32).T)


def sample(logits: Tensor, settings: Tensor, *, is_nucleus: bool) -> Tensor:
    """Sample a token for each row, int64 (n,); the most likely one where the temperature is 0.

    Args:
        logits: Float32, (n, vocabulary).
        settings: See ``settings_of``.
        is_nucleus: Whether some ``top_p`` is below 1.
    """
    count = len(logits)
    if count == 1 and logits.device.type == "cuda":
        # CUDA adds up one row alone in another order.
        logits, settings = logits.expand(2, -1), settings.expand(-1, 2)
    temperature, top_p, number = settings
    wide = torch.float32 if logits.device.type == "mps" else torch.float64
    below = (logits - logits.amax(dim=-1, keepdim=True)).to(wide)
    weights = (below / temperature.clamp_min(torch.finfo(torch.float32).tiny)[:, None]).exp_()
    found = _place(weights.cumsum(dim=-1), None, number)
    if is_nucleus:
        ordered, order = weights.sort(dim=-1, descending=True, stable=True)
        cumulated = ordered.cumsum(dim=-1)
        is_in = cumulated - ordered < top_p[:, None] * cumulated[:, -1:]
        mass = torch.where(is_in, cumulated, 0.0).amax(dim=-1, keepdim=True)
        place = _place(cumulated, mass, number)
        found = torch.where(top_p < 1, order.gather(1, place[:, None])[:, 0], found)
    return torch.where(temperature > 0, found, logits.argmax(dim=-1))[:count]


def _place(cumulated: Tensor, mass: Tensor | None, number: Tensor) -> Tensor:
    """Index of the first cumulated weight above a share of the mass, by default of all weights."""
    mass = cumulated[:, -1:].contiguous() if mass is None else mass
    wanted = mass * number.to(mass.dtype)[:, None]
    found = torch.searchsorted(cumulated, wanted, right=True)
    # A share that rounding raised to the whole, or rows that are not finite: the last one in it.
    last = torch.searchsorted(cumulated, mass)
    return torch.minimum(found, last)[:, 0].clamp_max_(cumulated.shape[1] - 1)
