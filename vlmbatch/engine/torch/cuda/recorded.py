"""A decode step of a fixed number of rows, on buffers of its own, tokens chosen inside."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from vlmbatch.engine.constraints import ConstraintState, fill_bits, num_words
from vlmbatch.engine.torch.cache import Rows, Slot, wide_mask
from vlmbatch.engine.torch.cache.packed import attend_varlen, write
from vlmbatch.engine.torch.cache.pool import Chunk, Extent
from vlmbatch.engine.torch.cuda.transfers import fetch
from vlmbatch.engine.torch.sampling import (
    Draw,
    allowed_logits,
    sample,
    settings_of,
    with_logprobs,
)
from vlmbatch.engine.torch.weights import Model

Compute = Callable[[], Tensor]


class RowAttention:
    """Attention of one new token for every row, by a kernel that takes rows of any lengths."""

    def __init__(self, chunk: Chunk, inputs: Tensor, context: int) -> None:
        """Take the chunk, the rows as ``RecordedStep`` has them, and the most tokens of a row."""
        self._chunk = chunk
        _, positions, begins, _ = inputs.unbind()
        steps = torch.arange(inputs.shape[1] + 1, device=inputs.device)
        places = F.pad(begins.to(torch.int32), (0, 1))
        lengths = (positions + 1).to(torch.int32)
        written = begins + positions
        self._rows = Rows((), steps.to(torch.int32), places, lengths, written, 1, context)

    def __call__(self, layer: int, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """See ``Attend``."""
        keys, values = write(self._chunk, layer, self._rows.written, key, value)
        return attend_varlen(query, keys, values, self._rows).flatten(1)


class GatheredAttention:
    """The same where there is no such kernel: a fixed number of tokens of each row is gathered."""

    def __init__(self, chunk: Chunk, inputs: Tensor, tokens: int) -> None:
        """Take the chunk, the rows as ``RecordedStep`` has them, and the tokens of each."""
        self._chunk = chunk
        _, positions, begins, _ = inputs.unbind()
        steps = torch.arange(tokens, device=inputs.device)
        self._seen = (begins[:, None] + steps).clamp_max(chunk.tokens - 1)
        self._written = begins + positions
        self._mask = wide_mask(chunk.shape, positions, tokens, chunk.keys[0].dtype)

    def __call__(self, layer: int, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """See ``Attend``."""
        stores = write(self._chunk, layer, self._written, key, value)
        keys, values = (store[self._seen].transpose(1, 2) for store in stores)
        q = query.reshape(len(query), key.shape[1], -1, key.shape[2])
        return F.scaled_dot_product_attention(q, keys, values, attn_mask=self._mask).flatten(1)


class RecordedStep:
    """A decode step for a number of rows.

    The tokens that it chooses are the next step's input, where they lie: as long as the same
    sequences go on, nothing is sent but the numbers that sampling needs, and which tokens
    constrained answers may go on with.

    Attributes:
        inputs: int64 (4, rows) on the device: last token, position, first token of the extent, and
            1 where a sequence lives; padding rows write to an extent that no sequence has.
        settings: Float32 (3, rows) on the device, see ``settings_of``; None if no row is sampled.
        bits: int32 (rows, words) on the device, see ``allowed_logits``; None if no row is masked.
    """

    def __init__(
        self,
        model: Model,
        padding: Extent,
        rows: int,
        tokens: int,
        *,
        is_sampled: bool,
        is_masked: bool = False,
    ) -> None:
        """Set up with padding rows alone.

        Args:
            model: The model.
            padding: Extent that padding rows write to; all rows must be in its chunk.
            rows: Number of rows.
            tokens: Number of tokens to gather for each; 0 to attend by a kernel that takes any.
            is_sampled: Whether some tokens are sampled.
            is_masked: Whether some rows may not choose every token.
        """
        self._tokens, self._language = tokens, model.language
        self._padding = torch.tensor([[0], [0], [padding.begin], [0]])
        is_cuda = model.device.type == "cuda"
        self._staging = torch.zeros((4, rows), dtype=torch.int64, pin_memory=is_cuda)
        self.inputs = self._padding.repeat(1, rows).to(model.device)
        self.settings: Tensor | None = None
        if is_sampled:
            self._numbers = torch.zeros((3, rows), pin_memory=is_cuda)
            self.settings = torch.zeros((3, rows), device=model.device)
        self.bits: Tensor | None = None
        if is_masked:
            words = num_words(model.shape.text.vocabulary)
            self._allowed = torch.full((rows, words), -1, dtype=torch.int32, pin_memory=is_cuda)
            self.bits = torch.full_like(self._allowed, -1, device=model.device, pin_memory=False)
        # A step may outlive its chunk and must not keep its memory.
        self._chunk = weakref.ref(padding.chunk)
        self._state: list[tuple[int, int, int, int]] | None = None
        self.replay: Compute = self.compute

    def compute(self) -> Tensor:
        """Choose a token for every row: tokens and log-probabilities, float32 (2, rows)."""
        chunk, language = self._chunk(), self._language
        assert chunk is not None  # steps are only used for the chunk that they were made for
        tokens, positions, _, living = self.inputs.unbind()
        attend: RowAttention | GatheredAttention
        if self._tokens:
            attend = GatheredAttention(chunk, self.inputs, self._tokens)
        else:
            attend = RowAttention(chunk, self.inputs, language.shape.context)
        logits = language.logits(language(language.embed(tokens), positions, attend))
        allowed = logits if self.bits is None else allowed_logits(logits, self.bits)
        if self.settings is None:
            chosen = allowed.argmax(dim=-1)
        else:
            chosen = sample(allowed, self.settings, is_nucleus=True)
        found = with_logprobs(chosen, torch.log_softmax(logits, dim=-1))
        tokens.copy_(chosen)
        positions.add_(living)
        return found

    def __call__(
        self,
        slots: Sequence[Slot],
        tokens: Sequence[int],
        draws: Sequence[Draw | None] = (),
        constraints: Sequence[ConstraintState | None] = (),
    ) -> list[list[float]]:
        """Decode a token for slots.

        Args:
            slots: The slots; their lengths do not change.
            tokens: The last token of each.
            draws: Options of those that are sampled; without them every row is greedy.
            constraints: States of those that may not choose every token.

        Returns:
            The tokens and their log-probabilities.
        """
        state = [
            (token, slot.length, slot.extent.begin, 1)
            for slot, token in zip(slots, tokens, strict=True)
        ]
        if state != self._state:
            self._staging.copy_(self._padding.expand_as(self._staging))
            self._staging[:, : len(state)] = torch.tensor(state).T
            self.inputs.copy_(self._staging, non_blocking=True)
        self._state = None  # until the step is done
        if self.settings is not None:
            options = [*draws, *[None] * (self._numbers.shape[1] - len(draws))]
            self._numbers.copy_(torch.from_numpy(settings_of(options)))
            self.settings.copy_(self._numbers, non_blocking=True)
        if self.bits is not None:
            fill_bits(constraints, self._allowed.numpy())
            self.bits.copy_(self._allowed, non_blocking=True)
        found = [row[: len(slots)] for row in fetch(self.replay())]
        self._state = [
            (int(token), length + 1, begin, 1)
            for token, (_, length, begin, _) in zip(found[0], state, strict=True)
        ]
        return found
