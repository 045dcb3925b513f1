"""Memory that an engine takes, beside what it predicts."""

from __future__ import annotations

import contextlib
import dataclasses
import gc
import threading
from collections.abc import Iterator, Sequence

import psutil
import torch

from vlmbatch.bench.subject import used_bytes
from vlmbatch.core import Completion
from vlmbatch.engine import Engine
from vlmbatch.engine.torch.budget import gib
from vlmbatch.engine.torch.device import empty_cache
from vlmbatch.selftest.checks import Check

SAMPLE_SECONDS = 0.01
SLACK_BYTES = {"cpu": 192 << 20}
"""Memory that a prediction leaves out, by kind of device: on a CPU, libraries that are loaded on
first use, threads and what the allocator keeps.
"""
OTHER_SLACK_BYTES = 64 << 20
SLACK_SHARE = 1.25
"""The most memory that is taken for as predicted, over the prediction."""


@dataclasses.dataclass
class MemoryUse:
    """Bytes that an engine took and that it predicted.

    Attributes:
        seen: Peak since before it was opened; None where it cannot be seen.
        predicted: Weights, activations and cache of the largest batch; None without a prediction.
        limit: The most that it may take; None without a limit.
    """

    seen: int | None = None
    predicted: int | None = None
    limit: int | None = None


class MemoryWatch:
    """Peak memory of a device while an engine is open."""

    def __init__(self, device: str) -> None:
        """Watch a torch device; for a CPU, the memory of this process and of the engine's own."""
        self._device = torch.device(device)
        self._engine: Engine | None = None
        self._before = self._highest = 0
        self._ended = threading.Event()

    def follow(self, engine: Engine) -> None:
        """Count the processes of an engine, too."""
        self._engine = engine

    @property
    def taken(self) -> int:
        """Peak bytes since the watch began."""
        return max(0, self._highest - self._before)

    @contextlib.contextmanager
    def watching(self) -> Iterator[None]:
        """Watch until the block ends, or until ``stop``."""
        gc.collect()
        empty_cache(self._device)
        if self._device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self._device)
        self._before = self._highest = self._used()
        watcher = threading.Thread(target=self._watch, name="memory", daemon=True)
        watcher.start()
        try:
            yield
        finally:
            self.stop()
            watcher.join()

    def stop(self) -> None:
        """Look for the last time, before the engine is closed."""
        if not self._ended.is_set():
            self._ended.set()
            self._highest = max(self._highest, self._used())

    def _watch(self) -> None:
        while not self._ended.wait(SAMPLE_SECONDS):
            self._highest = max(self._highest, self._used())

    def _used(self) -> int:
        if self._device.type == "cuda":
            return torch.cuda.max_memory_allocated(self._device)
        found = used_bytes(self._device)
        pids: list[int] = getattr(self._engine, "pids", [])
        for pid in pids:
            with contextlib.suppress(psutil.Error):
                found += int(psutil.Process(pid).memory_info().rss)
        return found


def memory_use(engine: Engine, answers: Sequence[Completion], seen: int | None) -> MemoryUse:
    """Return the memory that an engine took, beside its own prediction for these answers."""
    figures = engine.stats.memory
    if engine.stats.peak_device_bytes is not None:
        seen = max(seen or 0, engine.stats.peak_device_bytes)
    limit = figures.get("limit_bytes", figures.get("limit"))
    if "weight_bytes" not in figures:
        return MemoryUse(seen, None, limit)
    if engine.name == "torch" and engine.device.startswith("cuda"):
        # There the storage of keys and values is taken whole, whatever is asked.
        fixed = figures["weight_bytes"] + figures["cache_bytes"] + figures["graph_bytes"]
        return MemoryUse(seen, fixed + engine.stats.max_tiles * figures["tile_bytes"], limit)
    longest = max(((one.prompt_tokens or 0) + (one.new_tokens or 0) for one in answers), default=0)
    predicted = (
        figures["weight_bytes"]
        + engine.stats.max_tiles * figures.get("tile_bytes", 0)
        + engine.stats.max_sequences * longest * figures.get("kv_bytes_per_token", 0)
    )
    return MemoryUse(seen, predicted, limit)


def check_memory(use: MemoryUse, device: str) -> Check:
    """Compare memory with its prediction and its limit."""
    name = "memory"
    if use.seen is None:
        return Check(name, "skip", "that of another process or server is not seen here")
    slack = SLACK_BYTES.get(device.partition(":")[0], OTHER_SLACK_BYTES)
    text = f"{gib(use.seen)} taken"
    if use.predicted is not None:
        text += f", {gib(use.predicted)} predicted"
    if use.limit is not None:
        text += f", {gib(use.limit)} allowed"
    advice = "give a smaller --memory-fraction or --max-memory, and send the report of --json"
    if use.limit is not None and use.seen > use.limit + slack:
        return Check(name, "fail", text, advice)
    if use.predicted is not None and use.seen > SLACK_SHARE * use.predicted + slack:
        return Check(name, "fail", text, advice)
    if use.predicted is None and use.limit is None:
        return Check(name, "skip", f"{text}; this engine predicts none")
    return Check(name, "pass", text)
