"""Return free memory when fragmentation or memory pressure warrants it. Checking is cheap and
cleaning is not.
"""

from __future__ import annotations

import gc
import time

import psutil
import torch

from vlmbatch.engine.base import EngineStats
from vlmbatch.engine.torch import device as devices
from vlmbatch.engine.torch.cache import Cache

LOOK_EVERY_STEPS = 64
LOW_MEMORY_SHARE = 0.1
HELD_SHARE = 0.2
GROWTH_BYTES = 1 << 29


class Cleaner:
    """Checks memory every few steps and cleans up on one of two conditions.

    On a GPU: less than a tenth of its memory is free while the allocator holds an unused fifth
    (fragmentation). On a CPU: the process has grown by more than half a gibibyte beyond its caches
    since the last time; the C library's allocator keeps freed blocks until asked to return them.
    """

    def __init__(self, cache: Cache, stats: EngineStats) -> None:
        """Watch the memory of a cache's device and record the cost of cleaning."""
        self._cache, self._stats = cache, stats
        self._process = psutil.Process()
        self._steps = 0
        self._settled = 0

    def step(self) -> None:
        """Count a step of the engine; check and clean when it is time."""
        self._steps += 1
        if self._steps % LOOK_EVERY_STEPS == 0 and self.is_warranted():
            self.clean()

    def is_warranted(self) -> bool:
        """True if cleaning would free much memory."""
        device = self._cache.device
        if device.type == "cuda":
            memory = devices.device_memory(device)
            held = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
            return (
                memory.free < LOW_MEMORY_SHARE * memory.total and held > HELD_SHARE * memory.total
            )
        resident = self._process.memory_info().rss - self._cache.pool.touched_bytes
        self._settled = self._settled or resident
        return bool(resident > self._settled + GROWTH_BYTES)

    def clean(self) -> None:
        """Drop empty chunks of the cache, collect garbage and return free memory."""
        started = time.perf_counter()
        self._cache.pool.release_empty()
        gc.collect()
        devices.empty_cache(self._cache.device)
        self._settled = self._process.memory_info().rss - self._cache.pool.touched_bytes
        self._stats.cleanups += 1
        self._stats.cleanup_seconds += time.perf_counter() - started
