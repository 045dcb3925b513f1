"""Decode steps of fixed shapes: rows padded to a bucket, rows of the cache taken whole. A GPU
replays such a step as one graph, without the host in between.

What a step of fixed shapes computes is plain torch, the same on every device; only ``CudaGraphs``
knows how a GPU records it. Each combination of arenas and buckets is a step of its own, which is
recorded when it has been met a few times. Its first replay is compared with the ordinary step: one
that differs is given up, and so is recording as a whole when it fails; the ordinary step takes
over, and the summary says so.
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
"""Takes a computation on fixed buffers and gives another way of doing the same; what that gives is
overwritten by the next.
"""

TOLERANCE = {torch.float32: 1e-3, torch.float16: 1e-2, torch.bfloat16: 5e-2}
"""Tolerance of a recorded step's logits, as a share of the largest one of the ordinary step."""
MET_BEFORE = 4
"""Number of times that a combination is met before it is worth recording."""
MOST_STEPS = 64
"""Recorded steps that are kept; each has some megabytes on the device."""
WARM_UP_ROUNDS = 2


def bucket_of(rows: int, most: int) -> int:
    """The smallest power of two that holds so many rows, or all there are."""
    return min(1 << (rows - 1).bit_length(), most)


class BucketAttention(DecodeAttention):
    """Attention of one new token for every row of a bucket, over rows in their whole capacity.

    Padding rows are rows that nobody lives in: live ones stand at the front of their arena. What
    they write goes to their own first place.
    """

    def __init__(self, parts: Sequence[tuple[Arena, int]], positions: Tensor) -> None:
        """Takes arenas with their buckets, and the position of each row's new token, int64 (rows,),
        0 for padding.
        """
        self.attend_rows = F.scaled_dot_product_attention
        self.parts, self.rows = [], []
        begin = 0
        for arena, bucket in parts:
            ends = positions[begin : begin + bucket]
            mask = wide_mask(arena.shape, ends, arena.capacity, arena.dtype)
            self.parts.append(
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
    """A decode step for one combination of arenas and buckets, on buffers of its own.

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
        # A step outlives its arenas until it is forgotten, and must not keep their memory.
        self._arenas = [weakref.ref(arena) for arena, _ in parts]
        self._language = model.language
        self.replay: Compute = self.compute

    def compute(self) -> Tensor:
        """Float32 logits (rows, vocabulary), those of padding included."""
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
        """Float32 logits (live rows, vocabulary); overwritten by the next step."""
        places = self.load(arenas, tokens)
        logits = self.replay()
        if len(arenas) == 1:  # live rows stand at the front
            return logits[: len(places)]
        return logits[torch.tensor(places, device=logits.device)]

    def load(self, arenas: Sequence[Arena], tokens: Sequence[int]) -> list[int]:
        """Fills the buffers with the live rows' last tokens, given arena by arena; gives the places
        of these rows.
        """
        self._staging.zero_()
        places: list[int] = []
        begin = 0
        for arena, bucket in zip(arenas, self.buckets, strict=True):
            places += range(begin, begin + len(arena.rows))
            begin += bucket
        lengths = [row.length for arena in arenas for row in arena.rows]
        self._staging[:, places] = torch.tensor([tokens, lengths])
        self.inputs.copy_(self._staging, non_blocking=True)
        return places


class BucketDecoder:
    """Does decode steps in fixed shapes, where it has them."""

    def __init__(
        self,
        model: Model,
        cache: Cache,
        stats: EngineStats,
        recorder: Recorder,
        *,
        met_before: int = MET_BEFORE,
    ) -> None:
        """Takes what it computes with.

        Args:
            model: The model.
            cache: Keys and values.
            stats: Where ``graphs`` is kept.
            recorder: How a step is made fast: ``CudaGraphs``, or ``as_it_is``.
            met_before: How often a combination is met before it is recorded.
        """
        self._model, self._cache, self._stats, self._record, self._met_before = (
            model,
            cache,
            stats,
            recorder,
            met_before,
        )
        self._steps: dict[tuple[tuple[int, int], ...], Step] = {}
        self._met: collections.Counter[tuple[tuple[int, int], ...]] = collections.Counter()
        self._given_up: set[tuple[int, ...]] = set()
        self.failed = False
        stats.graphs = {"recorded": 0, "replayed": 0, "notes": []}

    def logits(self, tokens: Sequence[int], ordinary: Compute) -> Tensor:
        """Float32 logits (live rows, vocabulary).

        Args:
            tokens: The last token of every live row, arena by arena in the cache's order.
            ordinary: The same step in the ordinary way; it may be done once, or not at all, and
                counts no token into a row.
        """
        arenas = [arena for arena in self._cache.arenas.values() if arena.rows]
        buckets = [bucket_of(len(arena.rows), arena.allocated) for arena in arenas]
        key = tuple((arena.serial, bucket) for arena, bucket in zip(arenas, buckets, strict=True))
        step = self._steps.get(key)
        if step is not None:
            self._stats.graphs["replayed"] += 1
            return step.logits(arenas, tokens)
        logits = ordinary()
        if self._is_worth_recording(key, arenas, buckets):
            self._try(key, arenas, buckets, tokens, logits)
        return logits

    def _is_worth_recording(
        self, key: tuple[tuple[int, int], ...], arenas: Sequence[Arena], buckets: Sequence[int]
    ) -> bool:
        if self.failed or self._shape(arenas, buckets) in self._given_up:
            return False
        self._met[key] += 1
        if self._met[key] < self._met_before:
            return False
        self.forget_stale()
        return len(self._steps) < MOST_STEPS

    def _try(
        self,
        key: tuple[tuple[int, int], ...],
        arenas: Sequence[Arena],
        buckets: Sequence[int],
        tokens: Sequence[int],
        wanted: Tensor,
    ) -> None:
        """Records a step and compares its first replay with what the ordinary one gave. It writes
        the same keys and values to the same places.
        """
        try:
            step = Step(self._model, list(zip(arenas, buckets, strict=True)))
            step.load(arenas, tokens)
            step.replay = self._record(step.compute)
            found = step.logits(arenas, tokens)
            difference = float((found - wanted).abs().max() / wanted.abs().max().clamp_min(1e-6))
        except RuntimeError as error:
            message = " ".join(str(error).split())[:200]
            self.failed = True
            self._steps.clear()
            self._note(
                f"recording decode steps failed ({type(error).__name__}: {message}); they are "
                "done one operation at a time"
            )
            return
        if difference <= TOLERANCE[self._model.dtype]:  # also not when a number is not finite
            self._steps[key] = step
            self._stats.graphs["recorded"] += 1
        else:
            self._given_up.add(self._shape(arenas, buckets))
            self._note(
                f"a recorded decode step of {sum(buckets)} rows gave other logits "
                f"({difference:.2g} of the largest); it is done one operation at a time"
            )

    def forget_stale(self) -> None:
        """Drops steps over arenas that have grown or are gone."""
        serials = {arena.serial for arena in self._cache.arenas.values()}
        for known in (self._steps, self._met):
            for key in [key for key in known if not {serial for serial, _ in key} <= serials]:
                del known[key]

    def clear(self) -> None:
        """Drops all steps."""
        self._steps.clear()
        self._met.clear()

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


def as_it_is(compute: Compute) -> Compute:
    """Records nothing: the step of fixed shapes is computed anew each time. This is how it is
    tested without a GPU.
    """
    return compute


class CudaGraphs:
    """Records steps as CUDA graphs, which share their memory: what one gives is used before the
    next is replayed.
    """

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
            ):  # what is chosen and allocated at first use cannot be recorded
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
