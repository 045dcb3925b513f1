"""Measures the peak memory of a computation, on any device."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

Result = TypeVar("Result")


class _StorageMeter(TorchDispatchMode):
    """Adds up the storages that operations make and that are still alive. A CPU's allocator keeps
    no such count itself.
    """

    def __init__(self) -> None:
        super().__init__()
        self.live = 0
        self.peak = 0
        self._known: set[int] = set()

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """Nothing is compiled here, and keeping the compiler off would first load it: a third of
        the start.
        """
        return False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for leaf in tree_leaves((args, kwargs)):
            if (
                isinstance(leaf, torch.Tensor) and leaf.layout is torch.strided
            ):  # oneDNN's packed weights have no storage to ask for
                self._known.add(
                    leaf.untyped_storage()._cdata
                )  # what came from outside is not counted
        for leaf in tree_leaves(result):
            if isinstance(leaf, torch.Tensor):
                self._count(leaf.untyped_storage())
        return result

    def _count(self, storage: torch.UntypedStorage) -> None:
        key, size = storage._cdata, storage.nbytes()
        if key in self._known:
            return
        self._known.add(key)
        self.live += size
        self.peak = max(self.peak, self.live)
        weakref.finalize(storage, self._forget, key, size)

    def _forget(self, key: int, size: int) -> None:
        self._known.discard(key)
        self.live -= size


def measure_peak(call: Callable[[], Result], device: torch.device) -> tuple[Result, int]:
    """Runs a computation and gives its result and the bytes that it held at its peak.

    Args:
        call: The computation.
        device: Where it computes. CUDA's allocator counts itself; elsewhere the tensors that are
            made are added up.
    """
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        result = call()
        torch.cuda.synchronize(device)
        return result, max(1, torch.cuda.max_memory_allocated(device) - before)
    with _StorageMeter() as meter:
        result = call()
    return result, max(1, meter.peak)
