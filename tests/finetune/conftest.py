"""A training of seconds, for all tests of trainings."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import transformers

from tests.finetune.data import write_rows
from tests.media import write_picture
from vlmbatch.finetune import FinetuneJob


@pytest.fixture(autouse=True)
def _quiet_transformers() -> Iterator[None]:
    """The Trainer sets the verbosity of the whole process."""
    before = transformers.utils.logging.get_verbosity()
    yield
    transformers.utils.logging.set_verbosity(before)


@pytest.fixture
def job(tmp_path: Path, tiny: Path) -> FinetuneJob:
    """A training of seconds: six pictures of noise, a random checkpoint."""
    rows = [
        {"image": f"{n}.png", "prompt": "What?", "answer": f"Noise number {n}."} for n in range(6)
    ]
    for number in range(6):
        write_picture(tmp_path / f"{number}.png", seed=number)
    return FinetuneJob(
        data=str(write_rows(tmp_path / "data.jsonl", rows)),
        output=str(tmp_path / "out"),
        model=str(tiny),
        device="cpu",
        detail="low",
        max_steps=4,
        batch_size=2,
        gradient_accumulation=1,
        learning_rate=1e-3,
        log_every=1,
    )
