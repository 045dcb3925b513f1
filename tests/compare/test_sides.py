"""How a side of a comparison is written."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from vlmbatch.compare.samples import sample_folder
from vlmbatch.compare.sides import TYPES, Side
from vlmbatch.errors import JobError

COMMON = {"inputs": ("photos",), "model": "demo", "threads": 2, "max_new_tokens": 8}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("torch", {"engine": "torch", "model": "demo", "dtype": "auto", "quantize": "none"}),
        ("onnx/int8", {"engine": "onnx", "quantize": "int8", "model": "demo"}),
        ("torch/bf16", {"engine": "torch", "dtype": "bfloat16"}),
        ("llama-server/q8_0:mine", {"engine": "llama-server", "quantize": "q8_0", "model": "mine"}),
        ("demo", {"engine": "torch", "model": "demo"}),
        ("./onnx", {"engine": "torch", "model": "./onnx"}),
        ("owner/name,dtype=float16", {"model": "owner/name", "dtype": "float16"}),
        ("torch:a,b:c,detail=low", {"model": "a,b:c", "detail": "low"}),
        ("torch,batch-size=4,threads=auto", {"batch_size": 4, "threads": None}),
        ("torch,memory_fraction=0.5", {"memory_fraction": 0.5, "threads": 2}),
        (
            "openai:m,endpoint=http://127.0.0.1:8000/v1",
            {"engine": "openai", "model": "m", "endpoint": "http://127.0.0.1:8000/v1"},
        ),
    ],
)
def test_a_side_is_engine_type_model_and_options(text: str, expected: dict[str, Any]) -> None:
    job = Side.parse(text, COMMON).job
    assert {name: getattr(job, name) for name in expected} == expected
    assert job.max_new_tokens == 8


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("onnx/int9", "onnx/int9: 'int9' is no type; there are float32"),
        ("torch:", "no model: write ENGINE"),
        ("", "no model"),
        ("torch,seed=3", "seed belongs to both sides"),
        ("torch,colour=red", "'colour' is no option of a side"),
        ("torch,batch_size=many", "batch_size takes a number, not 'many'"),
        ("torch,provider=cpu", "torch,provider=cpu: provider goes with --engine onnx"),
        ("openai", "name it with --endpoint"),
    ],
)
def test_what_is_wrong_with_a_side_is_said(text: str, message: str) -> None:
    with pytest.raises(JobError, match=message):
        Side.parse(text, COMMON)


def test_the_types_are_options_that_engines_know() -> None:
    assert {tuple(settings) for settings in TYPES.values()} == {("dtype",), ("quantize",)}
    for kind in TYPES:
        assert Side.parse(f"torch/{kind}", COMMON).job.engine == "torch"


def test_the_samples_are_in_the_source_tree() -> None:
    assert len(list(sample_folder().iterdir())) == 12
    assert sample_folder() == Path(__file__).parents[2] / "sample_data" / "images"
