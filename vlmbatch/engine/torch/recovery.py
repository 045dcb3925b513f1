"""Recover from out-of-memory errors: free the caches, halve the failed step, go on with the same
requests, keep the limit.
"""

from __future__ import annotations

import logging

from vlmbatch.engine.base import EngineStats
from vlmbatch.engine.torch.cache import Cache
from vlmbatch.engine.torch.cleanup import Cleaner
from vlmbatch.engine.torch.scheduler import Scheduler, Work

logger = logging.getLogger(__name__)


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
