"""Trainings of the Idefics3 family: answers end as their own template ends a turn."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from tests.engine.idefics3 import docling_options, write_idefics3
from tests.engine.torch.test_idefics3 import assert_equal
from tests.finetune.runs import train, weights
from vlmbatch.checkpoint import find_checkpoint
from vlmbatch.finetune import FinetuneJob
from vlmbatch.prepare import Preparer


@pytest.mark.parametrize(
    ("options", "written"),
    [({}, " A cat.<end_of_utterance>"), (docling_options(), "A cat.<|end_of_text|>")],
    ids=["SmolVLM", "granite-docling"],
)
def test_an_answer_ends_as_the_template_ends_it(
    tmp_path: Path, options: dict[str, object], written: str
) -> None:
    folder = write_idefics3(tmp_path / "model", **options)
    writer = Preparer.from_checkpoint(find_checkpoint(str(folder))).writer
    found = writer.tokenizer.decode(writer.answer("A cat."), skip_special_tokens=False)
    assert found == written


@pytest.mark.parametrize("full", [False, True], ids=["adapter", "full"])
def test_a_trained_model_answers_as_transformers_does(
    job: FinetuneJob, tmp_path: Path, full: bool
) -> None:
    base = write_idefics3(tmp_path / "base", **docling_options())
    job = dataclasses.replace(job, model=str(base), full=full)
    assert train(job).state["status"] == "finished"
    out = Path(job.output_path)
    before, after = weights(base), weights(out)
    assert before.keys() == after.keys()
    assert any(not before[name].equal(after[name]) for name in before)
    assert_equal(out, [[("user", [tmp_path / "0.png", "What?"])]])
