"""A fused layer gives what the layer of single operations gives, is compiled once for any number of
rows, and gives way where it cannot be compiled or computes otherwise.
"""

from __future__ import annotations

import dataclasses
import logging
import os
import shutil
import subprocess
import sys
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.engine.idefics3 import MULTIPLIERS, docling_options, write_idefics3
from tests.engine.reference import answers
from tests.engine.torch.fake_device import FakeDevice
from tests.engine.torch.test_fake_gpu import alike, tokens_of
from tests.engine.torch.test_parity import mixed_requests, open_tiny
from vlmbatch.engine.torch.cuda import fused
from vlmbatch.engine.torch.cuda.fused import compile_operations, fuse_layers, samples
from vlmbatch.engine.torch.pointwise import EAGER
from vlmbatch.engine.torch.weights import Model

pytestmark = pytest.mark.filterwarnings(
    "ignore:.torch.jit.script_method. is deprecated:DeprecationWarning"  # torch's own, in inductor
)
needs_compiler = pytest.mark.skipif(
    shutil.which("c++") is None or sys.platform != "linux", reason="no C++ compiler"
)
EXACT = ("rotate", "gate")
"""Operations that add up nothing: their bits are torch's in 16 bits."""


def rows_of(arguments: Sequence[Any], rows: int) -> list[Any]:
    """Arguments of an operation with other rows."""
    drawn = torch.Generator().manual_seed(rows)
    return [
        torch.randn((rows, *each.shape[1:]), generator=drawn).to(each.dtype)
        if isinstance(each, Tensor) and each.dim() > 1
        else each
        for each in arguments
    ]


def results(found: Any) -> list[Tensor]:
    return list(found) if isinstance(found, tuple) else [found]


def graphs_compiled() -> int:
    from torch._dynamo.utils import counters

    return int(counters["stats"]["unique_graphs"])


@needs_compiler
@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_compiled_operations_give_torchs_numbers_for_any_rows_with_one_compilation(
    tiny: Path, dtype: str, plain: dict[tuple[int, int], Sequence[int]]
) -> None:
    engine, preparer = open_tiny(tiny, dtype=dtype)
    model = engine.network
    wanted = answers(engine, mixed_requests(preparer))
    with torch.inference_mode():
        before = graphs_compiled()
        operations = compile_operations(model, torch.compile)
        # The norms of a first layer have nothing to add.
        assert graphs_compiled() - before == len(fused.FUNCTIONS) + 2
        given = samples(model)
        differing = count = 0
        for name in fused.FUNCTIONS:
            for arguments in given[name]:
                for rows in (1, 2, 37, 500):
                    there = rows_of(arguments, rows)
                    found = results(getattr(operations, name)(*there))
                    for one, other in zip(
                        found, results(getattr(EAGER, name)(*there)), strict=True
                    ):
                        torch.testing.assert_close(one, other)
                        if name in EXACT and dtype != "float32":
                            assert torch.equal(one, other)
                        differing += int((one != other).sum())
                        count += one.numel()
        # What differs is rounded otherwise because a sum was made in another order.
        assert dtype == "float32" or differing <= count / 10_000
    model.language.pointwise = model.vision.pointwise = operations
    assert answers(engine, mixed_requests(preparer)) == wanted
    assert graphs_compiled() - before == len(fused.FUNCTIONS) + 2


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
def test_a_fused_layer_on_a_device_gives_the_same_words_with_fewer_kernels(
    tiny: Path, dtype: str
) -> None:
    found, launched = [], []
    for is_fused in (False, True):
        with FakeDevice() as gpu:
            engine, preparer = open_tiny(tiny, device="cuda", dtype=dtype)
            engine._buckets = engine._steps._buckets = None  # steps launch their kernels
            if is_fused:
                state = fuse_layers(engine.network, gpu.compile)
                assert (state["used"], state["notes"]) == (True, [])
            found.append(tokens_of(engine, mixed_requests(preparer)))
            before = gpu.counts.copy()
            tokens_of(engine, alike(preparer, 4, 2))
            short = gpu.counts.since(before)
            before = gpu.counts.copy()
            tokens_of(engine, alike(preparer, 4, 12))
            launched.append(gpu.counts.since(before).kernels - short.kernels)
    assert found[0] == found[1]
    assert launched[1] < 0.6 * launched[0]


def test_recorded_steps_are_those_of_the_fused_layer(
    tiny: Path, plain: dict[tuple[int, int], Sequence[int]]
) -> None:
    with FakeDevice() as gpu:
        engine, preparer = open_tiny(tiny, device="cuda")
        assert fuse_layers(engine.network, gpu.compile)["used"]
        assert tokens_of(engine, mixed_requests(preparer)) == plain
        assert engine.stats.graphs["notes"] == []
        assert engine.stats.graphs["replayed"] > 0


def test_multipliers_of_a_granite_are_in_its_fused_layer(tmp_path: Path) -> None:
    folder = write_idefics3(tmp_path / "model", **docling_options(granite=MULTIPLIERS))
    engine, preparer = open_tiny(folder)
    wanted = tokens_of(engine, alike(preparer, 6, 12))
    with FakeDevice() as gpu:
        engine, preparer = open_tiny(folder, device="cuda")
        assert fuse_layers(engine.network, gpu.compile)["used"]
        assert tokens_of(engine, alike(preparer, 6, 12)) == wanted


def without_a_compiler(function: Callable[..., Any], **options: Any) -> Callable[..., Any]:
    """torch.compile as far as the graph, which counts."""
    found: Callable[..., Any] = torch.compile(function, backend="eager", dynamic=options["dynamic"])
    return found


@torch.inference_mode()
def test_models_of_other_sizes_are_compiled_for_themselves(tiny: Path) -> None:
    models = [open_tiny(folder)[0].network for folder in (tiny, Path("demo"))] * 3
    graphs, compiled = len(fused.FUNCTIONS) + 2, []
    for model in models:
        before = graphs_compiled()
        operations = compile_operations(model, without_a_compiler)
        assert graphs_compiled() - before == graphs
        compiled.append((operations, samples(model)))
    before = graphs_compiled()
    for operations, given in compiled:
        for name in fused.FUNCTIONS:
            for arguments in given[name]:
                getattr(operations, name)(*rows_of(arguments, 3))
    assert graphs_compiled() == before


class Ticks:
    """A clock that goes on by some seconds whenever it is looked at."""

    def __init__(self, seconds: float) -> None:
        self.now, self._seconds = 0.0, seconds

    def __call__(self) -> float:
        self.now += self._seconds
        return self.now


def wrong(function: Callable[..., Any], **options: object) -> Callable[..., Any]:
    def compiled(*arguments: Any) -> Any:
        found = function(*arguments)
        return found * 1.5 if isinstance(found, Tensor) else found

    return compiled


def broken(function: Callable[..., Any], **options: object) -> Callable[..., Any]:
    raise RuntimeError("Failed to find C compiler. Please specify via CC environment variable.")


def same(function: Callable[..., Any], **options: object) -> Callable[..., Any]:
    return lambda *arguments: function(*arguments)


@pytest.mark.parametrize(
    ("make", "seconds", "reason"),
    [
        (wrong, 0, "ValueError: compiled, they give other text"),
        (broken, 0, "RuntimeError: Failed to find C compiler"),
        (same, 60, "TimeoutError: compiling takes more than 180 seconds"),
        (lambda function, **options: function, 0, "RuntimeError: torch.compile is switched off"),
    ],
    ids=["computes otherwise", "cannot be compiled", "takes too long", "switched off"],
)
def test_a_layer_that_cannot_be_fused_is_left_as_it_was_with_one_warning(
    tiny: Path,
    make: Callable[..., Any],
    seconds: float,
    reason: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    with FakeDevice():
        model = open_tiny(tiny, device="cuda")[0].network
        with caplog.at_level(logging.WARNING, "vlmbatch"):
            state = fuse_layers(model, make, Ticks(seconds))
        assert not state["used"]
        assert [reason in note for note in state["notes"]] == [True]
        assert [reason in record.getMessage() for record in caplog.records] == [True]
        assert model.language.pointwise is model.vision.pointwise is EAGER


def test_advice_of_the_compiler_to_round_more_reaches_nobody(tiny: Path) -> None:
    def advising(function: Callable[..., Any], **options: object) -> Callable[..., Any]:
        warnings.warn("TensorFloat32 tensor cores are not enabled", stacklevel=1)
        return same(function)

    with FakeDevice():
        state = fuse_layers(open_tiny(tiny, device="cuda")[0].network, advising)
    assert (state["used"], state["notes"]) == (True, [])


def larger(model: Model) -> Model:
    """The same model, as if it were large."""
    text = dataclasses.replace(model.shape.text, vocabulary=10**6)
    return dataclasses.replace(model, shape=dataclasses.replace(model.shape, text=text))


def test_the_summary_says_why_a_model_is_not_fused(
    tiny: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with FakeDevice():
        engine, _ = open_tiny(tiny, device="cuda")
        assert engine.stats.fused == {"used": False, "seconds": 0, "notes": []}  # it is small
        monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
        (note,) = fuse_layers(larger(engine.network))["notes"]
        assert "the package triton is not installed" in note
    assert open_tiny(tiny)[0].stats.fused == {}


OFF = """
import torch
from vlmbatch.engine.torch.cuda import fused
shape = None
fused.FUNCTIONS = {"gate": fused.gate}
fused.samples = lambda model: {"gate": [(torch.ones(4, 6),)]}
try:
    fused.compile_operations(None, torch.compile)
except RuntimeError as error:
    print(error)
"""


@pytest.mark.parametrize("name", ["TORCH_COMPILE_DISABLE", "TORCHDYNAMO_DISABLE"])
def test_torchs_own_switches_are_honoured(name: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", OFF],
        env={**os.environ, name: "1"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout == "torch.compile is switched off (TORCH_COMPILE_DISABLE)\n"


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here")
@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
def test_a_gpu_compiles_the_layer_and_records_it(tiny: Path, dtype: str) -> None:
    engine, preparer = open_tiny(tiny, device="cuda", dtype=dtype)
    wanted = tokens_of(engine, mixed_requests(preparer))
    engine, preparer = open_tiny(tiny, device="cuda", dtype=dtype)
    state = fuse_layers(larger(engine.network))
    assert (state["used"], state["notes"]) == (True, [])
    found = tokens_of(engine, mixed_requests(preparer))
    # A norm's sum in another order may end in another token, where two are about as likely.
    assert sum(found[key] == wanted[key] for key in wanted) >= 0.8 * len(wanted)
    assert engine.stats.graphs["notes"] == []
    assert engine.stats.graphs["replayed"] > 0
