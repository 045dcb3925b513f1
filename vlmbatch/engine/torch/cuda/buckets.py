"""Decode steps of fixed shapes: rows padded to a power of two. A GPU replays such a step as one
CUDA graph, without host work in between.

A row is a token, its position, and the place of its extent in the pool: sequences may stand
anywhere in a chunk, and a step is the same for all of them. Where a kernel takes rows of any
lengths (CUDA in 16 bits), the number of rows alone makes the step; elsewhere also the number of
tokens that each row gathers. A second step of the same size samples, and another one masks the
tokens that constrained answers may not go on with, while somebody wants that.

The computation is plain torch, the same on every device; only ``CudaGraphs`` records it. A step is
recorded once it has occurred a few times, on padding rows. Its first replay is compared with the
ordinary step: a step that differs is rejected. An error while recording is survived: the ordinary
step takes over, recording is tried again later, and the summary says so.
"""

from __future__ import annotations

import collections
import logging
from collections.abc import Sequence
from typing import NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor

from vlmbatch.engine.base import EngineStats
from vlmbatch.engine.constraints import ConstraintState
from vlmbatch.engine.torch.budget import MemoryBudget
from vlmbatch.engine.torch.cache import Cache, Slot
from vlmbatch.engine.torch.cache.packed import attend_varlen
from vlmbatch.engine.torch.cache.pool import Chunk, Extent
from vlmbatch.engine.torch.cuda.recorded import Compute, RecordedStep
from vlmbatch.engine.torch.cuda.transfers import fetch, upload
from vlmbatch.engine.torch.sampling import Draw
from vlmbatch.engine.torch.weights import Model

logger = logging.getLogger(__name__)

TOLERANCE = {torch.float32: 1e-3, torch.float16: 5e-2, torch.bfloat16: 0.25}
"""Largest difference of a recorded step's log-probabilities from those of the ordinary step."""
RECORD_AFTER = 4
"""Number of times that a step must occur before it is recorded."""
MIN_TOKENS = 256
"""Fewest tokens that a step gathers: below, longer steps would save less than recording costs."""
MAX_STEPS = 64
"""Maximum number of recorded steps; each takes some megabytes on the device."""
RETRY_AFTER, MAX_FAILURES = 256, 3
"""Number of steps before recording is tried again after an error, and errors after which it is not.
"""


class Recorder(Protocol):
    """Makes computations on fixed buffers faster."""

    @property
    def held_bytes(self) -> int:
        """Device memory that its recordings keep."""
        ...

    def __call__(self, compute: Compute) -> Compute:
        """Return an equivalent of a computation, each result of which is overwritten by the
        next.
        """
        ...

    def clear(self) -> None:
        """Let go of what belongs to recordings that are dropped."""
        ...


def bucket_of(count: int) -> int:
    """Round up to a power of two."""
    return 1 << (count - 1).bit_length()


class Key(NamedTuple):
    """The shape of a step: its chunk's serial, its rows, the tokens that each gathers (0 where a
    kernel takes any number), whether it samples, and whether it masks tokens.
    """

    chunk: int
    rows: int
    tokens: int
    is_sampled: bool
    is_masked: bool


class BucketDecoder:
    """Decode with recorded steps of fixed shapes, where there are any."""

    def __init__(
        self,
        model: Model,
        cache: Cache,
        budget: MemoryBudget,
        stats: EngineStats,
        recorder: Recorder,
        *,
        record_after: int = RECORD_AFTER,
    ) -> None:
        """Set up without recorded steps.

        Args:
            model: The model.
            cache: The KV cache, with tokens first.
            budget: The memory budget; it is told what recorded steps hold.
            stats: Its ``graphs`` is updated.
            recorder: ``CudaGraphs``, or another one that tests take.
            record_after: Number of times that a step must occur before it is recorded.
        """
        self._model, self._cache, self._budget, self._stats = model, cache, budget, stats
        self.recorder, self._record_after = recorder, record_after
        self._steps: dict[Key, RecordedStep] = {}
        self._counts: collections.Counter[Key] = collections.Counter()
        self._rejected: set[Key] = set()
        self._paddings: dict[int, Slot] = {}
        self._failures = self._pause = 0
        self._wanted: Key | None = None
        stats.graphs = {"recorded": 0, "replayed": 0, "notes": []}

    def step(
        self,
        slots: Sequence[Slot],
        tokens: Sequence[int],
        draws: Sequence[Draw | None],
        constraints: Sequence[ConstraintState | None] = (),
    ) -> list[list[float]] | None:
        """Decode a token for slots with a recorded step; None if there is none.

        Args:
            slots: The slots; their lengths do not change.
            tokens: The last token of each.
            draws: Options of those that are sampled.
            constraints: States of those whose answers are constrained.

        Returns:
            The tokens and their log-probabilities.
        """
        key = self._key(slots, is_sampled=any(draws), is_masked=any(constraints))
        step = self._steps.get(key) if key else None
        self._wanted = key if step is None else None
        if step is None:
            return None
        self._stats.graphs["replayed"] += 1
        return step(slots, tokens, draws, constraints)

    def consider(self, slots: Sequence[Slot], tokens: Sequence[int], logits: Tensor) -> None:
        """Record the step that was asked for, if it has occurred often enough. Where none was, as
        for answers with the most likely tokens of each position, nothing is recorded.

        Args:
            slots: The slots of the ordinary step; their lengths are those before it.
            tokens: The last token of each, before it.
            logits: What it gave, float32 (slots, vocabulary).
        """
        key, self._wanted = self._wanted, None
        if key is None or not self._is_worth_recording(key):
            return
        padding = self._padding(slots[0].extent.chunk)
        if padding is None:
            return
        message = ""
        try:
            step = RecordedStep(
                self._model,
                padding,
                key.rows,
                key.tokens,
                is_sampled=key.is_sampled,
                is_masked=key.is_masked,
            )
            step.replay = self.recorder(step.compute)
            chosen, logprobs = step(slots, tokens)
            is_same = _is_same(logits, chosen, logprobs, TOLERANCE[self._model.dtype])
        except RuntimeError as error:
            message = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
        if message:  # outside the except block, where the error keeps the step's tensors alive
            self._failed(message)
        elif is_same:
            self._steps[key] = step
            self._budget.graph_bytes = self.recorder.held_bytes
            self._stats.graphs["recorded"] += 1
        else:
            self._rejected.add(key)
            self._note(
                f"a recorded decode step of {key.rows} rows gave other tokens; it is done one "
                "operation at a time"
            )

    def _key(self, slots: Sequence[Slot], *, is_sampled: bool, is_masked: bool) -> Key | None:
        """The step that these slots need; None if their tokens are not all in one chunk, each in
        its own extent.
        """
        chunk = slots[0].extent.chunk
        if any(slot.shared or slot.extent.chunk is not chunk for slot in slots):
            return None
        tokens = 0
        if self._model.language.attend_rows_of is not attend_varlen:
            tokens = max(MIN_TOKENS, bucket_of(max(slot.length for slot in slots) + 1))
        return Key(chunk.serial, bucket_of(len(slots)), tokens, is_sampled, is_masked)

    def _is_worth_recording(self, key: Key) -> bool:
        self._pause = max(0, self._pause - 1)
        if self._pause or self._failures >= MAX_FAILURES or key in self._rejected:
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

    def _failed(self, message: str) -> None:
        """Drop all steps, whose memory may be what another one lacked; try again later."""
        self._failures += 1
        self._pause = RETRY_AFTER
        self.clear()
        goes_on = "for now" if self._failures < MAX_FAILURES else "from now on"
        self._note(
            f"recording decode steps failed ({message}); they are done one operation at a time "
            f"{goes_on}"
        )

    def forget_stale(self) -> None:
        """Drop steps whose chunks are gone."""
        serials = {chunk.serial for chunk in self._cache.pool.chunks}
        for known in (self._steps, self._counts):
            for key in [key for key in known if key.chunk not in serials]:
                del known[key]
        if not self._steps:
            self._let_go()

    def clear(self) -> None:
        """Drop all steps."""
        self._wanted = None
        self._steps.clear()
        self._counts.clear()
        self._let_go()
        for slot in self._paddings.values():
            self._cache.give_back(slot)
        self._paddings.clear()

    def _let_go(self) -> None:
        self.recorder.clear()
        self._budget.graph_bytes = 0

    def _note(self, text: str) -> None:
        if not self._stats.graphs["notes"]:
            logger.warning("%s", text)
        self._stats.graphs["notes"].append(text)


def _is_same(
    logits: Tensor, tokens: Sequence[float], logprobs: Sequence[float], tolerance: float
) -> bool:
    """True if greedy tokens and their log-probabilities are those of logits. Where two tokens are
    about equally likely, rounding may choose either.

    Args:
        logits: Float32, (n, vocabulary).
        tokens, logprobs: What a recorded step chose.
        tolerance: Largest difference of a log-probability.
    """
    chosen = upload(np.array(tokens, np.int64), logits.device)
    known = torch.log_softmax(logits, dim=-1)
    own, best = fetch(torch.stack((known.gather(1, chosen[:, None])[:, 0], known.amax(dim=-1))))
    return all(
        abs(mine - found) <= tolerance and mine >= most - tolerance  # False if not a number
        for mine, most, found in zip(own, best, logprobs, strict=True)
    )
