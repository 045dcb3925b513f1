"""Time kernels in turns, and tell how steady the machine was meanwhile."""

from __future__ import annotations

import dataclasses
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

import psutil

MIN_ROUNDS = 3
"""Minimum number of runs of each kernel."""
MIN_SECONDS = 0.01
"""Minimum time of a measurement: kernels of microseconds must not be judged in one busy moment of
the machine.
"""
MAX_SPREAD = 1.25
"""Largest spread of a steady machine. Alone, 1.01 was measured; with eight programs beside it 1.02
to 1.08, as all rounds were slow: of those the share tells.
"""
MIN_SHARE = 0.85
"""Smallest share of the processor on a steady machine."""
GLANCE_SECONDS = 0.2
"""Seconds that tell how busy a machine is; processors count in hundredths of a second."""

Fastest = Callable[[Sequence[Callable[[], object]]], list[float]]
"""Return the minimum seconds of each call."""


@dataclasses.dataclass(frozen=True)
class Steadiness:
    """The state of the machine during measurements.

    Attributes:
        spread: Median round over the fastest round of the same call, the median of all calls: 1 if
            all rounds took as long.
        share: Share of the processor time that our threads can use which other programs left.
    """

    spread: float
    share: float

    @property
    def is_steady(self) -> bool:
        """True if measurements can be relied on."""
        return self.spread <= MAX_SPREAD and self.share >= MIN_SHARE

    def describe(self) -> dict[str, Any]:
        """Return the figures for the summary."""
        return {
            "spread": round(self.spread, 3),
            "share": round(self.share, 3),
            "steady": self.is_steady,
        }


class Stopwatch:
    """Times calls; made when the measurements begin."""

    def __init__(self, threads: int) -> None:
        """``threads`` is the number of threads that the calls use."""
        self._threads = threads
        self._begun = _Moment.now()
        self._spreads: list[float] = []

    def fastest(self, calls: Sequence[Callable[[], object]]) -> list[float]:
        """Minimum seconds of each call; the calls take turns, so that a busy machine slows all."""
        for call in calls:  # warm-up
            call()
        rounds: list[list[float]] = [[] for _ in calls]
        ends = time.perf_counter() + MIN_SECONDS * len(calls)
        while len(rounds[0]) < MIN_ROUNDS or time.perf_counter() < ends:
            for call, seconds in zip(calls, rounds, strict=True):
                begun = time.perf_counter()
                call()
                seconds.append(time.perf_counter() - begun)
        self._spreads += [statistics.median(seconds) / min(seconds) for seconds in rounds]
        return [min(seconds) for seconds in rounds]

    def is_machine_quiet(self) -> bool:
        """Look at the machine for a moment: True if other programs leave enough to measure."""
        begun = _Moment.now()
        time.sleep(GLANCE_SECONDS)
        return _Moment.now().share_since(begun, self._threads) >= MIN_SHARE

    def steadiness(self) -> Steadiness:
        """Return the state of the machine since the stopwatch was made."""
        spread = statistics.median(self._spreads) if self._spreads else 1.0
        return Steadiness(spread, _Moment.now().share_since(self._begun, self._threads))


@dataclasses.dataclass(frozen=True)
class _Moment:
    """Seconds by the clock, and of the processor: of all programs and of this process."""

    wall: float
    all: float
    own: float

    @classmethod
    def now(cls) -> _Moment:
        times = psutil.cpu_times()
        # Linux counts waiting for the disk apart, and time stolen by other virtual machines too.
        idle = times.idle + getattr(times, "iowait", 0.0)
        guest = getattr(times, "guest", 0.0) + getattr(times, "guest_nice", 0.0)  # in user and nice
        return cls(time.perf_counter(), sum(times) - idle - guest, time.process_time())

    def share_since(self, begun: _Moment, threads: int) -> float:
        """Return the share of the time of ``threads`` cores that other programs left."""
        wall = self.wall - begun.wall
        if wall <= 0:
            return 1.0
        others = max(0.0, (self.all - begun.all) - (self.own - begun.own)) / wall
        return max(0.0, min(1.0, ((psutil.cpu_count() or threads) - others) / threads))
