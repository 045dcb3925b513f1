"""The Engine contract: what every engine takes and gives, and the queue that feeds it."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Iterator, Sequence
from typing import Any, Protocol

from vlmbatch.core import Completion, Conversation, Request
from vlmbatch.engine.queue import Channel


@dataclasses.dataclass
class EngineStats:
    """What an engine did since it was made; the summary states it.

    Attributes:
        busy_seconds: Wall time in which it was computing or scheduling, not waiting for requests.
        vision_seconds, prefill_seconds, decode_seconds: The phases that make it up.
        tiles, prefill_tokens, decode_tokens: What the phases worked through.
        tiles_reused: Tiles that were not encoded, as an equal one had been.
        vision_calls, prefill_calls, decode_steps: How many calls that took.
        max_sequences: The most sequences that were alive at a time.
        max_tiles: The most tiles in one encoder call.
        oom_events: One entry for every time memory ran out: phase, size, what was done.
        cleanups: How often caches were given back to the device.
        cleanup_seconds: What that cost.
        memory: What the memory budget allowed, in bytes.
        kernels: For each kind of matrix the row counts from which on a packed kernel multiplies it;
            and what attends, unless torch does.
        graphs: On CUDA: how many decode steps of fixed shapes were recorded and replayed, and notes
            on those that could not be. Empty elsewhere.
        peak_device_bytes: The most device memory that was allocated, or None on a CPU.
    """

    busy_seconds: float = 0.0
    vision_seconds: float = 0.0
    prefill_seconds: float = 0.0
    decode_seconds: float = 0.0
    tiles: int = 0
    tiles_reused: int = 0
    prefill_tokens: int = 0
    decode_tokens: int = 0
    vision_calls: int = 0
    prefill_calls: int = 0
    decode_steps: int = 0
    max_sequences: int = 0
    max_tiles: int = 0
    oom_events: list[dict[str, Any]] = dataclasses.field(default_factory=list)
    cleanups: int = 0
    cleanup_seconds: float = 0.0
    memory: dict[str, int] = dataclasses.field(default_factory=dict)
    kernels: dict[str, list[int]] = dataclasses.field(default_factory=dict)
    graphs: dict[str, Any] = dataclasses.field(default_factory=dict)
    peak_device_bytes: int | None = None


class Engine(Protocol):
    """Answers requests. One batcher serves a folder, a server's queue and a remote worker alike.

    Attributes:
        name: What a record states as its engine.
        device: The device that really computes.
        dtype: The number format that it really computes in; ``+int8`` behind it where the language
            model's matrices are 8-bit numbers.
        stats: What it did so far.
    """

    name: str
    device: str
    dtype: str
    stats: EngineStats

    def prepare(self, conversation: Conversation, questions: Sequence[str]) -> Request:
        """Makes pixels and words into a request, on the CPU; thread-safe.

        Raises:
            PrepareError: They cannot be made into one.
        """
        ...

    def run(self, source: RequestQueue) -> Iterator[Completion]:
        """Takes requests while there is room for them and yields each answer as it finishes, until
        the queue is closed and empty, or stopped.

        Raises:
            EngineError: The engine cannot go on.
        """
        ...

    def close(self) -> None:
        """Gives back memory. The engine cannot be used afterwards."""
        ...


class RequestQueue(Channel[Request]):
    """What feeds an engine: bounded by number and by the bytes of the tiles that wait."""

    def __init__(self, capacity: int, most_bytes: int = 1 << 28) -> None:
        """Bounds the queue to ``capacity`` requests and ``most_bytes`` of tiles."""
        super().__init__(
            capacity, weight=lambda request: request.tiles.nbytes, most_weight=most_bytes
        )

    def put(self, request: Request) -> bool:
        """See ``Channel``; notes the time."""
        request.queued_at = time.perf_counter()
        return super().put(request)
