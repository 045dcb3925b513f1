"""The engine on an Apple GPU that is not there: the words of the CPU, nothing that MPS would
refuse, and no operation that it does not have.
"""

from __future__ import annotations

import gc
import re
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
import torchgen

from tests.engine.torch.fake_device import FakeDevice
from tests.engine.torch.test_fake_gpu import tokens_of
from tests.engine.torch.test_parity import mixed_requests, open_tiny

Answers = dict[tuple[int, int], Sequence[int]]
KERNELS = Path(torchgen.__file__).parent / "packaged/ATen/native/native_functions.yaml"
"""torch's list of its operations, with the devices that have each."""


@pytest.mark.parametrize("settings", [{}, {"quantize": "int8"}], ids=["words", "8-bit weights"])
def test_answers_are_those_of_the_cpu(tiny: Path, settings: dict[str, object]) -> None:
    engine, preparer = open_tiny(tiny, **settings)
    wanted = tokens_of(engine, mixed_requests(preparer))
    with FakeDevice(kind="mps"):
        engine, preparer = open_tiny(tiny, device="mps", **settings)
        assert (engine.device, engine.stats.graphs, engine.stats.fused) == ("mps", {}, {})
        found = tokens_of(engine, mixed_requests(preparer))
        assert found == wanted
        # What the first run left is where the second one begins.
        assert tokens_of(engine, mixed_requests(preparer)) == wanted


def test_sampled_answers_are_those_of_the_cpu(tiny: Path) -> None:
    sampled = {"temperature": 0.8, "top_p": 0.9}
    engine, preparer = open_tiny(tiny, **sampled)
    wanted = tokens_of(engine, mixed_requests(preparer))
    with FakeDevice(kind="mps"):
        engine, preparer = open_tiny(tiny, device="mps", **sampled)
        found = tokens_of(engine, mixed_requests(preparer))
    # Sums of weights are of float32 there: a number between two tokens may fall to either.
    assert sum(found[key] == wanted[key] for key in wanted) >= 0.9 * len(wanted)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_16_bits_are_computed_to_the_end(tiny: Path, dtype: str) -> None:
    engine, preparer = open_tiny(tiny, dtype=dtype)
    wanted = tokens_of(engine, mixed_requests(preparer))
    with FakeDevice(kind="mps"):
        engine, preparer = open_tiny(tiny, device="mps", dtype=dtype)
        found = tokens_of(engine, mixed_requests(preparer))
    same = [found[key][:2] == wanted[key][:2] for key in wanted]
    assert sum(same) >= 0.8 * len(wanted)


def test_a_buffer_that_is_too_large_makes_calls_smaller(tiny: Path) -> None:
    engine, preparer = open_tiny(tiny)
    wanted = tokens_of(engine, mixed_requests(preparer))
    with FakeDevice(kind="mps") as gpu:
        engine, preparer = open_tiny(tiny, device="mps", max_memory="40MB")
        held = gpu.allocated
        gpu.refusal = lambda: RuntimeError("Invalid buffer size: 24.00 GB")
        gpu.refusals = 2
        assert tokens_of(engine, mixed_requests(preparer)) == wanted
        first, second = engine.stats.oom_events
        assert first["size"] >= 2 * second["size"]
        engine.close()
        gc.collect()
        assert gpu.allocated <= held


def test_float64_and_pinned_memory_are_refused() -> None:
    with FakeDevice(kind="mps") as gpu:
        x = gpu.put(torch.ones(2, 2))
        for call in (lambda: x.double(), lambda: torch.zeros(2, dtype=torch.float64, device="mps")):
            with pytest.raises(TypeError, match="doesn't support float64"):
                call()
        with pytest.raises(RuntimeError, match="no pinned memory"):
            torch.empty(2, pin_memory=True)


def operations_of_mps() -> set[str]:
    """Names of torch's operations that MPS has, by a kernel of its own or by other operations."""
    blocks = re.split(r"^- func: ", KERNELS.read_text(encoding="utf-8"), flags=re.MULTILINE)[1:]
    delegates: dict[str, str] = {}
    found = set()
    for block in blocks:
        name = "aten::" + block.partition("(")[0]
        delegate = re.search(r"^  structured_delegate: (\S+)", block, re.MULTILINE)
        if delegate:
            delegates[name] = "aten::" + delegate[1]
        elif "\n  dispatch:" not in block or re.search(
            r"^    .*(MPS|Composite)", block, re.MULTILINE
        ):
            found.add(name)
    return found | {name for name, other in delegates.items() if other in found}


def test_every_operation_that_the_engine_asks_for_is_one_that_mps_has(tiny: Path) -> None:
    there = operations_of_mps()
    assert {"aten::add.Tensor", "aten::scaled_dot_product_attention"} <= there
    assert "aten::_linalg_eigh" not in there  # one that it lacks
    with FakeDevice(kind="mps") as gpu:
        for settings in ({"quantize": "int8", "temperature": 0.8, "top_p": 0.9}, {}):
            engine, preparer = open_tiny(tiny, device="mps", dtype="float16", **settings)
            tokens_of(engine, mixed_requests(preparer))
        assert len(gpu.operations) > 20
        asked = {name for name in gpu.operations if name.startswith("aten::")}
        assert asked - there == set()
