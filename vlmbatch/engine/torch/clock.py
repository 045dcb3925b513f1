"""The engine's busy time, split by phase and request."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch

from vlmbatch.engine.base import EngineStats
from vlmbatch.engine.torch.scheduler import Work


@dataclasses.dataclass(frozen=True)
class _Open:
    """A phase that the device may still be computing: its events, and who wants to know."""

    phase: str
    begin: Any
    end: Any
    book: Callable[[float], None]


class BusyClock:
    """Measures busy wall time by phase, without the time in which the caller works.

    On CUDA a phase that the host does not wait for is measured by events on the device, and booked
    when the host waits next.
    """

    def __init__(self, stats: EngineStats, device: torch.device | None = None) -> None:
        """Count into statistics; by events on a CUDA device, by default without."""
        self._stats = stats
        self._mark = time.perf_counter()
        self._has_events = device is not None and device.type == "cuda"
        self._open: list[_Open] = []

    def restart(self) -> None:
        """Start a lap now."""
        self._mark = time.perf_counter()

    def skip(self, seconds: float) -> None:
        """Exclude these seconds from the current lap."""
        self._mark += seconds

    def begin(self) -> Any:
        """Mark the beginning of a phase for ``end``."""
        return self._event() if self._has_events else None

    def end(self, phase: str, begin: Any, book: Callable[[float], None]) -> None:
        """End a phase; what the device has not done yet is measured and booked at the next lap.

        Args:
            phase: See ``lap``.
            begin: What ``begin`` returned.
            book: Called with its seconds.
        """
        if self._has_events:
            self._open.append(_Open(phase, begin, self._event(), book))
        else:
            book(self.lap(phase))

    def lap(self, phase: str, works: Sequence[Work] = ()) -> float:
        """Return the seconds since the last lap and add them to a phase. A failed phase is shared
        out over its requests.

        Args:
            phase: ``vision``, ``prefill`` or ``decode``.
            works: The requests of a phase that failed.
        """
        now = time.perf_counter()
        seconds, self._mark = now - self._mark, now
        open_phases, self._open = self._open, []
        for each in open_phases:
            part = min(seconds, _elapsed(each))
            seconds -= part
            self._add(each.phase, part)
            each.book(part)
        self._add(phase, seconds)
        for work in works:
            work.shared_seconds += seconds / len(works)
        return seconds

    def _add(self, phase: str, seconds: float) -> None:
        stats, name = self._stats, f"{phase}_seconds"
        stats.busy_seconds += seconds
        setattr(stats, name, getattr(stats, name) + seconds)

    def _event(self) -> Any:
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event


def _elapsed(phase: _Open) -> float:
    """Seconds between a phase's events; 0 on a device that has failed."""
    try:
        phase.end.synchronize()
        return float(phase.begin.elapsed_time(phase.end)) / 1000
    except RuntimeError:
        return 0.0
