"""Trainings from rows to checkpoint: results, files, and continuation after a kill."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from tests.checkpoints import write_tiny_checkpoint
from tests.engine.torch.test_parity import assert_same, mixed_requests, open_tiny, wanted_answers
from tests.finetune.data import PROMPT, read_lines, write_rows, write_scenes
from tests.finetune.runs import train, weights
from tests.media import write_picture, write_video
from vlmbatch.checkpoint import LFS_POINTER, find_checkpoint
from vlmbatch.errors import (
    DeviceError,
    JobError,
    MissingDependencyError,
    ModelLoadError,
    OutOfMemoryError,
    OutputError,
    OutputLockedError,
)
from vlmbatch.finetune import FinetuneJob, extras
from vlmbatch.finetune.merge import merge_adapter
from vlmbatch.finetune.run import Finetuning
from vlmbatch.finetune.trainer import AnswerTrainer
from vlmbatch.job import Job
from vlmbatch.run.pipeline import Run
from vlmbatch.write import read_records
from vlmbatch.write.lock import OutputLock

pytestmark = pytest.mark.timeout(600)


def assert_answers_as_the_reference(folder: Path) -> None:
    engine, asker = open_tiny(folder)
    ends = find_checkpoint(str(folder)).end_token_ids()
    assert_same(engine, mixed_requests(asker), wanted_answers(folder), ends)


def test_the_demo_model_learns_another_wording(tmp_path: Path) -> None:
    data = write_scenes(tmp_path, 36, lambda caption: f"Look: {caption}")
    job = FinetuneJob(
        data=str(data), output=str(tmp_path / "out"), model="demo", device="cpu", detail="low",
        max_steps=140, batch_size=8, gradient_accumulation=1, learning_rate=1e-2, eval_every=70,
    )  # fmt: skip
    result = train(job).state["result"]
    assert result["last_eval_loss"] < 0.5 * result["first_eval_loss"]
    assert result["first_eval_answer_accuracy"] == 0
    measured = [
        entry["eval_loss"]
        for entry in read_lines(tmp_path / "out" / "training.jsonl")
        if "eval_loss" in entry
    ]
    assert [measured[0], measured[-1]] == [result["first_eval_loss"], result["last_eval_loss"]]
    captions = Job(
        inputs=(str(tmp_path / "*.png"),),
        output=str(tmp_path / "captions.jsonl"),
        model=str(tmp_path / "out"),
        detail="low",
        device="cpu",
    )
    assert Run(captions).start().exit_code == 0
    texts = [str(row["text"]) for row in read_records(tmp_path / "captions.jsonl")]
    assert np.mean([text.startswith("Look: A") for text in texts]) > 0.9


def test_out_is_a_complete_checkpoint_that_answers_as_transformers_does(
    job: FinetuneJob, tiny: Path
) -> None:
    assert train(job).state["status"] == "finished"
    out = Path(job.output_path)
    names = {path.name for path in out.iterdir()}
    assert {path.name for path in tiny.iterdir()} <= names
    assert {"finetune.json", "training.jsonl", "rows.jsonl", "curves.png", "adapter"} <= names
    assert not {"checkpoints", "unfinished"} & names
    assert (out / "curves.png").read_bytes().startswith(b"\x89PNG")
    assert not Path(f"{out}.lock").exists()
    before, after = weights(tiny), weights(out)
    assert before.keys() == after.keys()
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed == {
        name
        for name in before
        if ("text_model.layers" in name and "norm" not in name) or "connector" in name
    }
    assert_answers_as_the_reference(out)


FROZEN = {
    "everything": ({"full": True}, ()),
    "vision frozen": ({"full": True, "freeze": ("vision",)}, ("vision",)),
    "only vision": (
        {"full": True, "freeze": ("text", "connector")},
        ("text", "connector", "lm_head"),
    ),
}


@pytest.mark.parametrize(("settings", "still"), FROZEN.values(), ids=FROZEN)
def test_full_trains_every_weight_but_the_frozen_ones(
    job: FinetuneJob, tiny: Path, settings: dict[str, object], still: tuple[str, ...]
) -> None:
    assert train(dataclasses.replace(job, **settings)).state["status"] == "finished"  # type: ignore[arg-type]
    before, after = weights(tiny), weights(Path(job.output_path))
    assert not (Path(job.output_path) / "adapter").exists()
    for name in before:
        frozen = any(f"model.{part}" in name or name.startswith(part) for part in still)
        assert torch.equal(before[name], after[name]) == frozen, name


@pytest.mark.parametrize(
    "settings",
    [{"tie": True}, {"shards": True}, {"layout": "saved"}, {"dtype": "bfloat16"}],
    ids=str,
)
def test_every_form_of_checkpoint_is_trained_and_keeps_its_number_format(
    job: FinetuneJob, tmp_path: Path, settings: dict[str, object]
) -> None:
    base = write_tiny_checkpoint(tmp_path / "base", **settings)  # type: ignore[arg-type]
    train(
        dataclasses.replace(
            job, model=str(base), max_steps=1, gradient_checkpointing=True, eval_share=0.0
        )
    )
    out = Path(job.output_path)
    assert json.loads((out / "config.json").read_text()) == json.loads(
        (base / "config.json").read_text()
    )
    kept = {
        name: value
        for path in base.glob("*.safetensors")
        for name, value in load_file(path).items()
    }
    assert {name: (value.shape, value.dtype) for name, value in kept.items()} == {
        name: (value.shape, value.dtype) for name, value in weights(out).items()
    }
    assert_answers_as_the_reference(out)


@pytest.mark.parametrize("full", [False, True], ids=["adapter", "full"])
def test_bfloat16_computes_and_float32_is_kept(job: FinetuneJob, tiny: Path, full: bool) -> None:
    training = Finetuning(dataclasses.replace(job, dtype="bfloat16", full=full))
    training.start()
    losses = [entry["loss"] for entry in read_lines(training.folder.log) if "loss" in entry]
    assert losses[-1] < losses[0]
    before, after = weights(tiny), weights(Path(job.output_path))
    changes = [
        (after[name] - before[name]).abs()
        for name in before
        if not torch.equal(before[name], after[name])
    ]
    assert (
        min(float(change[change > 0].min()) for change in changes) < 1e-6
    )  # in bfloat16 these would have been lost


def test_an_adapter_is_merged_later_in_either_way(job: FinetuneJob, tmp_path: Path) -> None:
    alone = dataclasses.replace(job, no_merge=True)
    assert train(alone).state["status"] == "trained"
    out = Path(job.output_path)
    for model in (out, out / "adapter"):
        with pytest.raises(
            ModelLoadError,
            match=r"is an adapter, not a checkpoint: `vlmbatch models merge .*adapter -o FOLDER`",
        ):
            find_checkpoint(str(model))
    merged = merge_adapter(out / "adapter", tmp_path / "merged")
    assert merged.config["model_type"] == "smolvlm"
    assert train(job).state["status"] == "finished"
    assert (out / "model.safetensors").read_bytes() == (
        tmp_path / "merged" / "model.safetensors"
    ).read_bytes()
    other = write_tiny_checkpoint(tmp_path / "other", text_layers=1)
    with pytest.raises(ModelLoadError, match="does not go with"):
        merge_adapter(out / "adapter", tmp_path / "wrong", str(other))
    with pytest.raises(ModelLoadError, match="holds no adapter"):
        merge_adapter(tmp_path / "merged", tmp_path / "wrong")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (LFS_POINTER, r"adapter_model.safetensors is a Git LFS pointer.*`git lfs pull`"),
        (None, "adapter_model.safetensors is missing from"),
        (b"no weights", "does not go with"),
    ],
)
def test_an_adapter_without_weights_is_named(
    tmp_path: Path, tiny: Path, content: bytes | None, message: str
) -> None:
    (tmp_path / "adapter_config.json").write_text(
        json.dumps({"peft_type": "LORA", "base_model_name_or_path": str(tiny)})
    )
    if content is not None:
        (tmp_path / "adapter_model.safetensors").write_bytes(content)
    with pytest.raises(ModelLoadError, match=message):
        merge_adapter(tmp_path, tmp_path / "merged")


def test_bad_rows_are_listed_and_stop_a_training_unless_they_are_skipped(
    job: FinetuneJob, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    whole = write_picture(tmp_path / "whole.png", 200, 100).read_bytes()
    (tmp_path / "cut.png").write_bytes(whole[: len(whole) // 2])
    bad = [
        {"image": "gone.png", "prompt": "What?", "answer": "A."},
        {"image": "cut.png", "prompt": "What?", "answer": "A."},
        {"image": "0.png", "prompt": "What?", "answer": ""},
        {"image": "0.png", "prompt": "What?", "answer": "x" * 3000},
        {"image": "0.png", "prompt": "What <image>?", "answer": "A."},
        {"video": "data.jsonl", "prompt": "What?", "answer": "A."},
    ]
    write_rows(Path(job.data), [*bad, *read_lines(Path(job.data))])
    with (
        caplog.at_level("WARNING", logger="vlmbatch.report"),
        pytest.raises(JobError, match=r"6 of 12 rows .* are bad; nothing was trained.*--skip-bad"),
    ):
        train(job)
    for number, word in enumerate(
        [
            "No such file",
            "broken PNG",
            "an empty answer",
            "the model's context is 2048",
            "stands for pixels",
            "",
        ],
        1,
    ):
        [line] = [line for line in caplog.messages if f"line {number}:" in line]
        assert word in line
    assert {path.name for path in Path(job.output_path).iterdir()} == {"rows.jsonl"}
    state = train(dataclasses.replace(job, skip_bad=True)).state
    assert state["status"] == "finished"
    write_rows(Path(job.data), bad)
    with pytest.raises(JobError, match="all 6 rows"):
        train(dataclasses.replace(job, skip_bad=True, output=str(tmp_path / "none")))


def test_an_output_with_corrected_texts_is_data(
    job: FinetuneJob, tmp_path: Path, tiny: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_video(tmp_path / "clips" / "v.mp4", 20, fps=10)
    (tmp_path / "broken.png").write_bytes(b"")
    monkeypatch.chdir(tmp_path)
    settings = {
        "output": "out.csv",
        "model": str(tiny),
        "detail": "low",
        "max_new_tokens": 2,
        "device": "cpu",
    }
    Run(Job.from_dict({"inputs": ["0.png", "1.png", "broken.png"], **settings})).start()
    Run(
        Job.from_dict(
            {
                "inputs": ["clips"],
                "media": "video",
                "fps": 2,
                **settings,
                "output": "frames.parquet",
            }
        )
    ).start()
    Run(
        Job.from_dict(
            {
                "inputs": ["clips"],
                "media": "video",
                "per": "clip",
                "num_frames": 3,
                **settings,
                "output": "clips.jsonl",
            }
        )
    ).start()
    text = (tmp_path / "out.csv").read_text()
    (tmp_path / "out.csv").write_text(text.replace("\r\n", "\n"))
    lines = read_lines(tmp_path / "clips.jsonl")
    write_rows(tmp_path / "clips.jsonl", [{**line, "text": "Numbers."} for line in lines])
    for name, rows in (("out.csv", 2), ("frames.parquet", 4), ("clips.jsonl", 1)):
        assert (
            train(
                dataclasses.replace(
                    job, data=name, output=f"{name}.out", max_steps=1, eval_share=0.0
                )
            ).state["status"]
            == "finished"
        )
        verdicts = read_lines(tmp_path / f"{name}.out" / "rows.jsonl")
        assert len(verdicts) == rows
        assert all(not verdict["error"] for verdict in verdicts)
    assert verdicts[0]["tiles"] == 3


def test_held_out_rows_may_come_from_a_file_of_their_own(job: FinetuneJob, tmp_path: Path) -> None:
    held_out = write_rows(
        tmp_path / "held_out.jsonl", [{"image": "5.png", "prompt": PROMPT, "answer": "A."}] * 3
    )
    training = Finetuning(dataclasses.replace(job, eval_data=str(held_out), max_steps=1))
    training.start()
    measured = [
        entry["eval_answers"]
        for entry in read_lines(training.folder.log)
        if "eval_answers" in entry
    ]
    assert measured == [3, 3]


def test_accumulated_batches_train_as_one_large_batch_does(
    job: FinetuneJob, tmp_path: Path
) -> None:
    even = dataclasses.replace(job, max_steps=3, eval_share=0.0, lora_dropout=0.0)
    train(dataclasses.replace(even, batch_size=6, output=str(tmp_path / "large")))
    train(
        dataclasses.replace(
            even,
            batch_size=1,
            gradient_accumulation=6,
            gradient_checkpointing=True,
            output=str(tmp_path / "small"),
        )
    )
    for name, value in weights(tmp_path / "large").items():
        torch.testing.assert_close(
            weights(tmp_path / "small")[name], value, rtol=1e-3, atol=1e-5, msg=name
        )


def test_a_subclass_can_add_a_loss(job: FinetuneJob, monkeypatch: pytest.MonkeyPatch) -> None:
    class Doubled(AnswerTrainer):
        def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):  # type: ignore[no-untyped-def]
            loss, outputs = super().compute_loss(model, inputs, True, num_items_in_batch)
            return (2 * loss, outputs) if return_outputs else 2 * loss

    one = dataclasses.replace(job, max_steps=1, lora_dropout=0.0)
    plain = Finetuning(dataclasses.replace(one, output=f"{job.output}.plain"))
    plain.start()
    monkeypatch.setattr("vlmbatch.finetune.run.AnswerTrainer", Doubled)
    doubled = Finetuning(one)
    doubled.start()
    first, second = (
        next(entry["loss"] for entry in read_lines(training.folder.log) if "loss" in entry)
        for training in (plain, doubled)
    )
    assert second == pytest.approx(2 * first, rel=1e-5)


def test_what_stands_in_the_way_is_said(
    job: FinetuneJob, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "photo.png").write_bytes(b"x")
    with pytest.raises(OutputError, match=r"holds something else \(photo.png\)"):
        train(dataclasses.replace(job, output=str(tmp_path / "full"), overwrite=True))
    assert (tmp_path / "full" / "photo.png").exists()
    with pytest.raises(OutputError, match="is a file"):
        train(dataclasses.replace(job, output=job.data))
    lock = OutputLock(Path(job.output_path))
    with pytest.raises(OutputLockedError):
        train(job)
    lock.release()
    with pytest.raises(DeviceError, match="adamw8bit needs CUDA"):
        Finetuning(dataclasses.replace(job, optimizer="adamw8bit"))
    with pytest.raises(DeviceError, match="float16 needs CUDA"):
        Finetuning(dataclasses.replace(job, dtype="float16"))
    monkeypatch.setattr(extras, "NEEDED", ("peft", "no_such_package"))
    with pytest.raises(
        MissingDependencyError, match=r"needs no_such_package: pip install 'vlmbatch\[finetune\]'"
    ):
        extras.require()


def test_out_of_memory_says_what_to_lower(
    job: FinetuneJob, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*arguments: object, **settings: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(AnswerTrainer, "model_inputs", full)
    with pytest.raises(OutOfMemoryError, match=r"a batch of 2 rows .* lower --batch-size \(2\)"):
        train(job)


def test_curves_are_left_out_without_matplotlib(
    job: FinetuneJob, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vlmbatch.finetune.log.has_matplotlib", lambda: False)
    train(dataclasses.replace(job, max_steps=1))
    assert not (Path(job.output_path) / "curves.png").exists()
    assert (Path(job.output_path) / "config.json").exists()


def test_a_loss_that_is_no_number_ends_the_training(job: FinetuneJob) -> None:
    from vlmbatch.errors import EngineError

    with pytest.raises(EngineError, match="lower --learning-rate"):
        train(dataclasses.replace(job, learning_rate=1e30, full=True, max_steps=20))
