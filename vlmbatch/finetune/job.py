"""Options of a fine-tuning, each one a field; those that a ``Job`` has too are taken from it."""

from __future__ import annotations

import dataclasses
import math
import os
import re
from pathlib import Path
from typing import Any, Literal

from vlmbatch.errors import JobError
from vlmbatch.job import Detail, Job, option
from vlmbatch.job.questions import check_question
from vlmbatch.values import check_types

ModelPart = Literal["text", "connector", "vision"]
Dtype = Literal["auto", "float32", "bfloat16", "float16"]

DATA_SUFFIXES = (".jsonl", ".parquet", ".csv")
MAX_SEED = 2**32 - 1
"""Largest seed of NumPy, which the training loop seeds too."""

LORA_LEARNING_RATE = 1e-4
FULL_LEARNING_RATE = 2e-5

_JOB_FIELDS = {field.name: field for field in dataclasses.fields(Job)}


def _as_in_job(name: str, **changes: Any) -> Any:
    """Copy a field of ``Job``; ``changes`` replace parts of its metadata."""
    field = _JOB_FIELDS[name]
    return dataclasses.field(default=field.default, metadata={**field.metadata, **changes})


@dataclasses.dataclass(frozen=True, kw_only=True)
class FinetuneJob:
    """A fine-tuning: data, base model, settings and output. Checked when it is made.

    Raises:
        JobError: A value is not allowed; the message says which are.
    """

    data: str = ""
    output: str | None = option(
        None,
        "Folder of the new checkpoint. [default: DATANAME.finetuned here]",
        flags=("-o",),
        metavar="OUT",
    )

    prompt: str | None = _as_in_job(
        "prompt",
        help="The instruction, for a DATA that is a folder. [default: that of caption]",
        group="Data",
    )
    eval_share: float = option(
        0.1,
        "Share of the pictures and videos to hold out for evaluation.",
        metavar="F",
        group="Data",
    )
    eval_data: str | None = option(
        None,
        "Evaluate on the rows of this file, not on a share of DATA.",
        metavar="FILE",
        group="Data",
    )
    skip_bad: bool = option(
        False,
        "Skip bad rows (missing file, empty answer, too long). Without it they stop the training.",
        group="Data",
    )
    fps: float | None = option(
        None,
        "Sample videos at this many frames per second. [default: 1]",
        metavar="F",
        group="Data",
    )
    num_frames: int | None = option(
        None,
        "Sample at most N frames of each video, evenly spread.",
        metavar="N",
        group="Data",
    )
    max_pixels: int = _as_in_job(
        "max_pixels", help="Treat larger pictures as bad rows.", group="Data"
    )
    detail: Detail = _as_in_job("detail", group="Data")

    epochs: float = option(3.0, "Number of passes over the rows.", metavar="F", group="Training")
    max_steps: int | None = option(
        None, "Number of weight updates, instead of --epochs.", metavar="N", group="Training"
    )
    batch_size: int = option(4, "Rows per batch and device.", metavar="N", group="Training")
    gradient_accumulation: int = option(
        4, "Batches per update and device.", metavar="N", group="Training"
    )
    learning_rate: float | None = option(
        None,
        "Peak learning rate, with linear warm-up and cosine decay. "
        f"[default: {LORA_LEARNING_RATE:g}; {FULL_LEARNING_RATE:g} with --full]",
        metavar="F",
        group="Training",
    )
    warmup_share: float = option(
        0.05, "Share of the updates for the warm-up.", metavar="F", group="Training"
    )
    weight_decay: float = option(0.0, "Weight decay.", metavar="F", group="Training")
    optimizer: Literal["adamw", "adamw8bit"] = option(
        "adamw",
        "adamw8bit keeps its state in 8 bits (needs CUDA and bitsandbytes).",
        group="Training",
    )
    gradient_checkpointing: bool = option(
        False,
        "Recompute activations in the backward pass: less memory, more time.",
        group="Training",
    )
    full: bool = option(False, "Train all weights, not a LoRA adapter.", group="Training")
    freeze: tuple[ModelPart, ...] = option(
        (), "Do not train this part of the model; repeatable.", group="Training"
    )
    seed: int = option(
        0,
        "Seed of the order, the held-out share and the adapter's first weights.",
        metavar="N",
        group="Training",
    )
    eval_every: int | None = option(
        None,
        "Evaluate every N updates. [default: ten times in a training]",
        metavar="N",
        group="Training",
    )
    save_every: int | None = option(
        None,
        "Save a checkpoint to continue from every N updates. [default: ten times in a training]",
        metavar="N",
        group="Training",
    )
    log_every: int = option(10, "Log the loss every N updates.", metavar="N", group="Training")

    lora_rank: int = option(16, "Rank of the adapter's matrices.", metavar="N", group="LoRA")
    lora_alpha: float = option(
        32.0, "Scale of the adapter: alpha / rank.", metavar="F", group="LoRA"
    )
    lora_dropout: float = option(0.05, "Dropout in the adapter.", metavar="F", group="LoRA")
    lora_part: tuple[ModelPart, ...] = option(
        ("text", "connector"),
        "Give this part of the model an adapter; repeatable. [default: text, connector]",
        group="LoRA",
    )
    no_merge: bool = option(
        False,
        "Write the adapter only; `vlmbatch models merge` makes a checkpoint of it.",
        group="LoRA",
    )

    model: str = _as_in_job("model")
    revision: str | None = _as_in_job("revision")
    device: str = _as_in_job(
        "device", help="auto, cpu, cuda or mps; CUDA_VISIBLE_DEVICES selects among several GPUs."
    )
    dtype: Dtype = _as_in_job(
        "dtype",
        help="Number format of the computation; auto picks the fastest of the device.",
    )
    read_workers: int | None = _as_in_job(
        "read_workers",
        help="Processes that read and prepare; auto: by device and number of cores.",
    )
    overwrite: bool = _as_in_job("overwrite", help="Start OUT anew, whatever training it holds.")
    log_format: Literal["text", "json"] = _as_in_job("log_format")

    def __post_init__(self) -> None:
        check_types(self)
        self._check_ranges()
        for path in (self.data, *([self.eval_data] if self.eval_data else [])):
            if Path(path).suffix.lower() not in DATA_SUFFIXES and not os.path.isdir(path):
                raise JobError(
                    f"DATA is a file that ends in {', '.join(DATA_SUFFIXES)}, or a folder of .txt "
                    f"files beside pictures, not {path!r}"
                )
        if self.prompt is not None:
            check_question(self.prompt)
            if not os.path.isdir(self.data):
                raise JobError("prompt goes with a folder: the rows of a file have their prompts")
        if self.full and self.no_merge:
            raise JobError("no_merge goes with an adapter; --full has none")
        if not self.parts:
            raise JobError("nothing is left to train: every part is frozen")

    def _check_ranges(self) -> None:
        at_least = {
            "max_pixels": 1,
            "batch_size": 1,
            "gradient_accumulation": 1,
            "max_steps": 1,
            "seed": 0,
            "eval_every": 1,
            "save_every": 1,
        }
        at_least |= {"log_every": 1, "lora_rank": 1, "num_frames": 1, "read_workers": 0}
        for name, lowest in at_least.items():
            value = getattr(self, name)
            if value is not None and value < lowest:
                raise JobError(f"{name} must be at least {lowest}, not {value}")
        for name in ("epochs", "learning_rate", "lora_alpha", "fps"):
            value = getattr(self, name)
            if value is not None and not 0 < value < math.inf:
                raise JobError(f"{name} must be above 0, not {value}")
        for name in ("eval_share", "warmup_share", "lora_dropout"):
            if not 0 <= getattr(self, name) < 1:
                raise JobError(f"{name} must be from 0 to below 1, not {getattr(self, name)}")
        if not 0 <= self.weight_decay < math.inf:
            raise JobError(f"weight_decay must not be below 0, not {self.weight_decay}")
        if self.seed > MAX_SEED:
            raise JobError(f"seed must be at most {MAX_SEED}")
        if self.fps is not None and self.num_frames is not None:
            raise JobError("fps and num_frames are different ways of choosing frames: give one")
        if not re.fullmatch(r"auto|cpu|cuda|mps", self.device):
            raise JobError(
                f"device must be auto, cpu, cuda or mps, not {self.device!r}; CUDA_VISIBLE_DEVICES "
                "chooses among several"
            )

    @property
    def output_path(self) -> str:
        """OUT as given, or ``DATANAME.finetuned`` in the current folder."""
        if self.output is not None:
            return self.output
        return f"{Path(os.path.abspath(self.data)).stem}.finetuned"

    @property
    def peak_learning_rate(self) -> float:
        """The peak learning rate, with the default resolved."""
        if self.learning_rate is not None:
            return self.learning_rate
        return FULL_LEARNING_RATE if self.full else LORA_LEARNING_RATE

    @property
    def parts(self) -> tuple[ModelPart, ...]:
        """Parts of the model that are trained or get an adapter."""
        wanted: tuple[ModelPart, ...] = (
            ("text", "connector", "vision") if self.full else self.lora_part
        )
        return tuple(part for part in wanted if part not in self.freeze)

    @property
    def video_job(self) -> Job:
        """Options that make a clip of a video."""
        return Job(
            inputs=(self.data,), media="video", per="clip", fps=self.fps, num_frames=self.num_frames
        )

    def identity(self) -> dict[str, Any]:
        """Return the settings that the trained weights depend on."""
        return {name: value for name, value in self.to_dict().items() if name not in _NEUTRAL}

    def to_dict(self) -> dict[str, Any]:
        """Return every setting, in order, in types of YAML and JSON."""
        values = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        return {
            name: list(value) if isinstance(value, tuple) else value
            for name, value in values.items()
        }


_NEUTRAL = {
    *("data", "prompt", "output", "eval_data", "skip_bad", "max_pixels"),
    *("no_merge", "eval_every", "save_every", "log_every", "gradient_checkpointing"),
    *("device", "dtype", "read_workers", "overwrite", "log_format"),
}
"""Settings that may change between two starts of a training. DATA's rows are compared instead."""
