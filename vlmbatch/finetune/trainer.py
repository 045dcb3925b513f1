"""transformers' Trainer for batches of tiles and tokens, with metrics of held-out rows."""

from __future__ import annotations

import functools
import math
from typing import Any

import torch
import transformers

from vlmbatch.finetune.examples import IGNORED

# transformers' SmolVLM and Idefics3 drop pictures of exact zeros as padding. This value is no exact
# zero, and too small to matter.
_NOT_ZERO = 1e-30


def pixel_values(
    tiles: torch.Tensor, n_tiles: torch.Tensor, scale: torch.Tensor, shift: torch.Tensor
) -> torch.Tensor:
    """Normalize the tiles of a batch.

    Args:
        tiles: uint8, (B, N, 3, E, E); rows with fewer than N tiles are padded.
        n_tiles: int64, (B,): number of tiles of each row.
        scale: float32, (3,): scale of the checkpoint's normalization.
        shift: float32, (3,): shift of the checkpoint's normalization.

    Returns:
        float32, (B, N, 3, E, E), zero where there is padding and nowhere else.
    """
    values = tiles.float() * scale[:, None, None] + shift[:, None, None]
    values = torch.where(values == 0, _NOT_ZERO, values)
    real = torch.arange(tiles.shape[1], device=tiles.device) < n_tiles[:, None]
    return values * real[:, :, None, None, None]


class AnswerTrainer(transformers.Trainer):
    """Trains on answers.

    A subclass can add a loss in ``compute_loss``. Other tensors of a batch go to the model as they
    are.
    """

    def __init__(self, normalization: tuple[torch.Tensor, torch.Tensor], **settings: Any) -> None:
        """Take the checkpoint's ``(scale, shift)``, and the arguments of the Trainer."""
        super().__init__(
            **settings, preprocess_logits_for_metrics=score_rows, compute_metrics=sum_scores
        )
        self.normalization = tuple(value.to(self.args.device) for value in normalization)

    def create_scheduler(self, num_training_steps: int, optimizer: Any = None) -> Any:
        """Return the schedule of the learning rate; see ``rate_share``."""
        if self.lr_scheduler is None:
            share = functools.partial(
                rate_share,
                warmup=self.args.get_warmup_steps(num_training_steps),
                updates=num_training_steps,
            )
            over: Any = optimizer or self.optimizer
            self.lr_scheduler = torch.optim.lr_scheduler.LambdaLR(over, share)
            self._created_lr_scheduler = True
        return self.lr_scheduler

    def model_inputs(self, batch: dict[str, Any]) -> dict[str, Any]:
        """Turn a batch into arguments of the model's ``forward``.

        Logits are computed from the token before the first answer on. Those of the pictures are
        never used, and take the size of the vocabulary for each token.
        """
        labels = batch["labels"]
        keep = labels.shape[1] - int((labels != IGNORED).any(0).int().argmax()) + 1
        values = pixel_values(batch["tiles"], batch["n_tiles"], *self.normalization)
        others = {
            name: value
            for name, value in batch.items()
            if name not in ("tiles", "n_tiles", "labels")
        }
        return {
            **others,
            "pixel_values": values,
            "labels": labels[:, -keep:],
            "logits_to_keep": keep,
        }

    def compute_loss(
        self,
        model: Any,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Any = None,
    ) -> Any:
        """Return the mean loss of the answers' tokens.

        With ``return_outputs`` also the logits of the last K tokens: (B, K, vocabulary).
        """
        loss, outputs = super().compute_loss(
            model,
            self.model_inputs(inputs),
            return_outputs=True,
            num_items_in_batch=num_items_in_batch,
        )
        return (loss, {"loss": loss, "logits": outputs.logits}) if return_outputs else loss


def rate_share(update: int, *, warmup: int, updates: int) -> float:
    """Return the share of the peak learning rate in an update: linear warm-up, then cosine decay.

    No update is made at rate 0, unlike with transformers' own schedule, whose first update teaches
    nothing (a training of one update: nothing at all).

    Args:
        update: Number of updates before.
        warmup: Updates of the warm-up.
        updates: All updates.
    """
    if update < warmup:
        return (update + 1) / (warmup + 1)
    return 0.5 * (1 + math.cos(math.pi * (update - warmup) / max(1, updates - warmup)))


def score_rows(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Score the prediction of each answer's tokens, given the right tokens before.

    Args:
        logits: (B, K, vocabulary), of the last K tokens.
        labels: int64, (B, L).

    Returns:
        float32, (B, 4): sum of the tokens' losses; number of tokens; number of tokens that are the
        most likely ones; and 1 if all are, so that greedy decoding gives the answer.
    """
    wanted = labels[:, labels.shape[1] - logits.shape[1] + 1 :]
    counted = wanted != IGNORED
    logprobs = logits[:, :-1].float().log_softmax(-1)
    losses = -logprobs.gather(-1, wanted.clamp(min=0)[..., None])[..., 0]
    right = (logprobs.argmax(-1) == wanted) & counted
    whole = (right == counted).all(1)
    return torch.stack(
        [(losses * counted).sum(1), counted.sum(1).float(), right.sum(1).float(), whole.float()],
        dim=1,
    )


def sum_scores(prediction: transformers.EvalPrediction) -> dict[str, float]:
    """Return loss per token, token accuracy and answer accuracy over all held-out rows."""
    scores = torch.as_tensor(prediction.predictions).double()
    loss, tokens, right, whole = (float(total) for total in scores.sum(0))
    return {
        "token_loss": loss / tokens,
        "token_accuracy": right / tokens,
        "answer_accuracy": whole / len(scores),
        "answers": len(scores),
    }
