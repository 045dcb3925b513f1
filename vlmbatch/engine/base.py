"""The contract of an engine."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol

from vlmbatch.core import Completion, Conversation, Question, Request
from vlmbatch.engine.queue import RequestQueue


@dataclasses.dataclass
class EngineStats:
    """Counts and times of an engine since it was opened, for the summary. Figures that an engine
    cannot tell stay 0 or empty.

    Attributes:
        busy_seconds: Wall time of computing and scheduling, without waiting for requests.
        vision_seconds, prefill_seconds, decode_seconds: The phases of the busy time.
        tiles, prefill_tokens, decode_tokens: Tiles and tokens processed by the phases.
        tiles_reused: Tiles not encoded because an equal one had been.
        vision_calls, prefill_calls, decode_steps: Number of calls.
        native_steps: Decode steps done by a compiled library.
        max_sequences: Largest number of sequences alive at a time.
        max_tiles: Largest number of tiles in one encoder call.
        oom_events: One entry for each out-of-memory error: phase, size, action taken.
        cleanups: Number of times that free memory was returned to the device.
        cleanup_seconds: Wall time of the cleanups.
        memory: The memory budget, in bytes.
        kernels: For each kind of matrix the row counts from which on a packed kernel multiplies it;
            and the attention kernels other than torch's.
        kernel_choice: The state of the machine when these kernels were chosen: ``spread`` of the
            measurements, ``share`` of the processor that other programs left, and whether it was
            ``steady``.
        threads: Number of threads that compute on a CPU; 0 on another device.
        graphs: On CUDA: number of fixed-shape decode steps recorded and replayed, and notes on
            those that could not be. Empty elsewhere.
        fused: On CUDA: whether the operations between a layer's products are ``used`` compiled, the
            ``seconds`` that compiling took, and ``notes`` on why not. Empty elsewhere.
        resizing: On a GPU: whether it is ``used`` to resize pictures, and ``notes`` on why not.
            Empty elsewhere.
        peak_device_bytes: Peak allocated device memory, or None on a CPU.
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
    native_steps: int = 0
    max_sequences: int = 0
    max_tiles: int = 0
    oom_events: list[dict[str, Any]] = dataclasses.field(default_factory=list)
    cleanups: int = 0
    cleanup_seconds: float = 0.0
    memory: dict[str, int] = dataclasses.field(default_factory=dict)
    kernels: dict[str, list[int]] = dataclasses.field(default_factory=dict)
    kernel_choice: dict[str, Any] = dataclasses.field(default_factory=dict)
    threads: int = 0
    graphs: dict[str, Any] = dataclasses.field(default_factory=dict)
    fused: dict[str, Any] = dataclasses.field(default_factory=dict)
    resizing: dict[str, Any] = dataclasses.field(default_factory=dict)
    peak_device_bytes: int | None = None


class Engine(Protocol):
    """Answer requests. One batcher serves a folder, a server's queue and a remote worker alike.

    An engine may also have ``cut(conversation) -> list[Conversation]``, which cuts a picture into
    conversations about its tiles, in reading order; without it there is no ``--per tile``. One that
    takes pictures only has an attribute ``takes_clips``, False; one that honours the constraint of
    a question has ``takes_constraints``, True, and the others refuse such a question in
    ``prepare``.

    Attributes:
        name: Name of the engine, as records state it.
        model: The model that answers: a hub id, a path, or ``demo``.
        revision: Its revision; empty where there is none.
        device: The device that computes; empty where that is not known.
        dtype: The dtype that it computes in; followed by ``+int8`` if the language model's matrices
            are 8-bit integers.
        stats: Counts and times so far.
    """

    name: str
    model: str
    revision: str
    device: str
    dtype: str
    stats: EngineStats

    def prepare(self, conversation: Conversation, questions: Sequence[Question]) -> Request:
        """Turn pixels and text into a request, on the CPU; thread-safe.

        Raises:
            PrepareError: They do not make a valid request.
        """
        ...

    def run(self, source: RequestQueue) -> Iterator[Completion]:
        """Take requests while there is capacity for them and yield each answer as it finishes,
        until the queue is closed and empty, or stopped.

        There is exactly one completion for each question, a cancelled one included; none is owed
        after a stop or an EngineError. A bad question ends that question alone.

        Raises:
            EngineError: The engine cannot go on.
        """
        ...

    def close(self) -> None:
        """Free its memory. The engine cannot be used afterwards."""
        ...


@dataclasses.dataclass(frozen=True)
class EnginePlan:
    """An engine that can be opened: its properties before the model is loaded.

    Attributes:
        name, model, revision: See ``Engine``; part of OUTPUT's identity.
        open: Load the model. Raises ModelLoadError (the checkpoint is broken or of another kind),
            DeviceError (the device or dtype is not available) or OutOfMemoryError (the model does
            not fit; nothing was loaded).
        open_reusing: Load the model so that requests continue what earlier ones left in memory;
            None if the engine keeps nothing between requests.
        can_cut: Whether the engine has ``cut``.
        takes_clips: Whether the model takes clips beside pictures.
        takes_constraints: Whether the engine honours the constraint of a question.
        open_again: Load the model to continue an OUTPUT that has rows: as ``open``, but what was
            chosen for them by measuring is not measured again.
    """

    name: str
    model: str
    revision: str
    open: Callable[[], Engine]
    open_reusing: Callable[[], Engine] | None = None
    can_cut: bool = False
    takes_clips: bool = True
    takes_constraints: bool = False
    open_again: Callable[[], Engine] | None = None

    def open_for(self, *, continued: bool) -> Engine:
        """Load the model, to continue an OUTPUT that has rows, or to begin one."""
        return self.open_again() if continued and self.open_again else self.open()

    @classmethod
    def of(cls, engine: Engine) -> EnginePlan:
        """Return the plan of an engine that is open."""
        return cls(
            engine.name,
            engine.model,
            engine.revision,
            lambda: engine,
            can_cut=hasattr(engine, "cut"),
            takes_clips=getattr(engine, "takes_clips", True),
            takes_constraints=getattr(engine, "takes_constraints", False),
        )
