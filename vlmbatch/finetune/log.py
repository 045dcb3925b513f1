"""Log a training to the terminal, a file and a picture, and stop it on demand."""

from __future__ import annotations

import json
import logging
import math
import time
from typing import Any

import accelerate
import torch
import transformers

from vlmbatch.errors import EngineError, OutputError
from vlmbatch.finetune.curves import draw_curves, read_log
from vlmbatch.finetune.extras import has_matplotlib
from vlmbatch.finetune.folder import TrainingFolder
from vlmbatch.write.atomic import reason, replacing

report = logging.getLogger("vlmbatch.report")

FEW_ROWS, FEW_UPDATES = 20, 20
"""With fewer, a training with the default options learns next to nothing."""

_NAMES = {
    "loss": "loss",
    "learning_rate": "learning_rate",
    "grad_norm": "grad_norm",
    "eval_token_loss": "eval_loss",
    "eval_token_accuracy": "eval_token_accuracy",
    "eval_answer_accuracy": "eval_answer_accuracy",
    "eval_answers": "eval_answers",
}
"""The Trainer's names of values that are logged, and the names in the log."""


class TrainingLog(transformers.TrainerCallback):
    """Writes and prints what the Trainer logs; only in the first process."""

    def __init__(self, folder: TrainingFolder, resumed_step: int, num_rows: int) -> None:
        """Keep the log up to the step that a killed training continues from."""
        self._folder, self._num_rows = folder, num_rows
        self._began = time.monotonic()
        self._entries = (
            [entry for entry in read_log(folder.log) if entry.get("step", 0) <= resumed_step]
            if resumed_step
            else []
        )
        with replacing(folder.log) as file:
            file.write("".join(json.dumps(entry) + "\n" for entry in self._entries).encode())

    def on_train_begin(self, args: Any, state: Any, control: Any, **others: Any) -> None:
        """Warn when there is too little to learn from."""
        if self._num_rows < FEW_ROWS or state.max_steps < FEW_UPDATES:
            report.warning(
                "too little to teach much (rows: %d, updates: %d): give at least %d rows, and "
                "raise --epochs or lower --gradient-accumulation for at least %d updates",
                self._num_rows,
                state.max_steps,
                FEW_ROWS,
                FEW_UPDATES,
            )

    def on_log(
        self,
        args: Any,
        state: Any,
        control: Any,
        logs: dict[str, float] | None = None,
        **others: Any,
    ) -> None:
        """Log a loss or a measurement.

        Raises:
            EngineError: The loss is not finite.
        """
        kept = {_NAMES[name]: value for name, value in (logs or {}).items() if name in _NAMES}
        if not kept:
            return
        for name in ("loss", "eval_loss"):
            if not math.isfinite(kept.get(name, 0.0)):
                raise EngineError(
                    f"the {name} is {kept[name]} at update {state.global_step}: lower "
                    "--learning-rate, or use --dtype float32"
                )
        entry = {
            "step": state.global_step,
            "epoch": round(state.epoch or 0.0, 4),
            **kept,
            "seconds": round(time.monotonic() - self._began, 1),
        }
        self._entries.append(entry)
        try:
            with open(self._folder.log, "a", encoding="utf-8") as file:
                file.write(json.dumps(entry) + "\n")
        except OSError as exc:
            raise OutputError(f"{self._folder.log} cannot be written: {reason(exc)}") from exc
        report.info("%s", self._line(entry, state.max_steps))

    def on_evaluate(self, args: Any, state: Any, control: Any, **others: Any) -> None:
        """Draw the curves if matplotlib is installed."""
        if self._entries and has_matplotlib():
            draw_curves(self._entries, self._folder.curves)

    on_train_end = on_evaluate

    def _line(self, entry: dict[str, Any], steps: int) -> str:
        place = f"update {entry['step']}/{steps}"
        if "eval_loss" in entry:
            return (
                f"{place}: held out: loss {entry['eval_loss']:.4f}, "
                f"{entry['eval_answer_accuracy']:.1%} of {entry['eval_answers']} answers and "
                f"{entry['eval_token_accuracy']:.1%} of their tokens right"
            )
        return (
            f"{place}: loss {entry['loss']:.4f}, learning rate {entry['learning_rate']:.2e}, "
            f"{entry['seconds']:.0f} s"
        )


class Steering(transformers.TrainerCallback):
    """Stops a training in order on demand, and evaluates at its end."""

    def __init__(self, *, measures: bool) -> None:
        """Evaluate at the end if ``measures``, that is, if rows are held out."""
        self._measures = measures
        self.stop_wanted = False
        self.stopped = False

    def on_step_end(self, args: Any, state: Any, control: Any, **others: Any) -> Any:
        """Save and stop if any process was told to."""
        # Saving takes all processes, so they must agree.
        wanted = torch.tensor(float(self.stop_wanted), device=args.device)
        if float(accelerate.utils.reduce(wanted, "sum")) and state.global_step < state.max_steps:
            self.stopped = control.should_save = control.should_training_stop = True
        elif state.global_step >= state.max_steps:
            control.should_evaluate = self._measures
        return control
