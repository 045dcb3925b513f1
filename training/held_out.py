"""A quick look at how well the demo model does while it is trained, without files;
``score_demo.py`` is the thorough one.
"""

from __future__ import annotations

import collections
import dataclasses

import numpy as np
import torch
import torch.nn.functional as F

from training import scenes
from training.examples import Example, ExampleMaker, collate
from training.network import Trainee
from vlmbatch.checkpoint import Checkpoint
from vlmbatch.finetune.examples import IGNORED

SEED = 987_654
SCORED_AT_ONCE = 20

DRAWINGS: dict[str, tuple[str, ...]] = {
    "shapes": ("full", "native", "low"),
    "words": ("full", "native", "low"),
    "pages": ("full",),
    "clips": ("video",),
}
"""What is scored, and at which details. Words on a page are too small for the others."""


def draw(maker: ExampleMaker, kind: str, detail: str, rng: np.random.Generator) -> Example:
    """A random example as it is scored: pictures of 64 to 1600 pixels behind JPEG compression of
    quality 60 to 95, or a clip.
    """
    if kind == "clips":
        return maker.clip(scenes.random_clip(rng), rng)
    scene = (
        scenes.random_page(rng, int(rng.integers(160, 480)))
        if kind == "pages"
        else scenes.random_scene(rng, reading=float(kind == "words"))
    )
    scene = dataclasses.replace(scene, pixels=scenes.jpeg(scene.pixels, int(rng.integers(60, 96))))
    height, width = scene.pixels.shape[:2]
    return maker.image(
        scene,
        rng,
        {"full": maker.full, "native": maker.full.native(width, height), "low": maker.low}[detail],
    )


@torch.no_grad()
def score(
    model: Trainee, checkpoint: Checkpoint, count: int
) -> tuple[dict[str, float], dict[str, float]]:
    """How well unseen scenes and clips are answered: figures over all answers, and the share
    exactly right by what is drawn, detail and kind of question.

    An answer counts when the model's best token is the right one at every position behind the right
    tokens before it: then greedy decoding gives it too.

    Args:
        model: What answers.
        checkpoint: Its files.
        count: Pictures of each kind at each detail.
    """
    maker, rng = ExampleMaker(checkpoint), np.random.default_rng(SEED)
    losses, hits = [], []
    right: dict[str, list[bool]] = collections.defaultdict(list)
    for turn, detail in (
        (turn, detail) for turn, details in DRAWINGS.items() for detail in details
    ):
        for begin in range(0, count, SCORED_AT_ONCE):
            batch, spans = collate(
                [draw(maker, turn, detail, rng) for _ in range(min(SCORED_AT_ONCE, count - begin))]
            )
            logits, labels, _ = model(batch, torch.float32)
            losses.append(F.cross_entropy(logits, labels, reduction="none"))
            hits.append(logits.argmax(-1) == labels)
            hit = torch.zeros(batch["labels"].shape, dtype=torch.bool)
            hit[batch["labels"] != IGNORED] = hits[-1]
            for row, start, end, kind in spans:
                correct = bool(hit[row, start:end].all())
                right[f"{turn} {detail}"].append(correct)
                right[f"{turn} {detail}: {kind}"].append(correct)
    answers = [correct for kind, found in right.items() if ":" not in kind for correct in found]
    figures = {
        "token_loss": float(torch.cat(losses).mean()),
        "token_accuracy": float(torch.cat(hits).float().mean()),
        "answer_accuracy": float(np.mean(answers)),
        "answers": len(answers),
    }
    shares = {kind: sum(found) / len(found) for kind, found in sorted(right.items())}
    return figures, shares
