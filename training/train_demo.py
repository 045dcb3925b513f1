"""Trains the demo model on scenes it draws itself.

    python -m training.train_demo build/demo --compile
    python -m training.train_demo build/demo --export vlmbatch/demo

The first command trains, and goes on where it stopped; the second writes the checkpoint that ships.

Two losses: the answers' tokens, and a linear head on the vision encoder's patches that says which
shape, colour and characters each patch shows (the scene is drawn, so that is known). The head is
thrown away. First the vision encoder learns alone, from tiles: that takes a tenth of the time a
step, and without it the language model has nothing to learn from. The loop, its checkpoints, its
log and its curves are those of ``vlmbatch finetune``.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import shutil
import signal
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
import transformers
from safetensors.torch import load_file, save_file

from training.checkpoint import write_checkpoint
from training.examples import READING, Stages
from training.held_out import score
from training.network import HALF, Trainee
from training.optimizer import MuonWithAdamW, Schedule
from vlmbatch.checkpoint import Checkpoint, find_checkpoint
from vlmbatch.engine.torch.device import empty_cache
from vlmbatch.finetune.folder import TrainingFolder
from vlmbatch.finetune.log import Steering, TrainingLog
from vlmbatch.finetune.trainer import AnswerTrainer

logger = logging.getLogger("train_demo")
PATCH_SHARE = 0.5
"""Share of the patches' loss beside the answers', unless another one is asked for."""
SCORED = 40
"""Pictures of each kind at each detail, while training."""
TIDY_EVERY = 25


class DemoTrainer(AnswerTrainer):
    """finetune's trainer with the per-patch loss, on packed examples and on tiles alone."""

    def __init__(
        self,
        checkpoint: Checkpoint,
        compiled: bool,
        patch_share: float,
        **settings: Any,
    ) -> None:
        model: Trainee = settings["model"]
        super().__init__(model.normalization, **settings)
        self.checkpoint, self.patch_share = checkpoint, patch_share
        self.vision_loss = torch.compile(self._vision_loss) if compiled else self._vision_loss
        self.answer_losses = (
            torch.compile(self._answer_losses, dynamic=True) if compiled else self._answer_losses
        )

    def compute_loss(
        self,
        model: Any,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Any = None,
    ) -> Any:
        """The patches' loss of a batch of tiles, or the answers' and a share of the patches'."""
        if "input_ids" not in inputs:
            return self.vision_loss(model, inputs)
        if self.state.global_step % TIDY_EVERY == 0:
            empty_cache(
                torch.device("cpu")
            )  # batches of many shapes leave the allocator with gigabytes in pieces
        answers, patches = self.answer_losses(model, inputs)
        return answers + self.patch_share * patches

    def evaluate(self, *_: Any, **__: Any) -> dict[str, float]:
        """Scores unseen scenes."""
        model: Any = self.accelerator.unwrap_model(self.model)
        figures, shares = score(model, self.checkpoint, SCORED)
        logger.info(
            "%s",
            "  ".join(f"{kind} {share:.1%}" for kind, share in shares.items() if ":" not in kind),
        )
        found = {f"eval_{name}": value for name, value in figures.items()}
        self.log(found)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, found)
        return found

    def _vision_loss(self, model: Trainee, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        return model.patch_loss(model.vision(HALF).hidden(batch["tiles"]), batch["patches"])

    def _answer_losses(
        self, model: Trainee, batch: dict[str, torch.Tensor]
    ) -> tuple[torch.Tensor, torch.Tensor]:
        logits, labels, hidden = model(batch, HALF)
        return F.cross_entropy(logits, labels), model.patch_loss(hidden, batch["patches"])


def train(arguments: argparse.Namespace) -> bool:
    """Trains to the end, or until it is told to stop; then False."""
    folder, schedule = (
        TrainingFolder(arguments.folder),
        Schedule(arguments.vision_steps, arguments.tiny_steps, arguments.mixture_steps),
    )
    lock = folder.open(overwrite=False)
    try:
        folder.begin(
            {"kind": "demo"}, {name: str(value) for name, value in vars(arguments).items()}
        )
        base = folder.path / "untrained"
        if not base.exists():
            write_checkpoint(base)
        checkpoint, found = find_checkpoint(str(base)), folder.last_checkpoint()
        if found and found.complete:
            return True
        transformers.set_seed(0)
        model = Trainee(base)
        if arguments.start is not None:
            model.start_from(arguments.start)
        matrices = model.matrices()
        others = [
            weight
            for weight in model.parameters()
            if not any(weight is matrix for matrix in matrices)
        ]
        optimizer = MuonWithAdamW(matrices, others, lr=1.0)
        stages = Stages(
            checkpoint,
            schedule,
            found.step if found else 0,
            tiles=arguments.tiles,
            examples=arguments.batch_size,
            reading=arguments.reading,
        )
        steering = Steering(measures=True)
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, lambda *_: setattr(steering, "stop_wanted", True))
        trainer = DemoTrainer(
            checkpoint,
            arguments.compile,
            arguments.patch_share,
            model=model,
            args=_settings(folder, schedule, arguments),
            data_collator=lambda batches: batches[0],
            train_dataset=stages,
            eval_dataset=stages,
            optimizers=(
                optimizer,
                torch.optim.lr_scheduler.LambdaLR(
                    optimizer, lambda step: arguments.learning_rate * schedule(step)
                ),
            ),  # a state keeps no function
            callbacks=[
                steering,
                TrainingLog(
                    folder,
                    found.step if found else 0,
                    num_rows=schedule.total * arguments.batch_size,  # scenes: all are drawn
                ),
            ],
        )
        trainer.remove_callback(transformers.PrinterCallback)
        trainer.train(resume_from_checkpoint=str(found.path) if found else None)
        return not steering.stopped
    finally:
        lock.release()


def _settings(
    folder: TrainingFolder, schedule: Schedule, arguments: argparse.Namespace
) -> transformers.TrainingArguments:
    return transformers.TrainingArguments(
        output_dir=str(folder.checkpoints),
        max_steps=schedule.total,
        per_device_train_batch_size=1,  # batches come made
        max_grad_norm=1.0,
        use_cpu=True,
        eval_strategy="steps",
        eval_steps=arguments.eval_every,
        save_steps=arguments.save_every,
        save_total_limit=2,
        logging_steps=100,
        ignore_data_skip=True,  # the stages begin where they are told to
        log_level="error",
        report_to="none",
        disable_tqdm=True,
        remove_unused_columns=False,
        label_names=["labels"],
        dataloader_num_workers=1,
        dataloader_prefetch_factor=4,
        dataloader_pin_memory=False,
    )


def export(folder: TrainingFolder, target: Path) -> None:
    """Writes the last state of a training as a checkpoint in bfloat16, as it ships."""
    found = folder.last_checkpoint()
    if found is None:
        raise SystemExit(f"{folder.path}: nothing is trained there yet")
    base = folder.path / "untrained"
    model = Trainee(base)
    model.load_state_dict(load_file(found.path / "model.safetensors"))
    target.mkdir(parents=True, exist_ok=True)
    for path in base.iterdir():
        if path.suffix in (".json", ".jinja"):
            shutil.copy(path, target)
    config = json.loads((base / "config.json").read_text())
    (target / "config.json").write_text(
        json.dumps({**config, "dtype": "bfloat16"}, indent=2) + "\n"
    )
    save_file(
        {name: weight.detach().to(torch.bfloat16) for name, weight in model.named().items()},
        target / "model.safetensors",
        metadata={"format": "pt"},
    )
    (target / "model.safetensors").chmod(0o644)
    print(
        f"{target}: as after step {found.step}; `python -m training.score_demo build/demo_score "
        f"--model {target}` scores it"
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "folder", type=Path, help="where the training's state, log and curves are kept"
    )
    parser.add_argument(
        "--vision-steps", type=int, default=4_500, help="steps of the vision encoder alone"
    )
    parser.add_argument(
        "--tiny-steps",
        type=int,
        default=1_750,
        help="then steps on answers about pictures of one tile",
    )
    parser.add_argument(
        "--mixture-steps", type=int, default=4_500, help="then steps on answers about everything"
    )
    parser.add_argument(
        "--batch-size", type=int, default=24, help="scenes a step; each has about five answers"
    )
    parser.add_argument(
        "--tiles", type=int, default=96, help="tiles a step of the vision encoder alone"
    )
    parser.add_argument("--learning-rate", type=float, default=1.5e-3)
    parser.add_argument(
        "--start",
        type=Path,
        metavar="FOLDER",
        help="begin with this checkpoint's weights, each token with its own; as vlmbatch/demo",
    )
    parser.add_argument(
        "--patch-share",
        type=float,
        default=PATCH_SHARE,
        metavar="SHARE",
        help="share of the patches' loss beside the answers' (default: %(default)s); 0 with "
        "--start and without --vision-steps: the head is new then, and would only disturb",
    )
    parser.add_argument(
        "--reading",
        type=float,
        default=READING,
        help="share of words and numbers among the pictures",
    )
    parser.add_argument(
        "--compile",
        action="store_true",
        help="compile the training step: minutes at the start, faster vision steps afterwards",
    )
    parser.add_argument(
        "--save-every", type=int, default=250, help="steps between states to go on from"
    )
    parser.add_argument(
        "--eval-every", type=int, default=1_000, help="steps between looks at unseen scenes"
    )
    parser.add_argument(
        "--export",
        type=Path,
        metavar="FOLDER",
        help="write the trained checkpoint here, train nothing",
    )
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    if arguments.export:
        export(TrainingFolder(arguments.folder), arguments.export)
    elif not train(arguments):
        raise SystemExit(130)


if __name__ == "__main__":
    main()
