"""Prompts that fit into one batch: an estimate from the configuration, not a measurement.

On CUDA a wrong estimate ends in an exception and a smaller batch. A CPU gives no such sign, the
system ends the process: so the estimate is on the careful side.
"""

from __future__ import annotations

import dataclasses
from typing import Any

from vlmbatch.errors import OutOfMemoryError

GIB = 1 << 30
ENCODER_COPIES = 32
"""Activations of a vision encoder by the bytes of its pixels. SmolVLM2-500M holds 40 MB for a tile
of 3 MB, the 2.2B checkpoint 38 MB for one of 1.8 MB.
"""
PREFILL_COPIES = 24
"""Activations of a language model, in hidden states of a token: the residual, the queries, keys and
values, and an MLP of three to four times the width with its gate.
"""


@dataclasses.dataclass
class MemoryLimit:
    """Bytes that weights and batches may take.

    Attributes:
        limit: The smaller of ``--max-memory`` and ``--memory-fraction`` of what was free.
        room: What the weights leave of it.
    """

    limit: int
    room: int

    @classmethod
    def of(cls, fraction: float, max_bytes: int | None, free_bytes: int) -> MemoryLimit:
        """The limit that a job's options set."""
        limit = min(int(fraction * free_bytes), max_bytes or free_bytes)
        return cls(limit, limit)

    def take_weights(self, name: str, weight_bytes: int) -> None:
        """Reserve memory for the weights.

        Raises:
            OutOfMemoryError: They do not fit.
        """
        self.room = self.limit - weight_bytes
        if self.room <= 0:
            raise OutOfMemoryError(
                f"{name} needs {weight_bytes / GIB:.2f} GiB for its weights and may take "
                f"{self.limit / GIB:.2f} GiB; use a smaller model, or raise --max-memory"
            )

    def fits(self, config: Any, itemsize: int, tokens: int, pixel_bytes: int) -> bool:
        """Whether a batch probably fits.

        Args:
            config: The model's configuration.
            itemsize: Bytes of a number.
            tokens: Tokens of all prompts and answers, padding included.
            pixel_bytes: Bytes of all float32 pixels.
        """
        text = config.get_text_config()
        heads = text.num_attention_heads
        width = (getattr(text, "head_dim", None) or text.hidden_size // heads) * (
            getattr(text, "num_key_value_heads", None) or heads
        )
        token_bytes = 2 * text.num_hidden_layers * width + PREFILL_COPIES * text.hidden_size
        pixels = pixel_bytes // 4 * ENCODER_COPIES
        return bool((tokens * token_bytes + pixels) * itemsize <= self.room)
