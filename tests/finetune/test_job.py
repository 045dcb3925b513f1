"""Options of a training."""

from __future__ import annotations

import dataclasses

import pytest

from vlmbatch.errors import JobError
from vlmbatch.finetune import FinetuneJob
from vlmbatch.job import Job


def test_options_that_a_job_has_too_have_its_defaults() -> None:
    job, shared = FinetuneJob(data="a.jsonl"), Job(inputs=("a",))
    for name in {field.name for field in dataclasses.fields(Job)} & {
        "model",
        "detail",
        "max_pixels",
        "device",
        "dtype",
        "log_format",
    }:
        assert getattr(job, name) == getattr(shared, name)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"data": "photos"}, "DATA is a file that ends in .jsonl, .parquet, .csv"),
        ({"eval_data": "held_out.txt"}, "not 'held_out.txt'"),
        ({"epochs": 0.0}, "epochs must be above 0"),
        ({"learning_rate": float("nan")}, "learning_rate must be above 0"),
        ({"eval_share": 1.0}, "eval_share must be from 0 to below 1"),
        ({"batch_size": 0}, "batch_size must be at least 1"),
        ({"lora_part": ("lips",)}, "lora_part must be one of text, connector, vision"),
        ({"freeze": ("text", "connector")}, "nothing is left to train"),
        ({"full": True, "freeze": ("text", "connector", "vision")}, "nothing is left to train"),
        ({"full": True, "no_merge": True}, "no_merge goes with an adapter"),
        ({"fps": 1.0, "num_frames": 3}, "give one"),
        ({"device": "cuda:1"}, "CUDA_VISIBLE_DEVICES"),
        ({"optimizer": "sgd"}, "optimizer must be one of adamw, adamw8bit"),
        ({"seed": 2**32}, "seed must be at most"),
    ],
)
def test_a_value_that_is_not_allowed_is_an_error_that_says_what_is(
    values: dict[str, object], message: str
) -> None:
    with pytest.raises(JobError, match=message.replace("(", r"\(")):
        FinetuneJob(**{"data": "a.jsonl", **values})  # type: ignore[arg-type]


def test_what_is_trained_follows_from_full_parts_and_freeze() -> None:
    assert FinetuneJob(data="a.jsonl").parts == ("text", "connector")
    assert FinetuneJob(data="a.jsonl", full=True).parts == ("text", "connector", "vision")
    assert FinetuneJob(data="a.jsonl", full=True, freeze=("vision",)).parts == ("text", "connector")
    assert FinetuneJob(data="a.jsonl", lora_part=("vision", "text"), freeze=("vision",)).parts == (
        "text",
    )


def test_the_learning_rate_follows_the_kind_of_training() -> None:
    assert FinetuneJob(data="a.jsonl").peak_learning_rate == 1e-4
    assert FinetuneJob(data="a.jsonl", full=True).peak_learning_rate == 2e-5
    assert FinetuneJob(data="a.jsonl", full=True, learning_rate=0.5).peak_learning_rate == 0.5


def test_only_settings_that_the_weights_depend_on_are_compared() -> None:
    job = FinetuneJob(data="a.jsonl")
    for change in (
        {"output": "x"},
        {"save_every": 3},
        {"no_merge": True},
        {"device": "cpu"},
        {"gradient_checkpointing": True},
        {"overwrite": True},
    ):
        assert dataclasses.replace(job, **change).identity() == job.identity()  # type: ignore[arg-type]
    for change in (
        {"epochs": 1.0},
        {"seed": 1},
        {"lora_rank": 3},
        {"detail": "low"},
        {"model": "demo"},
        {"batch_size": 1},
        {"full": True},
    ):
        assert dataclasses.replace(job, **change).identity() != job.identity()  # type: ignore[arg-type]
