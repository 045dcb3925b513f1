"""Decode steps of fixed shapes: rows padded to a bucket, each attending a padded number of tokens.
A GPU replays such a step as one CUDA graph, without host work in between.

A row is a token, its position, and the offset of its extent in the pool: sequences may stand
anywhere in a chunk, and a step is the same for all of them. Its keys and values are gathered by
offset; a kernel that reads them in place can stand for that (variable-length attention takes the
same offsets), and then the number of rows alone makes the step.

The computation is plain torch, the same on every device; only ``CudaGraphs`` records it. Each
number of rows and of tokens is a step of its own, recorded once it has occurred a few times. Its
first replay is compared with the ordinary step: a step that differs is rejected, and an error while
recording turns recording off. The ordinary step then takes over, and the summary says so.
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
from vlmbatch.engine.torch.cache import Cache, Slot, wide_mask
from vlmbatch.engine.torch.cache.pool import Chunk, Extent, Layout
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
"""Number of times that a step must occur before it is recorded."""
MIN_TOKENS = 256
"""Fewest tokens that a step attends: below, longer steps would save less than recording costs."""
MAX_STEPS = 64
"""Maximum number of recorded steps; each takes some megabytes on the device."""
WARM_UP_ROUNDS = 2


def bucket_of(count: int) -> int:
    """Round up to a power of two."""
    return 1 << (count - 1).bit_length()


class BucketAttention:
    """Attention of one new token for every row of a bucket, over rows gathered from a chunk.

    Padding rows write to the first token of an extent that no sequence has.
    """

    def __init__(self, chunk: Chunk, tokens: int, inputs: Tensor) -> None:
        """Take the chunk, the number of tokens to attend, and the rows as ``Step`` has them."""
        self._chunk = chunk
        _, positions, begins, capacities = inputs.unbind()
        shape = chunk.shape
        heads = torch.arange(shape.kv_heads, device=inputs.device)
        steps = torch.arange(tokens, device=inputs.device)
        # In lines of D numbers, see cache/pool.py.
        if chunk.layout is Layout.TOKENS:
            head, token = heads.expand(len(positions), -1), shape.kv_heads
        else:
            head, token = heads * capacities[:, None], 1
        base = begins[:, None] * shape.kv_heads + head
        last = chunk.tokens * shape.kv_heads - 1
        self._seen = (base[:, :, None] + steps * token).clamp_max(last)
        self._written = (base + positions[:, None] * token).flatten()
        self._mask = wide_mask(shape, positions, tokens, chunk.keys[0].dtype)

    def __call__(self, layer: int, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """See ``Attend``."""
        dim = key.shape[2]
        seen = []
        for store, new in ((self._chunk.keys, key), (self._chunk.values, value)):
            lines = store[layer].view(-1, dim)
            lines.index_copy_(0, self._written, new.reshape(-1, dim))
            seen.append(lines[self._seen])
        q = query.reshape(len(query), key.shape[1], -1, dim)
        out = F.scaled_dot_product_attention(q, seen[0], seen[1], attn_mask=self._mask)
        return out.reshape(len(query), -1)


class Step:
    """A decode step for a number of rows and of tokens, on its own buffers.

    Attributes:
        inputs: int64 (4, rows) on the device: last token, position, first token of the extent and
            its capacity.
    """

    def __init__(self, model: Model, padding: Extent, rows: int, tokens: int) -> None:
        """Take an extent that padding rows write to; all rows must be in its chunk."""
        self._tokens = tokens
        self._padding = torch.tensor([[0], [0], [padding.begin], [padding.capacity]])
        self.inputs = self._padding.repeat(1, rows).to(model.device)
        self._staging = torch.zeros(
            (4, rows), dtype=torch.int64, pin_memory=model.device.type == "cuda"
        )
        # A step may outlive its chunk and must not keep its memory.
        self._chunk = weakref.ref(padding.chunk)
        self._language = model.language
        self.replay: Compute = self.compute

    def compute(self) -> Tensor:
        """Compute float32 logits (rows, vocabulary), padding included."""
        chunk = self._chunk()
        assert chunk is not None  # steps are only used for the chunk that they were made for
        attend = BucketAttention(chunk, self._tokens, self.inputs)
        tokens, positions = self.inputs[0], self.inputs[1]
        return self._language.logits(
            self._language(self._language.embed(tokens), positions, attend)
        )

    def logits(self, slots: Sequence[Slot], tokens: Sequence[int]) -> Tensor:
        """Return float32 logits (slots, vocabulary); overwritten by the next step."""
        self.load(slots, tokens)
        return self.replay()[: len(slots)]

    def load(self, slots: Sequence[Slot], tokens: Sequence[int]) -> None:
        """Fill the buffers with the last tokens of slots."""
        rows = [
            (token, slot.length, slot.extent.begin, slot.extent.capacity)
            for slot, token in zip(slots, tokens, strict=True)
        ]
        self._staging.copy_(self._padding.expand_as(self._staging))
        self._staging[:, : len(rows)] = torch.tensor(rows).T
        self.inputs.copy_(self._staging, non_blocking=True)


Key = tuple[int, int, int]
"""A chunk's serial, and numbers of rows and of tokens."""


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
            record_after: Number of times that a step must occur before it is recorded.
        """
        self._model, self._cache, self._stats, self._record, self._record_after = (
            model,
            cache,
            stats,
            recorder,
            record_after,
        )
        self._steps: dict[Key, Step] = {}
        self._counts: collections.Counter[Key] = collections.Counter()
        self._rejected: set[tuple[int, int]] = set()
        self._paddings: dict[int, Slot] = {}
        self.failed = False
        stats.graphs = {"recorded": 0, "replayed": 0, "notes": []}

    def logits(self, slots: Sequence[Slot], tokens: Sequence[int], ordinary: Compute) -> Tensor:
        """Compute float32 logits (slots, vocabulary).

        Args:
            slots: The slots of the step.
            tokens: The last token of each.
            ordinary: The same step without fixed shapes. It is called at most once, and adds no
                token to a slot's length.
        """
        key = self._key(slots)
        step = self._steps.get(key) if key else None
        if step is not None:
            self._stats.graphs["replayed"] += 1
            return step.logits(slots, tokens)
        logits = ordinary()
        if key and self._is_worth_recording(key):
            self._try_to_record(key, slots, tokens, logits)
        return logits

    def _key(self, slots: Sequence[Slot]) -> Key | None:
        """The step that these slots need; None if their tokens are not all in one chunk, each in
        its own extent.
        """
        chunk = slots[0].extent.chunk
        if any(slot.shared or slot.extent.chunk is not chunk for slot in slots):
            return None
        longest = max(slot.length for slot in slots) + 1
        return chunk.serial, bucket_of(len(slots)), max(MIN_TOKENS, bucket_of(longest))

    def _is_worth_recording(self, key: Key) -> bool:
        if self.failed or key[1:] in self._rejected:
            return False
        self._counts[key] += 1
        if self._counts[key] < self._record_after:
            return False
        self.forget_stale()
        return len(self._steps) < MAX_STEPS

    def _padding(self, chunk: Chunk) -> Extent | None:
        """Take an extent of a chunk for padding rows; None if it has no room."""
        if chunk.serial not in self._paddings:
            slot = self._cache.take(1)
            if slot is None or slot.extent.chunk is not chunk:
                if slot is not None:
                    self._cache.give_back(slot)
                return None
            self._paddings[chunk.serial] = slot
        return self._paddings[chunk.serial].extent

    def _try_to_record(
        self, key: Key, slots: Sequence[Slot], tokens: Sequence[int], expected: Tensor
    ) -> None:
        """Record a step and compare its first replay with the ordinary logits. It writes the same
        keys and values to the same positions.
        """
        padding = self._padding(slots[0].extent.chunk)
        if padding is None:
            return
        try:
            step = Step(self._model, padding, *key[1:])
            step.load(slots, tokens)
            step.replay = self._record(step.compute)
            replayed = step.logits(slots, tokens)
            difference = float(
                (replayed - expected).abs().max() / expected.abs().max().clamp_min(1e-6)
            )
        except RuntimeError as error:
            message = " ".join(str(error).split())[:200]
            self.failed = True
            self.clear()
            self._note(
                f"recording decode steps failed ({type(error).__name__}: {message}); they are "
                "done one operation at a time"
            )
            return
        if difference <= TOLERANCE[self._model.dtype]:  # False also for NaN
            self._steps[key] = step
            self._stats.graphs["recorded"] += 1
        else:
            self._rejected.add(key[1:])
            self._note(
                f"a recorded decode step of {key[1]} rows gave other logits "
                f"({difference:.2g} of the largest); it is done one operation at a time"
            )

    def forget_stale(self) -> None:
        """Drop steps whose chunks are gone."""
        serials = {chunk.serial for chunk in self._cache.pool.chunks}
        for known in (self._steps, self._counts):
            for key in [key for key in known if key[0] not in serials]:
                del known[key]

    def clear(self) -> None:
        """Drop all steps."""
        self._steps.clear()
        self._counts.clear()
        for slot in self._paddings.values():
            self._cache.give_back(slot)
        self._paddings.clear()

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
