"""A cache of tile features by content: blank margins, repeated headers and still frames are encoded
once.
"""

from __future__ import annotations

import collections

from torch import Tensor

MAX_BYTES = 64 << 20
"""Enough for about 450 tiles of the 256M model in float32."""
MAX_TILES = 512
"""Equal tiles come close together; thousands of a small model's features would only fragment
memory.
"""


class FeatureCache:
    """An LRU cache of tile features, bounded by bytes and number. A tile without a key (an empty
    one) is not cached.
    """

    def __init__(self, max_bytes: int = MAX_BYTES, max_tiles: int = MAX_TILES) -> None:
        self.max_bytes, self.max_tiles = max_bytes, max_tiles
        self.bytes = 0
        self._kept: collections.OrderedDict[bytes, Tensor] = collections.OrderedDict()

    def get(self, key: bytes) -> Tensor | None:
        """Return features (tile_tokens, hidden) of an equal tile, or None."""
        found = self._kept.get(key)
        if found is not None:
            self._kept.move_to_end(key)
        return found

    def put(self, key: bytes, features: Tensor) -> None:
        """Store features and evict the least recently used."""
        if not key or key in self._kept or features.nbytes > self.max_bytes:
            return
        self._kept[key] = features
        self.bytes += features.nbytes
        while self.bytes > self.max_bytes or len(self._kept) > self.max_tiles:
            self.bytes -= self._kept.popitem(last=False)[1].nbytes

    def clear(self) -> None:
        """Drop everything."""
        self._kept.clear()
        self.bytes = 0
