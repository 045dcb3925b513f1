"""Measure the peak memory of a computation on CUDA, whose allocator counts it."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import torch

Value = TypeVar("Value")


def measure_peak(call: Callable[[], Value], device: torch.device) -> tuple[Value, int]:
    """Run a computation on a CUDA device; return its result and its peak memory in bytes."""
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    result = call()
    torch.cuda.synchronize(device)
    return result, max(1, torch.cuda.max_memory_allocated(device) - before)
