"""Muon for hidden matrices and AdamW for the rest, as one optimizer; and the learning rate over the
steps.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import torch

WEIGHT_DECAY = 0.05


class MuonWithAdamW(torch.optim.Optimizer):
    """Two optimizers that step together.

    Muon (Jordan et al., 2024) is made for matrices between hidden states, so embeddings, norms,
    biases and heads are AdamW's. Muon's rate is scaled to AdamW's (Liu et al., 2025), so that one
    learning rate serves both.
    """

    def __init__(
        self,
        matrices: Sequence[torch.Tensor],
        others: Sequence[torch.Tensor],
        lr: float,
    ) -> None:
        self.muon = torch.optim.Muon(
            matrices, lr=lr, weight_decay=WEIGHT_DECAY, adjust_lr_fn="match_rms_adamw"
        )
        self.adamw = torch.optim.AdamW(
            others, lr=lr, betas=(0.9, 0.98), weight_decay=WEIGHT_DECAY, fused=True
        )
        super().__init__([*self.muon.param_groups, *self.adamw.param_groups], {})

    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """Takes a step with both."""
        self.muon.step(closure)
        self.adamw.step()

    def state_dict(self) -> dict[str, Any]:
        """Both states."""
        return {"muon": self.muon.state_dict(), "adamw": self.adamw.state_dict()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Takes both states; the groups stay shared with the two."""
        self.muon.load_state_dict(state_dict["muon"])
        self.adamw.load_state_dict(state_dict["adamw"])
        self.param_groups = [*self.muon.param_groups, *self.adamw.param_groups]


@dataclasses.dataclass(frozen=True)
class Schedule:
    """How many steps there are of what, and the learning rate's factor at each: up, level, and for
    the last three tenths of the answers down to nothing.

    The vision encoder alone takes twice the rate at which the language model stays stable.

    Attributes:
        vision: Steps of the vision encoder alone.
        tiny: Steps on answers about pictures of one tile, after these.
        mixture: Steps on everything, after these.
        warmup: Steps up, at the start and again when the language model comes in.
        decay: Share of the steps on answers that go down.
        vision_rate: The level of the vision encoder's own steps.
    """

    vision: int
    tiny: int
    mixture: int
    warmup: int = 200
    decay: float = 0.3
    vision_rate: float = 2.0

    @property
    def total(self) -> int:
        """All steps."""
        return self.vision + self.tiny + self.mixture

    def __call__(self, step: int) -> float:
        """The factor at a step, counted from 0."""
        if step < self.vision:
            return self.vision_rate * min(1.0, (step + 1) / self.warmup)
        left = (self.total - step) / max(1.0, self.decay * (self.tiny + self.mixture))
        return min(1.0, (step - self.vision + 1) / self.warmup, max(0.02, left))
