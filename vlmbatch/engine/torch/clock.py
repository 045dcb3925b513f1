"""The engine's busy time, split by phase and request."""

from __future__ import annotations

import time
from collections.abc import Sequence

from vlmbatch.engine.base import EngineStats
from vlmbatch.engine.torch.scheduler import Work


class BusyClock:
    """Measures busy wall time by phase, without the time in which the caller works."""

    def __init__(self, stats: EngineStats) -> None:
        self._stats = stats
        self._mark = time.perf_counter()

    def restart(self) -> None:
        """Start a lap now."""
        self._mark = time.perf_counter()

    def skip(self, seconds: float) -> None:
        """Exclude these seconds from the current lap."""
        self._mark += seconds

    def lap(self, phase: str, works: Sequence[Work] = ()) -> float:
        """Return the seconds since the last lap and add them to a phase. A failed phase is shared
        out over its requests.

        Args:
            phase: ``vision``, ``prefill`` or ``decode``.
            works: The requests of a phase that failed.
        """
        now = time.perf_counter()
        seconds, self._mark = now - self._mark, now
        stats, name = self._stats, f"{phase}_seconds"
        stats.busy_seconds += seconds
        setattr(stats, name, getattr(stats, name) + seconds)
        for work in works:
            work.shared_seconds += seconds / len(works)
        return seconds
