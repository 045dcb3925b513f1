"""Recover from out-of-memory errors: free the caches, halve the failed step, go on with the same
requests, keep the limit. Return free memory when fragmentation or memory pressure warrants it:
checking is cheap and cleaning is not.
"""

from __future__ import annotations

import gc
import logging
import time

import psutil
import torch

from vlmbatch.engine.base import EngineStats
from vlmbatch.engine.torch import device as devices
from vlmbatch.engine.torch.cache import Cache
from vlmbatch.engine.torch.scheduler import Scheduler, Work

logger = logging.getLogger(__name__)

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


class Recovery:
    """Lowers the scheduler's limits after an out-of-memory error.

    Attributes:
        holding: Whether new work waits until the live sequences have finished and freed their
            memory.
    """

    def __init__(
        self, scheduler: Scheduler, cache: Cache, stats: EngineStats, cleaner: Cleaner
    ) -> None:
        self.scheduler, self.cache, self.stats = scheduler, cache, stats
        self._cleaner = cleaner
        self.holding = False

    def released(self) -> None:
        """Allow new work again: no sequence is alive."""
        self.holding = False

    def handle(self, phase: str, size: int, works: list[Work], message: str) -> list[Work]:
        """Make the next try smaller.

        Args:
            phase: ``vision``, ``prefill`` or ``decode``.
            size: Tiles, or sequences, of the failed try.
            works: The requests of that try; none for a decode step.
            message: The allocator's message.

        Returns:
            Requests that failed with nothing else in memory: there is no smaller try.
        """
        self._cleaner.clean()
        action, hopeless = self._shrink(phase, size, works)
        self.stats.oom_events.append(
            {"phase": phase, "size": size, "action": action, "message": message[:200]}
        )
        logger.warning("out of memory in %s with %d; %s", phase, size, action)
        return hopeless

    def _shrink(self, phase: str, size: int, works: list[Work]) -> tuple[str, list[Work]]:
        scheduler = self.scheduler
        if self.cache.drop_kept():
            return "prefixes kept for later requests are dropped", []
        if phase == "vision" and size > 1:
            scheduler.max_tiles = max(1, size // 2)
            return f"at most {scheduler.max_tiles} tiles in an encoder call from now on", []
        if phase == "prefill" and size > 1:
            longest = max(work.payload.prompt_tokens for work in works)
            scheduler.max_prefill_tokens = max(longest, scheduler.max_prefill_tokens // 2)
            scheduler.max_sequences = max(1, len(scheduler.live) + size // 2)
            return f"at most {scheduler.max_sequences} sequences from now on", []
        if phase == "decode" and size > 1:
            keep = size // 2
            scheduler.max_sequences = keep
            victims = scheduler.live[keep:]
            for sequence in victims:
                self.cache.give_back(sequence.slot)
            scheduler.preempt(victims)
            self.cache.pool.release_empty()
            return f"at most {keep} sequences from now on; {len(victims)} wait for a place", []
        if phase == "decode":
            victims = list(scheduler.live)
            for sequence in victims:
                self.cache.give_back(sequence.slot)
            scheduler.preempt(victims)
            return "its request is given up", [sequence.work for sequence in victims]
        if scheduler.live:
            self.holding = True
            return f"waits until the {len(scheduler.live)} sequences alive are done", []
        return "its request is given up", works[:1]
