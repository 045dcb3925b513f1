"""The memory budget, from the checkpoint's shapes and the free memory of the device.

The limit is the smaller of ``--max-memory`` and ``--memory-fraction`` of the free memory. Weights
are subtracted first; a quarter of the rest is reserved for activations; the KV cache gets the
remainder.
"""

from __future__ import annotations

import dataclasses

from vlmbatch.checkpoint import IDEFICS3_MODELS, KNOWN_MODELS
from vlmbatch.engine.torch.shape import ModelShape
from vlmbatch.errors import OutOfMemoryError

GIB = 1 << 30
_SMOLVLM2 = (256_500_000, 507_500_000, 2_247_000_000)
_IDEFICS3 = (256_500_000, 507_500_000, 2_246_000_000, 256_500_000, 257_500_000)
KNOWN_PARAMETERS = dict(zip(KNOWN_MODELS + IDEFICS3_MODELS, _SMOLVLM2 + _IDEFICS3, strict=True))
"""Number of weights of the published checkpoints, counted from their shapes."""

WORKSPACE_SHARE = 0.25
PACKED_SHARE = 0.25
LEAST_KEPT_BYTES = 32 << 20
RESIZING_BYTES = 1 << 29
"""Enough for seven pictures of 640 x 480 at once, which make millions of pixels each."""
LARGEST_PICTURE_TILES = 17
"""Tiles of a square picture at full detail: 4 x 4 and the global view."""


@dataclasses.dataclass(frozen=True)
class Caps:
    """Limits of one call by kind of device; larger calls are not faster.

    Attributes:
        sequences: Sequences decoded together, whatever the memory.
        patches: Patches in one encoder call.
        prefill_tokens: Tokens in one prefill.
        short_sequences: Sequences decoded together if all prompts are short.
        most_sequences: Sequences decoded together where the cache has room for them; 0 for no more
            than without.
    """

    sequences: int
    patches: int
    prefill_tokens: int
    short_sequences: int
    most_sequences: int = 0


CAPS = {
    "cpu": Caps(32, 4096, 2048, 64),
    "cuda": Caps(256, 65536, 16384, 256, 1024),
    "mps": Caps(64, 16384, 4096, 64),
}
"""Caps by device type. On two cores an encoder call of four 512-pixel tiles is as fast per tile as
a larger one. Decoding gains little above 32 sequences of a thousand tokens, whose keys take longer
to read than the weights; of short sequences, 64 were 1.05 to 1.7 times as fast as 32. A GPU
takes as many as its memory holds: frames of one tile then fill an encoder call beside those that
are decoded.
"""
SHORT_TOKENS = 512
"""Maximum length of a short prompt, in tokens."""
LONG_TOKENS = 2048
"""Length of a sequence for which the cache should have room, where prompts are long."""


@dataclasses.dataclass
class MemoryBudget:
    """Bytes by use.

    Attributes:
        shape: The model's sizes.
        itemsize: Bytes per element of the model's dtype.
        limit: Total bytes that the engine may use.
        caps: Limits of one call.
        tile_bytes: Peak activation bytes of a tile; an estimate until the first encoder call has
            been measured.
        packed_bytes: Bytes of packed copies of weights (cpu/onednn.py); 0 without them.
        quantized: Whether the matrices of the language model are 8-bit integers.
        graph_bytes: Bytes that recorded decode steps hold (cuda/graphs.py).
    """

    shape: ModelShape
    itemsize: int
    limit: int
    caps: Caps
    tile_bytes: int = 0
    packed_bytes: int = 0
    quantized: bool = False
    graph_bytes: int = 0

    def __post_init__(self) -> None:
        self.tile_bytes = self.tile_bytes or self.shape.tile_bytes(self.itemsize)

    @property
    def weight_bytes(self) -> int:
        """Bytes of the weights, packed copies included."""
        return self.shape.weight_bytes(self.itemsize, quantized=self.quantized) + self.packed_bytes

    @property
    def workspace_bytes(self) -> int:
        """Bytes reserved for activations: a quarter of what the weights leave, and at least one
        tile's.
        """
        return max(self._workspace - self.graph_bytes, self.tile_bytes)

    @property
    def resizing_bytes(self) -> int:
        """Most bytes that resizing pictures on a GPU takes: at most half of what the encoder, which
        comes after it, has; the pictures and their tiles lie in the rest.
        """
        return min(self.workspace_bytes // 2, RESIZING_BYTES)

    @property
    def _workspace(self) -> int:
        return int(WORKSPACE_SHARE * (self.limit - self.weight_bytes))

    @property
    def cache_bytes(self) -> int:
        """Bytes available to the KV cache."""
        workspace = max(self._workspace, self.tile_bytes)
        return max(0, self.limit - self.weight_bytes - workspace)

    @property
    def kept_bytes(self) -> int:
        """Most bytes of a CPU's KV cache that prefixes kept for later requests may take: as many as
        the weights, but no fewer than the chats of a small model need.
        """
        return min(self.cache_bytes, max(self.weight_bytes, LEAST_KEPT_BYTES))

    @property
    def tiles_at_once(self) -> int:
        """Maximum number of tiles in one encoder call."""
        return max(
            1,
            min(
                self.caps.patches // self.shape.vision.patches,
                self.workspace_bytes // self.tile_bytes,
            ),
        )

    @property
    def prefill_tokens(self) -> int:
        """Maximum number of tokens in one prefill; a longer prompt is prefilled alone."""
        text = self.shape.text
        token_bytes = (6 * text.hidden + 3 * text.mlp) * self.itemsize
        return max(1, min(self.caps.prefill_tokens, self.workspace_bytes // token_bytes))

    def max_sequences(self, *, is_short: bool) -> int:
        """Maximum number of sequences decoded together, if all prompts are short or not."""
        fewest = self.caps.short_sequences if is_short else self.caps.sequences
        each = (SHORT_TOKENS if is_short else LONG_TOKENS) * self.shape.kv_bytes(self.itemsize)
        return max(fewest, min(self.caps.most_sequences, self.cache_bytes // each))

    def reserve_packed(self, size: int) -> bool:
        """Reserve memory for packed copies of weights if they fit in a quarter of the remaining
        memory. Return True if they do.
        """
        if size > PACKED_SHARE * (self.limit - self.weight_bytes):
            return False
        self.packed_bytes = size
        return True

    def sequences(self, tokens: int) -> int:
        """Number of sequences of this length that fit, within the device's cap."""
        return min(
            self.caps.sequences, self.cache_bytes // (tokens * self.shape.kv_bytes(self.itemsize))
        )

    def check(self, model: str, max_new_tokens: int) -> None:
        """Reject a model that cannot answer even one request, before loading weights.

        Raises:
            OutOfMemoryError: With the sizes, and what would fit.
        """
        tokens = min(
            self.shape.text.context,
            self.shape.tile_tokens * LARGEST_PICTURE_TILES + 200 + max_new_tokens,
        )
        cache = tokens * self.shape.kv_bytes(self.itemsize)
        if self.weight_bytes < self.limit and cache <= self.cache_bytes:
            return
        need = self.weight_bytes + max(self.tile_bytes + cache, int(cache / (1 - WORKSPACE_SHARE)))
        raise OutOfMemoryError(
            f"{model} needs {gib(need)} ({gib(self.weight_bytes)} of weights, "
            f"{gib(self.tile_bytes)} for a tile, {gib(cache)} for one sequence) "
            f"and may take {gib(self.limit)}; {self._advice()}"
        )

    def _advice(self) -> str:
        parameters = self.shape.parameters
        smaller = [
            name
            for name in KNOWN_MODELS
            if (count := KNOWN_PARAMETERS[name]) < 0.95 * parameters
            and 1.2 * count * self.itemsize < self.limit
        ]
        ways = [f"use --model {smaller[-1]}"] if smaller else []
        if self.itemsize == 4 and self.weight_bytes / 2 * 1.2 < self.limit:
            ways.append("or --dtype bfloat16" if ways else "use --dtype bfloat16")
        if (
            not self.quantized
            and self.shape.weight_bytes(self.itemsize, quantized=True) * 1.2 < self.limit
        ):
            ways.append("or --quantize int8" if ways else "use --quantize int8")
        return " ".join(ways) or "free some memory, or raise --max-memory or --memory-fraction"

    def describe(self) -> dict[str, int]:
        """Return the figures for the summary."""
        return {
            "limit_bytes": self.limit,
            "weight_bytes": self.weight_bytes,
            "workspace_bytes": self.workspace_bytes,
            "cache_bytes": self.cache_bytes,
            "tile_bytes": self.tile_bytes,
            "graph_bytes": self.graph_bytes,
            "kv_bytes_per_token": self.shape.kv_bytes(self.itemsize),
            "tiles_at_once": self.tiles_at_once,
        }


def gib(size: int) -> str:
    """Format bytes in GiB or MiB for messages."""
    return f"{size / GIB:.1f} GiB" if size >= GIB else f"{size / (1 << 20):.0f} MiB"
