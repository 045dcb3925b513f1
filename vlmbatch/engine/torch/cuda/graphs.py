"""CUDA graphs of decode steps."""

from __future__ import annotations

import contextlib
import functools

import torch
from torch import Tensor

from vlmbatch.engine.torch.cuda.recorded import Compute

WARM_UP_ROUNDS = 2
SINCE = (2, 13)
"""The first torch that ends a failed capture: earlier ones may refuse every later one."""


def is_older_torch() -> bool:
    """True if torch is older than the version that is needed, and was tested."""
    major, minor = str(torch.__version__).split(".")[:2]
    return (int(major), int(minor)) < SINCE


def why_no_graphs() -> str:
    """Return the reason why this version of torch records no steps; empty if it does."""
    if not is_older_torch():
        return ""
    return (
        f"torch {torch.__version__} may not survive a recording that fails: decode steps are done "
        "one operation at a time"
    )


class CudaGraphs:
    """Records steps as CUDA graphs that share memory: a result is used before the next replay.

    Attributes:
        held_bytes: Device memory of the graphs' pool, which no other computation may use.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._stream = torch.cuda.Stream(device)
        self.clear()

    def clear(self) -> None:
        """Begin with another pool; the memory of this one goes with the last of its graphs."""
        self._pool = torch.cuda.graph_pool_handle()
        self.held_bytes = 0

    def __call__(self, compute: Compute) -> Compute:
        """See ``Recorder``. An error leaves no trace: neither the stream of the capture nor the
        pool that it filled stays in use.
        """
        current = torch.cuda.current_stream(self._device)
        graph = torch.cuda.CUDAGraph()
        is_recorded = False
        try:
            self._stream.wait_stream(current)
            with torch.cuda.stream(self._stream):
                for _ in range(WARM_UP_ROUNDS):  # kernels are chosen before recording
                    compute()
            current.wait_stream(self._stream)
            torch.cuda.empty_cache()  # as the capture does: what it reserves is what is added
            before = torch.cuda.memory_reserved(self._device)
            with torch.cuda.graph(
                graph, pool=self._pool, stream=self._stream, capture_error_mode="thread_local"
            ):
                found = compute()
            self.held_bytes += max(0, torch.cuda.memory_reserved(self._device) - before)
            is_recorded = True
        finally:
            # torch's own contexts reset the stream only where nothing is raised.
            torch.cuda.set_stream(current)
            if not is_recorded:
                with contextlib.suppress(RuntimeError):
                    graph.reset()
        return functools.partial(_replay, graph, found)


def _replay(graph: torch.cuda.CUDAGraph, found: Tensor) -> Tensor:
    graph.replay()
    return found
