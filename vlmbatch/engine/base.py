"""The contract of an engine: what each one states, takes and gives."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol

from vlmbatch.core import Completion, Conversation, Question, Request
from vlmbatch.engine.queue import RequestQueue


@dataclasses.dataclass
class EngineStats:
    """Counts and times of an engine since it was opened; the summary states them. A figure that an
    engine cannot tell stays 0 or empty.

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
    """Answer requests. One batcher serves a folder, a server's queue and a remote worker alike.

    An engine may also have ``cut(conversation) -> list[Conversation]``, which cuts a picture into
    conversations about its tiles, in reading order; without it there is no ``--per tile``.

    Attributes:
        name: Name of the engine, as records state it.
        model: The model that answers: a hub id, a path, or ``demo``.
        revision: Its revision; empty where there is none.
        device: The device that computes; empty where that is not known.
        dtype: The number format that it computes in; ``+int8`` behind it where the matrices of the
            language model are 8-bit integers.
        stats: What it did so far.
    """

    name: str
    model: str
    revision: str
    device: str
    dtype: str
    stats: EngineStats

    def prepare(self, conversation: Conversation, questions: Sequence[Question]) -> Request:
        """Make pixels and words into a request, on the CPU; thread-safe.

        Raises:
            PrepareError: They cannot be made into one.
        """
        ...

    def run(self, source: RequestQueue) -> Iterator[Completion]:
        """Take requests while there is room for them and yield each answer as it finishes, until
        the queue is closed and empty, or stopped.

        There is exactly one completion for each question, a cancelled one included; none is owed
        after a stop or an EngineError. What one question does wrong ends that question alone.

        Raises:
            EngineError: The engine cannot go on.
        """
        ...

    def close(self) -> None:
        """Give back memory. The engine cannot be used afterwards."""
        ...


@dataclasses.dataclass(frozen=True)
class EnginePlan:
    """An engine that could be opened: what is known of it before its model is loaded.

    Attributes:
        name, model, revision: See ``Engine``; OUTPUT's identity holds them.
        open: Load the model.

            Raises:
                ModelLoadError: The checkpoint is broken or of another kind.
                DeviceError: The device or dtype is not there.
                OutOfMemoryError: The model does not fit; nothing was loaded.
        can_cut: Whether the engine has ``cut``.
    """

    name: str
    model: str
    revision: str
    open: Callable[[], Engine]
    can_cut: bool = False
