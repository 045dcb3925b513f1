"""Run trainings, in this process or as one of their own."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import torch
from safetensors.torch import load_file

from tests.processes import start
from vlmbatch.finetune import FinetuneJob
from vlmbatch.finetune.run import Finetuning, TrainingOutcome


def train(job: FinetuneJob) -> TrainingOutcome:
    return Finetuning(job).start()


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


def begin(job: FinetuneJob, options: str) -> subprocess.Popen[str]:
    """Start the same training as a process."""
    command = [
        *(sys.executable, "-m", "vlmbatch", "finetune", job.data, "-o", job.output_path),
        *("--model", job.model, "--device", "cpu", "--detail", "low", "--log-every", "1"),
        *("--batch-size", "2", "--gradient-accumulation", "1", "--learning-rate", "1e-3"),
        *options.split(),
    ]
    return start(command, env={**os.environ, "OMP_NUM_THREADS": "1"}, stderr=subprocess.PIPE)
