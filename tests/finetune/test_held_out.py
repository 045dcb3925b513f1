"""The held-out rows in OUT, the schedule of the learning rate, and trainings of too little."""

from __future__ import annotations

import dataclasses
import logging
from pathlib import Path

import pytest

from tests.finetune.data import read_lines
from tests.finetune.runs import train
from vlmbatch.evaluate.options import Columns
from vlmbatch.evaluate.reference import read_reference
from vlmbatch.finetune import FinetuneJob
from vlmbatch.finetune.trainer import rate_share


def test_the_held_out_rows_are_a_reference(
    job: FinetuneJob, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING, "vlmbatch.report"):
        train(dataclasses.replace(job, max_steps=1, eval_share=0.3))
    assert "too little to teach much (rows: 4, updates: 1)" in caplog.text
    found = read_lines(tmp_path / "out" / "held_out.jsonl")
    assert len(found) == 2
    for row in found:
        number = Path(row["source"]).stem
        assert Path(row["source"]) == tmp_path / f"{number}.png"
        assert (row["prompt"], row["text"]) == ("What?", f"Noise number {number}.")
    reference = read_reference(tmp_path / "out" / "held_out.jsonl", Columns())
    assert {id for id, _ in reference.entries} == {row["source"] for row in found}
    # The only update there was had a rate.
    rates = [entry.get("learning_rate") for entry in read_lines(tmp_path / "out/training.jsonl")]
    assert [rate for rate in rates if rate is not None] == [job.learning_rate / 2]


@pytest.mark.parametrize(("warmup", "updates"), [(0, 1), (1, 1), (1, 3), (5, 100), (3, 3)])
def test_no_update_is_made_at_rate_0(warmup: int, updates: int) -> None:
    shares = [rate_share(number, warmup=warmup, updates=updates) for number in range(updates)]
    assert all(0 < share <= 1 for share in shares)
    assert shares[:warmup] == sorted(shares[:warmup])
    assert shares[warmup:] == sorted(shares[warmup:], reverse=True)
