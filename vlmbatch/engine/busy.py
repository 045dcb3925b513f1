"""Busy time of an engine that waits for another program, shared among its questions."""

from __future__ import annotations

import threading
import time

from vlmbatch.engine.base import EngineStats


class BusyShares:
    """Wall time in which any question is worked on, in equal shares for those of the moment."""

    def __init__(self, stats: EngineStats) -> None:
        """Count into ``stats.busy_seconds``."""
        self._stats, self._lock = stats, threading.Lock()
        self._shares: dict[object, float] = {}
        self._since = 0.0

    def begin(self, key: object) -> None:
        """Count a question in."""
        with self._lock:
            self._settle()
            self._shares[key] = 0.0
            self._stats.max_sequences = max(self._stats.max_sequences, len(self._shares))

    def end(self, key: object) -> float:
        """Count a question out, and return its share in seconds."""
        with self._lock:
            self._settle()
            return self._shares.pop(key)

    def _settle(self) -> None:
        now = time.perf_counter()
        if self._shares:
            self._stats.busy_seconds += now - self._since
            for key in self._shares:
                self._shares[key] += (now - self._since) / len(self._shares)
        self._since = now
