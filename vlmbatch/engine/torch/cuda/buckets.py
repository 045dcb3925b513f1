"""Decode steps of fixed shapes: batches padded to a bucket, slots attended in their whole capacity.
A GPU replays such a step as one CUDA graph, without host work in between.

The computation is plain torch, the same on every device; only ``CudaGraphs`` records it. Each
combination of arenas and buckets is a step of its own, recorded once it has occurred a few times.
Its first replay is compared with the ordinary step: a step that differs is rejected, and an error
while recording turns recording off. The ordinary step then takes over, and the summary says so.
"""

from __future__ import annotations

import collections
import functools
import logging
import weakref
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from vlmbatch.engine.base import EngineStats
from vlmbatch.engine.torch.cache import Arena, Cache, DecodeAttention, wide_mask
from vlmbatch.engine.torch.weights import Model

logger = logging.getLogger(__name__)

Compute = Callable[[], Tensor]
Recorder = Callable[[Compute], Compute]
"""Takes a computation on fixed buffers and returns a faster equivalent; each result is overwritten
by the next.
"""

TOLERANCE = {torch.float32: 1e-3, torch.float16: 1e-2, torch.bfloat16: 5e-2}
"""Tolerance of a recorded step's logits, relative to the largest logit of the ordinary step."""
RECORD_AFTER = 4
"""Number of times that a combination must occur before it is recorded."""
MAX_STEPS = 64
"""Maximum number of recorded steps; each takes some megabytes on the device."""
WARM_UP_ROUNDS = 2


def bucket_of(rows: int, most: int) -> int:
    """Round up to a power of two, but at most ``most``."""
    return min(1 << (rows - 1).bit_length(), most)


class BucketAttention(DecodeAttention):
    """Attention of one new token for every row of a bucket, over slots in their whole capacity.

    Padding rows are unused slots: live ones are at the front of their arena. A padding row writes
    to the first position of its own slot.
    """

    def __init__(self, parts: Sequence[tuple[Arena, int]], positions: Tensor) -> None:
        """Take arenas with their buckets, and the position of each row's new token, int64 (rows,),
        0 for padding.
        """
        self.attend_rows = F.scaled_dot_product_attention
        self.groups, self.slots = [], []
        begin = 0
        for arena, bucket in parts:
            ends = positions[begin : begin + bucket]
            mask = wide_mask(arena.shape, ends, arena.capacity, arena.dtype)
            self.groups.append(
                (
                    arena,
                    bucket,
                    torch.arange(bucket, device=ends.device),
                    ends,
                    arena.capacity,
                    mask,
                )
            )
            begin += bucket


class Step:
    """A decode step for one combination of arenas and buckets, on its own buffers.

    Attributes:
        inputs: int64 (2, rows) on the device: the last token and the length of each row, arena by
            arena; 0 for padding.
    """

    def __init__(self, model: Model, parts: Sequence[tuple[Arena, int]]) -> None:
        self.buckets = [bucket for _, bucket in parts]
        rows = sum(self.buckets)
        self.inputs = torch.zeros((2, rows), dtype=torch.int64, device=model.device)
        self._staging = torch.zeros(
            (2, rows), dtype=torch.int64, pin_memory=model.device.type == "cuda"
        )
        # Weak references: a step may outlive its arenas and must not keep their memory.
        self._arenas = [weakref.ref(arena) for arena, _ in parts]
        self._language = model.language
        self.replay: Compute = self.compute

    def compute(self) -> Tensor:
        """Compute float32 logits (rows, vocabulary), padding included."""
        tokens, positions = self.inputs.unbind()
        parts = [
            (arena(), bucket) for arena, bucket in zip(self._arenas, self.buckets, strict=True)
        ]
        attend = BucketAttention(
            [(arena, bucket) for arena, bucket in parts if arena is not None], positions
        )
        return self._language.logits(
            self._language(self._language.embed(tokens), positions, attend)
        )

    def logits(self, arenas: Sequence[Arena], tokens: Sequence[int]) -> Tensor:
        """Return float32 logits (live rows, vocabulary); overwritten by the next step."""
        places = self.load(arenas, tokens)
        logits = self.replay()
        if len(arenas) == 1:  # live rows are at the front
            return logits[: len(places)]
        return logits[torch.tensor(places, device=logits.device)]

    def load(self, arenas: Sequence[Arena], tokens: Sequence[int]) -> list[int]:
        """Fill the buffers with the last tokens of the live rows, given arena by arena. Return the
        indices of these rows.
        """
        self._staging.zero_()
        places: list[int] = []
        begin = 0
        for arena, bucket in zip(arenas, self.buckets, strict=True):
            places += range(begin, begin + len(arena.slots))
            begin += bucket
        lengths = [slot.length for arena in arenas for slot in arena.slots]
        self._staging[:, places] = torch.tensor([tokens, lengths])
        self.inputs.copy_(self._staging, non_blocking=True)
        return places


class BucketDecoder:
    """Decode with recorded steps of fixed shapes, where there are any."""

    def __init__(
        self,
        model: Model,
        cache: Cache,
        stats: EngineStats,
        recorder: Recorder,
        *,
        record_after: int = RECORD_AFTER,
    ) -> None:
        """Set up without recorded steps.

        Args:
            model: The model.
            cache: The KV cache.
            stats: Its ``graphs`` is updated.
            recorder: ``CudaGraphs``, or ``no_recording``.
            record_after: Number of times that a combination must occur before it is recorded.
        """
        self._model, self._cache, self._stats, self._record, self._record_after = (
            model,
            cache,
            stats,
            recorder,
            record_after,
        )
        self._steps: dict[tuple[tuple[int, int], ...], Step] = {}
        self._counts: collections.Counter[tuple[tuple[int, int], ...]] = collections.Counter()
        self._rejected: set[tuple[int, ...]] = set()
        self.failed = False
        stats.graphs = {"recorded": 0, "replayed": 0, "notes": []}

    def logits(self, tokens: Sequence[int], ordinary: Compute) -> Tensor:
        """Compute float32 logits (live rows, vocabulary).

        Args:
            tokens: The last token of every live row, arena by arena in the cache's order.
            ordinary: The same step without fixed shapes. It is called at most once, and adds no
                token to a slot's length.
        """
        arenas = [arena for arena in self._cache.arenas.values() if arena.slots]
        buckets = [bucket_of(len(arena.slots), arena.allocated) for arena in arenas]
        key = tuple((arena.serial, bucket) for arena, bucket in zip(arenas, buckets, strict=True))
        step = self._steps.get(key)
        if step is not None:
            self._stats.graphs["replayed"] += 1
            return step.logits(arenas, tokens)
        logits = ordinary()
        if self._is_worth_recording(key, arenas, buckets):
            self._try_to_record(key, arenas, buckets, tokens, logits)
        return logits

    def _is_worth_recording(
        self, key: tuple[tuple[int, int], ...], arenas: Sequence[Arena], buckets: Sequence[int]
    ) -> bool:
        if self.failed or self._shape(arenas, buckets) in self._rejected:
            return False
        self._counts[key] += 1
        if self._counts[key] < self._record_after:
            return False
        self.forget_stale()
        return len(self._steps) < MAX_STEPS

    def _try_to_record(
        self,
        key: tuple[tuple[int, int], ...],
        arenas: Sequence[Arena],
        buckets: Sequence[int],
        tokens: Sequence[int],
        expected: Tensor,
    ) -> None:
        """Record a step and compare its first replay with the ordinary logits. It writes the same
        keys and values to the same positions.
        """
        try:
            step = Step(self._model, list(zip(arenas, buckets, strict=True)))
            step.load(arenas, tokens)
            step.replay = self._record(step.compute)
            replayed = step.logits(arenas, tokens)
            difference = float(
                (replayed - expected).abs().max() / expected.abs().max().clamp_min(1e-6)
            )
        except RuntimeError as error:
            message = " ".join(str(error).split())[:200]
            self.failed = True
            self._steps.clear()
            self._note(
                f"recording decode steps failed ({type(error).__name__}: {message}); they are "
                "done one operation at a time"
            )
            return
        if difference <= TOLERANCE[self._model.dtype]:  # False also for NaN
            self._steps[key] = step
            self._stats.graphs["recorded"] += 1
        else:
            self._rejected.add(self._shape(arenas, buckets))
            self._note(
                f"a recorded decode step of {sum(buckets)} rows gave other logits "
                f"({difference:.2g} of the largest); it is done one operation at a time"
            )

    def forget_stale(self) -> None:
        """Drop steps whose arenas have grown or are gone."""
        serials = {arena.serial for arena in self._cache.arenas.values()}
        for known in (self._steps, self._counts):
            for key in [key for key in known if not {serial for serial, _ in key} <= serials]:
                del known[key]

    def clear(self) -> None:
        """Drop all steps."""
        self._steps.clear()
        self._counts.clear()

    @staticmethod
    def _shape(arenas: Sequence[Arena], buckets: Sequence[int]) -> tuple[int, ...]:
        return tuple(
            size
            for arena, bucket in zip(arenas, buckets, strict=True)
            for size in (arena.capacity, bucket)
        )

    def _note(self, text: str) -> None:
        if not self._stats.graphs["notes"]:
            logger.warning("%s", text)
        self._stats.graphs["notes"].append(text)


def no_recording(compute: Compute) -> Compute:
    """Return the computation unchanged, to test fixed shapes without a GPU."""
    return compute


class CudaGraphs:
    """Records steps as CUDA graphs that share memory: a result is used before the next replay."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._stream = torch.cuda.Stream(device)
        self._pool = torch.cuda.graph_pool_handle()

    def __call__(self, compute: Compute) -> Compute:
        """See ``Recorder``."""
        current = torch.cuda.current_stream(self._device)
        self._stream.wait_stream(current)
        with torch.cuda.stream(self._stream):
            for _ in range(
                WARM_UP_ROUNDS
            ):  # kernels must be chosen and memory allocated before recording
                compute()
        current.wait_stream(self._stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(
            graph, pool=self._pool, stream=self._stream, capture_error_mode="thread_local"
        ):
            logits = compute()
        return functools.partial(_replay, graph, logits)


def _replay(graph: torch.cuda.CUDAGraph, logits: Tensor) -> Tensor:
    graph.replay()
    return logits
