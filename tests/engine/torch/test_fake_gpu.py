"""The engine on a GPU that is not there: the same tokens, and nothing that a GPU would refuse."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
import torch

from tests.engine.reference import run_all
from tests.engine.torch.fake_device import FakeDevice
from tests.engine.torch.test_parity import mixed_requests, open_tiny


def test_answers_are_those_of_the_cpu(
    tiny: Path, plain: dict[tuple[int, int], Sequence[int]]
) -> None:
    with FakeDevice() as gpu:
        engine, preparer = open_tiny(tiny, device="cuda")
        found = run_all(engine, mixed_requests(preparer))
    assert {key: done.token_ids for key, done in found.items()} == plain
    assert engine.stats.graphs["notes"] == []
    assert engine.stats.graphs["replayed"] > 0
    assert gpu.counts.replays == engine.stats.graphs["replayed"] + engine.stats.graphs["recorded"]


def test_tensors_of_both_sides_do_not_mix() -> None:
    with FakeDevice() as gpu:
        x = gpu.put(torch.ones(2, 2))
        with pytest.raises(RuntimeError, match="on the same device"):
            x + torch.ones(2, 2)
        assert gpu.get(x * torch.tensor(3.0)).tolist() == [[3, 3], [3, 3]]
