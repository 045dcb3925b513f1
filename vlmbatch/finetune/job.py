"""What the user asked to be taught. Every option of ``vlmbatch finetune`` is one field here; those
that a ``Job`` has too are taken from it.
"""

from __future__ import annotations

import dataclasses
import math
import re
from pathlib import Path
from typing import Any, Literal

from vlmbatch.errors import JobError
from vlmbatch.job import Detail, Job, option
from vlmbatch.values import check_types

Part = Literal["text", "connector", "vision"]
DTYPE = Literal["auto", "float32", "bfloat16", "float16"]

DATA_SUFFIXES = (".jsonl", ".parquet", ".csv")
MAX_SEED = 2**32 - 1
"""NumPy's bound, which the training loop seeds too."""

LORA_LEARNING_RATE = 1e-4
FULL_LEARNING_RATE = 2e-5

_JOB_FIELDS = {field.name: field for field in dataclasses.fields(Job)}


def _as_in_job(name: str, **changes: Any) -> Any:
    """The field of ``Job`` with its default and help; ``changes`` replace parts of its metadata."""
    field = _JOB_FIELDS[name]
    return dataclasses.field(default=field.default, metadata={**field.metadata, **changes})


@dataclasses.dataclass(frozen=True, kw_only=True)
class FinetuneJob:
    """Which rows to learn from, which checkpoint to start from, how, and where the result goes.
    Validated when it is made.

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

    eval_share: float = option(
        0.1,
        "Share of the pictures and videos that is held out to measure what was learned.",
        metavar="F",
        group="Data",
    )
    eval_data: str | None = option(
        None, "Hold out these rows, instead of a share of DATA.", metavar="FILE", group="Data"
    )
    skip_bad: bool = option(
        False,
        "Leave bad rows out (missing file, empty answer, too long), instead of stopping.",
        group="Data",
    )
    fps: float | None = option(
        None, "Frames a second of a video that a row names. [default: 1]", metavar="F", group="Data"
    )
    num_frames: int | None = option(
        None,
        "At most N frames of a video that a row names, evenly spread.",
        metavar="N",
        group="Data",
    )
    max_pixels: int = _as_in_job(
        "max_pixels", help="Pictures with more pixels are bad rows.", group="Data"
    )
    detail: Detail = _as_in_job("detail", group="Data")

    epochs: float = option(3.0, "Times that every row is seen.", metavar="F", group="Training")
    max_steps: int | None = option(
        None, "Updates of the weights, instead of epochs.", metavar="N", group="Training"
    )
    batch_size: int = option(
        4, "Rows that a device computes at once.", metavar="N", group="Training"
    )
    gradient_accumulation: int = option(
        4, "Batches on each device that one update adds up.", metavar="N", group="Training"
    )
    learning_rate: float | None = option(
        None, f"Highest learning rate; a warm-up leads to it, a cosine away. [default: {LORA_LEARNING_RATE:g}, with --full {FULL_LEARNING_RATE:g}]",
        metavar="F", group="Training",
    )  # fmt: skip
    warmup_share: float = option(
        0.05, "Share of the updates that warm up.", metavar="F", group="Training"
    )
    weight_decay: float = option(0.0, "Weight decay.", metavar="F", group="Training")
    optimizer: Literal["adamw", "adamw8bit"] = option(
        "adamw", "adamw8bit keeps its state in 8 bits (CUDA, needs bitsandbytes).", group="Training"
    )
    gradient_checkpointing: bool = option(
        False,
        "Compute activations twice instead of keeping them: less memory, more time.",
        group="Training",
    )
    full: bool = option(False, "Train all weights, not an adapter.", group="Training")
    freeze: tuple[Part, ...] = option(
        (), "A part that stays as it is; may be given several times.", group="Training"
    )
    seed: int = option(
        0,
        "Seed of the order, of what is held out and of the adapter.",
        metavar="N",
        group="Training",
    )
    eval_every: int | None = option(
        None,
        "Measure every N updates. [default: ten times in a run]",
        metavar="N",
        group="Training",
    )
    save_every: int | None = option(
        None,
        "Save every N updates, to go on from after a kill. [default: ten times in a run]",
        metavar="N",
        group="Training",
    )
    log_every: int = option(10, "Log the loss every N updates.", metavar="N", group="Training")

    lora_rank: int = option(16, "Rank of the adapter's matrices.", metavar="N", group="LoRA")
    lora_alpha: float = option(
        32.0, "The adapter is scaled by alpha / rank.", metavar="F", group="LoRA"
    )
    lora_dropout: float = option(0.05, "Dropout in the adapter.", metavar="F", group="LoRA")
    lora_part: tuple[Part, ...] = option(
        ("text", "connector"),
        "A part that gets an adapter; may be given again. [default: text, connector]",
        group="LoRA",
    )
    no_merge: bool = option(
        False,
        "Keep the adapter alone; `vlmbatch models merge` makes a checkpoint of it.",
        group="LoRA",
    )

    model: str = _as_in_job("model")
    revision: str | None = _as_in_job("revision")
    device: str = _as_in_job(
        "device", help="auto, cpu, cuda or mps; CUDA_VISIBLE_DEVICES chooses among several."
    )
    dtype: DTYPE = _as_in_job(
        "dtype",
        help="Number format that training computes in; auto picks the fastest that the device computes in.",
    )
    read_workers: int | None = _as_in_job(
        "read_workers",
        help="Processes that read and prepare beside the training; auto: by device and number of cores.",
    )
    overwrite: bool = _as_in_job("overwrite", help="Start OUT anew, whatever training it holds.")
    log_format: Literal["text", "json"] = _as_in_job("log_format")

    def __post_init__(self) -> None:
        check_types(self)
        self._check_ranges()
        for path in (self.data, *([self.eval_data] if self.eval_data else [])):
            if Path(path).suffix.lower() not in DATA_SUFFIXES:
                raise JobError(
                    f"DATA is a file that ends in {', '.join(DATA_SUFFIXES)}, not {path!r}"
                )
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
                f"device must be auto, cpu, cuda or mps, not {self.device!r}; CUDA_VISIBLE_DEVICES chooses among several"
            )

    @property
    def output_path(self) -> str:
        """OUT as given, or ``DATANAME.finetuned`` in the current folder."""
        return self.output if self.output is not None else f"{Path(self.data).stem}.finetuned"

    @property
    def peak_learning_rate(self) -> float:
        """The highest learning rate, the default resolved."""
        if self.learning_rate is not None:
            return self.learning_rate
        return FULL_LEARNING_RATE if self.full else LORA_LEARNING_RATE

    @property
    def parts(self) -> tuple[Part, ...]:
        """The parts that are trained, or get an adapter."""
        wanted: tuple[Part, ...] = ("text", "connector", "vision") if self.full else self.lora_part
        return tuple(part for part in wanted if part not in self.freeze)

    @property
    def video_job(self) -> Job:
        """How a video that a row names becomes a clip."""
        return Job(
            inputs=(self.data,), media="video", per="clip", fps=self.fps, num_frames=self.num_frames
        )

    def identity(self) -> dict[str, Any]:
        """The settings that the trained weights depend on: OUT of others is not continued."""
        return {name: value for name, value in self.to_dict().items() if name not in _NEUTRAL}

    def to_dict(self) -> dict[str, Any]:
        """Every setting, in order, as YAML and JSON can hold it."""
        values = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        return {
            name: list(value) if isinstance(value, tuple) else value
            for name, value in values.items()
        }


_NEUTRAL = {
    *("data", "output", "eval_data", "skip_bad", "max_pixels"),
    *("no_merge", "eval_every", "save_every", "log_every", "gradient_checkpointing"),
    *("device", "dtype", "read_workers", "overwrite", "log_format"),
}
"""Settings that may change from one start to the next of the same training. What DATA holds is
compared by itself.
"""
