"""Trains the demo model on scenes it draws itself.

    python -m training.train_demo build/demo --steps 30000          # resumable: the same command goes on where it stopped
    python -m training.train_demo build/demo --export vlmbatch/demo # writes the checkpoint that ships

Two losses: the answers' tokens, and a linear head on the vision encoder's patches that says which shape, colour or character each patch shows (the scene
is drawn, so that is known). The head is thrown away. The learning rate is warmed up, held, and brought down linearly over the last quarter.
"""

from __future__ import annotations

import argparse
import collections
import dataclasses
import json
import logging
import shutil
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import nn

from training import scenes
from training.checkpoint import write_checkpoint
from training.examples import PATCH_CLASSES, READING, Batch, Batches, Example, ExampleMaker, TileBatches, collate
from vlmbatch.checkpoint import Checkpoint, find_checkpoint
from vlmbatch.engine.device import cpu_has_bfloat16, empty_cache
from vlmbatch.engine.model import LanguageModel, VisionEncoder, Weights
from vlmbatch.engine.shape import ModelShape
from vlmbatch.engine.weights import pixel_normalization, tensor_shapes

logger = logging.getLogger("train_demo")
PAD = 2
EVAL_SEED = 987_654
LIGHT_SHARE = 0.6
SCORED_AT_ONCE = 20
MATRICES = ("_proj.weight", "fc1.weight", "fc2.weight", "modality_projection.proj.weight")
"""Hidden matrices, which Muon (Jordan et al., 2024) trains; embeddings, norms, biases and heads are AdamW's."""
HALF = torch.bfloat16 if cpu_has_bfloat16() else torch.float32


class PatchHead(nn.Module):
    """Says which shape, colour and characters a patch shows, and their place in reading order; used in training only."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.sizes = PATCH_CLASSES
        self.linear = nn.Linear(width, sum(self.sizes))

    def loss(self, hidden: torch.Tensor, patches: torch.Tensor) -> torch.Tensor:
        """Cross entropy over hidden states (N, P, width) and labels (N, P, 4); empty patches count a tenth."""
        total = hidden.new_zeros(())
        for i, logits in enumerate(self.linear(hidden).float().split(self.sizes, dim=-1)):
            weight = torch.ones(self.sizes[i], device=hidden.device)
            weight[0] = 0.1
            total = total + F.cross_entropy(logits.reshape(-1, self.sizes[i]), patches[..., i].reshape(-1), weight=weight)
        return total


class Trainee(nn.Module):
    """The engine's own modules over trainable weights, so that training and answering compute the same thing.

    The weights are kept in float32 and cast to ``dtype`` once a step.
    """

    def __init__(self, folder: Path) -> None:
        super().__init__()
        checkpoint = find_checkpoint(str(folder))
        self.shape = ModelShape.from_checkpoint(checkpoint)
        tensors = load_file(checkpoint.require("model.safetensors"))
        self.names = list(tensor_shapes(self.shape))
        self.weights = nn.ParameterList([nn.Parameter(tensors[name].float()) for name in self.names])
        self.normalization = pixel_normalization(checkpoint)

    def start_from(self, folder: Path) -> None:
        """Takes the weights of a trained checkpoint of the same shapes."""
        tensors = load_file(folder / "model.safetensors")
        with torch.no_grad():
            for name, weight in self.named().items():
                weight.copy_(tensors[name])

    def named(self) -> dict[str, torch.Tensor]:
        """The weights by name."""
        return dict(zip(self.names, self.weights, strict=True))

    def forward(self, batch: Batch, dtype: torch.dtype, head: PatchHead | None = None) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Logits at the answers' positions, their labels, and the patch loss."""
        weights = Weights({name: weight.to(dtype) for name, weight in self.named().items()})
        vision = VisionEncoder(self.shape, weights.under("model"), *self.normalization, plain_attention)
        language = LanguageModel(self.shape, weights)
        hidden = self.see(batch.tiles, vision)
        features = vision.project(hidden)
        rows, longest = batch.input_ids.shape
        ids = batch.input_ids.reshape(-1)
        x = language.embed(ids).masked_scatter((ids == self.shape.image_token_id)[:, None], features)
        attend = PackedAttention(rows, longest, batch.mask, dtype)
        x = language(x, batch.position_ids.reshape(-1), attend)
        labels = batch.labels.reshape(-1)
        logits = language.logits(x[labels != -100])
        patch_loss = head.loss(hidden.float(), batch.patches) if head is not None else logits.new_zeros(())
        return logits, labels[labels != -100], patch_loss

    def see(self, tiles: torch.Tensor, vision: VisionEncoder | None = None) -> torch.Tensor:
        """Hidden states of the patches of tiles, (n, patches, hidden), in bfloat16 unless an encoder is given."""
        if vision is None:
            weights = Weights({name: weight.to(HALF) for name, weight in self.named().items() if "text_model" not in name})
            vision = VisionEncoder(self.shape, weights.under("model"), *self.normalization, plain_attention)
        return vision.hidden(tiles)


def plain_attention(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
    """Attention as products and a softmax. With 144 patches a tile its backward pass takes a third of the time of the fused one, above all in bfloat16."""
    return torch.softmax((query * query.shape[-1] ** -0.5) @ key.transpose(-1, -2), dim=-1) @ value


class PackedAttention:
    """Attention within packed examples: (rows x longest) tokens side by side, a mask that keeps questions apart. Plain products: their backward is fast."""

    def __init__(self, rows: int, longest: int, mask: torch.Tensor, dtype: torch.dtype) -> None:
        self.rows, self.longest = rows, longest
        self.mask = torch.zeros(mask.shape, dtype=dtype).masked_fill_(~mask, -30000.0)

    def __call__(self, layer: int, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        heads, dim = query.shape[1:]
        groups = heads // key.shape[1]
        q = query.view(self.rows, self.longest, heads, dim).transpose(1, 2) * dim**-0.5
        k = key.reshape(self.rows, self.longest, -1, dim).transpose(1, 2).repeat_interleave(groups, dim=1)
        v = value.reshape(self.rows, self.longest, -1, dim).transpose(1, 2).repeat_interleave(groups, dim=1)
        weights = torch.softmax(q @ k.transpose(-1, -2) + self.mask, dim=-1)
        return (weights @ v).transpose(1, 2).reshape(self.rows * self.longest, heads * dim)


DRAWINGS: dict[str, tuple[str, ...]] = {"shapes": ("full", "native", "low"), "words": ("full", "native", "low"), "pages": ("full",), "clips": ("video",)}
"""What is scored, and at which details. Words on a page are too small for the others."""


def draw(maker: ExampleMaker, kind: str, detail: str, rng: np.random.Generator) -> Example:
    """A random example as it is scored: pictures of 64 to 1600 pixels behind JPEG compression of quality 60 to 95, or a clip."""
    if kind == "clips":
        return maker.clip(scenes.random_clip(rng), rng)
    scene = scenes.random_page(rng, int(rng.integers(160, 480))) if kind == "pages" else scenes.random_scene(rng, reading=float(kind == "words"))
    scene = dataclasses.replace(scene, pixels=scenes.jpeg(scene.pixels, int(rng.integers(60, 96))))
    height, width = scene.pixels.shape[:2]
    return maker.image(scene, rng, {"full": maker.full, "native": maker.full.native(width, height), "low": maker.low}[detail])


@torch.no_grad()
def score(model: Trainee, checkpoint: Checkpoint, count: int, seed: int = EVAL_SEED) -> dict[str, float]:
    """Share of answers exactly right on unseen scenes and clips, by what is drawn, detail and kind of question.

    An answer counts when the model's best token is the right one at every position behind the right tokens before it: then greedy decoding gives it too.

    Args:
        model: What answers.
        checkpoint: Its files.
        count: Pictures of each kind at each detail.
        seed: Of the drawings.
    """
    maker, rng = ExampleMaker(checkpoint), np.random.default_rng(seed)
    right: dict[str, list[bool]] = collections.defaultdict(list)
    for turn, detail in ((turn, detail) for turn, details in DRAWINGS.items() for detail in details):
        for begin in range(0, count, SCORED_AT_ONCE):
            batch = collate([draw(maker, turn, detail, rng) for _ in range(min(SCORED_AT_ONCE, count - begin))], PAD)
            logits, labels, _ = model(batch, torch.float32)
            hit = torch.zeros(batch.labels.shape, dtype=torch.bool)
            hit[batch.labels != -100] = (logits.argmax(-1) == labels).cpu()
            for row, start, end, kind in batch.spans:
                correct = bool(hit[row, start:end].all())
                right[f"{turn} {detail}"].append(correct)
                right[f"{turn} {detail}: {kind}"].append(correct)
    return {kind: round(sum(found) / len(found), 3) for kind, found in sorted(right.items())}


class Training:
    """A training run whose state is kept in a folder: first the vision encoder alone, on tiles that show something, then everything.

    Alone the encoder takes a tenth of the time a step, and without it the language model has nothing to learn from.
    """

    def __init__(self, folder: Path, peak: float, compiled: bool = False, start: Path | None = None) -> None:
        base = folder / "untrained"
        if not base.exists():
            write_checkpoint(base)
        torch.manual_seed(0)
        self.folder, self.peak = folder, peak
        self.reading = READING
        self.checkpoint = find_checkpoint(str(base))
        self.model = Trainee(base)
        if start is not None:
            self.model.start_from(start)
        self.head = PatchHead(self.model.shape.vision.hidden)
        self.parameters = [*self.model.parameters(), *self.head.parameters()]
        matrices = [weight for name, weight in self.model.named().items() if weight.ndim == 2 and name.endswith(MATRICES)]
        others = [weight for weight in self.parameters if not any(weight is matrix for matrix in matrices)]
        self.optimizers = (
            torch.optim.Muon(matrices, lr=peak, weight_decay=0.05, adjust_lr_fn="match_rms_adamw"),
            torch.optim.AdamW(others, lr=peak, betas=(0.9, 0.98), weight_decay=0.05, fused=True),
        )
        self.vision_step = self.step = 0
        self.vision_loss = torch.compile(self._vision_loss) if compiled else self._vision_loss
        self.losses = torch.compile(self._losses, dynamic=True) if compiled else self._losses
        if (folder / "state.pt").exists():
            self._load()

    def see(self, steps: int, size: int) -> None:
        """Trains the vision encoder alone, up to a number of steps."""
        losses = collections.deque[float](maxlen=100)
        stream = TileBatches(self.checkpoint, seed=self.vision_step + 1, size=size, reading=self.reading)
        for tiles, patches in torch.utils.data.DataLoader(stream, batch_size=None, num_workers=1, prefetch_factor=4):
            if self.vision_step >= steps:
                break
            loss = self.vision_loss(tiles, patches)
            self._update(loss, self.peak * min(1.0, (self.vision_step + 1) / 200))
            self.vision_step += 1
            losses.append(loss.item())
            if self.vision_step % 100 == 0:
                logger.info("vision step %d patch %.4f", self.vision_step, np.mean(losses))
            if self.vision_step % 500 == 0:
                self._save()

    def answer(self, tiny_steps: int, steps: int, size: int) -> None:
        """Trains everything, up to a number of steps; first on pictures of one tile."""
        losses = collections.deque[tuple[float, float]](maxlen=100)
        tiny = max(0, tiny_steps - self.step)
        light = max(0, int(LIGHT_SHARE * steps) - max(self.step, tiny_steps))
        stream = Batches(self.checkpoint, seed=self.step + 1, size=size, tiny_batches=tiny, light_batches=light, pad=PAD, reading=self.reading)
        for batch in torch.utils.data.DataLoader(stream, batch_size=None, num_workers=1, prefetch_factor=4):
            if self.step >= steps:
                break
            answer_loss, patch_loss = self.losses(batch)
            rate = self.peak * min(1.0, (self.step + 1) / 200, max(0.02, (steps - self.step) / (0.3 * steps)))
            self._update(answer_loss + 0.5 * patch_loss, rate)
            self.step += 1
            losses.append((answer_loss.item(), patch_loss.item()))
            if self.step % 100 == 0:
                logger.info("step %d answer %.4f patch %.4f rate %.1e", self.step, *np.mean(losses, axis=0), rate)
            if self.step % 250 == 0 or self.step == steps:
                self._save()
            if self.step % 500 == 0 or self.step == steps:
                result = score(self.model, self.checkpoint, 40)
                logger.info("step %d %s", self.step, " ".join(f"{kind} {share:.3f}" for kind, share in result.items() if ":" not in kind))

    def _vision_loss(self, tiles: torch.Tensor, patches: torch.Tensor) -> torch.Tensor:
        return self.head.loss(self.model.see(tiles).float(), patches)

    def _losses(self, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
        logits, labels, patch_loss = self.model(batch, HALF, self.head)
        return F.cross_entropy(logits, labels), patch_loss

    def _update(self, loss: torch.Tensor, rate: float) -> None:
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.parameters, 1.0)
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = rate
            optimizer.step()
            optimizer.zero_grad()
        if (self.step + self.vision_step) % 25 == 0:
            empty_cache(torch.device("cpu"))  # batches of many shapes leave the allocator with gigabytes in pieces

    def _save(self) -> None:
        state = {"model": self.model.state_dict(), "head": self.head.state_dict(), "optimizers": [o.state_dict() for o in self.optimizers]}
        torch.save({**state, "vision_step": self.vision_step, "step": self.step}, self.folder / "state.tmp")
        (self.folder / "state.tmp").replace(self.folder / "state.pt")

    def _load(self) -> None:
        state = torch.load(self.folder / "state.pt", map_location="cpu", weights_only=True)
        self.model.load_state_dict(state["model"])
        self.head.load_state_dict(state["head"])
        for optimizer, kept in zip(self.optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(kept)
        self.vision_step, self.step = state["vision_step"], state["step"]
        logger.info("resumed at vision step %d, step %d", self.vision_step, self.step)


def export(folder: Path, target: Path) -> None:
    """Writes the trained checkpoint in bfloat16, as it ships, and scores it as shipped."""
    base = folder / "untrained"
    state = torch.load(folder / "state.pt", map_location="cpu", weights_only=True)
    model = Trainee(base)
    model.load_state_dict(state["model"])
    target.mkdir(parents=True, exist_ok=True)
    for path in base.iterdir():
        if path.suffix in (".json", ".jinja"):
            shutil.copy(path, target)
    config = json.loads((base / "config.json").read_text())
    (target / "config.json").write_text(json.dumps({**config, "dtype": "bfloat16"}, indent=2) + "\n")
    save_file({name: weight.detach().to(torch.bfloat16) for name, weight in model.named().items()}, target / "model.safetensors", metadata={"format": "pt"})
    (target / "model.safetensors").chmod(0o644)
    with torch.no_grad():
        for weight in model.weights:
            weight.copy_(weight.to(torch.bfloat16))
    result = score(model, find_checkpoint(str(base)), 200, seed=EVAL_SEED + 1)
    print(json.dumps({"step": state["step"], **result}, indent=2))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="where the training's state is kept")
    parser.add_argument("--vision-steps", type=int, default=600, help="steps of the vision encoder alone")
    parser.add_argument("--steps", type=int, default=3_000, help="steps of everything")
    parser.add_argument("--tiny-steps", type=int, default=1_000, help="how many of these are on pictures of one tile")
    parser.add_argument("--batch-size", type=int, default=20, help="scenes a step; each has about five answers")
    parser.add_argument("--tiles", type=int, default=96, help="tiles a step of the vision encoder alone")
    parser.add_argument("--learning-rate", type=float, default=1e-3)
    parser.add_argument("--start", type=Path, metavar="FOLDER", help="begin with the weights of this checkpoint, such as vlmbatch/demo")
    parser.add_argument("--reading", type=float, default=READING, help="share of words and numbers among the pictures")
    parser.add_argument("--compile", action="store_true", help="compile the training step: minutes at the start, 1.5x the speed afterwards")
    parser.add_argument("--export", type=Path, metavar="FOLDER", help="write the trained checkpoint here, train nothing")
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    arguments.folder.mkdir(parents=True, exist_ok=True)
    if arguments.export:
        export(arguments.folder, arguments.export)
        return
    training = Training(arguments.folder, arguments.learning_rate, arguments.compile, arguments.start)
    training.reading = arguments.reading
    training.see(arguments.vision_steps, arguments.tiles)
    training.answer(arguments.tiny_steps, arguments.steps, arguments.batch_size)


if __name__ == "__main__":
    main()
