"""The engine's busy time: laps that are booked to phases and to requests."""

from __future__ import annotations

import time
from collections.abc import Sequence

from vlmbatch.engine.base import EngineStats
from vlmbatch.engine.torch.scheduler import Work


class BusyClock:
    """Book wall time as busy and to a phase; time in which the caller works is left out."""

    def __init__(self, stats: EngineStats) -> None:
        self._stats = stats
        self._mark = time.perf_counter()

    def restart(self) -> None:
        """Begin a lap now."""
        self._mark = time.perf_counter()

    def skip(self, seconds: float) -> None:
        """Leave so much out of the current lap."""
        self._mark += seconds

    def lap(self, phase: str, works: Sequence[Work] = ()) -> float:
        """Seconds since the last lap, booked to a phase, and spread over requests when it failed.

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
