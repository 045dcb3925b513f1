"""Features of tiles that were encoded lately, by content: blank margins, repeated headers and
frames in which nothing moves are encoded once.
"""

from __future__ import annotations

import collections

from torch import Tensor

MOST_BYTES = 64 << 20
"""Room for about 450 tiles of the 256M model in float32."""
MOST_TILES = 512
"""Equal tiles come close together; a small model's features, which could be kept by the thousand,
would only scatter over the memory.
"""


class FeatureCache:
    """Keeps the features of the tiles used last, up to so many bytes and tiles. A tile without a
    key (an empty one) is never kept.
    """

    def __init__(self, most_bytes: int = MOST_BYTES, most_tiles: int = MOST_TILES) -> None:
        self.most_bytes, self.most_tiles = most_bytes, most_tiles
        self.bytes = 0
        self._kept: collections.OrderedDict[bytes, Tensor] = collections.OrderedDict()

    def get(self, key: bytes) -> Tensor | None:
        """Features (tile_tokens, hidden) of an equal tile, or None."""
        found = self._kept.get(key)
        if found is not None:
            self._kept.move_to_end(key)
        return found

    def put(self, key: bytes, features: Tensor) -> None:
        """Keeps features; those that were not used for longest make room."""
        if not key or key in self._kept or features.nbytes > self.most_bytes:
            return
        self._kept[key] = features
        self.bytes += features.nbytes
        while self.bytes > self.most_bytes or len(self._kept) > self.most_tiles:
            self.bytes -= self._kept.popitem(last=False)[1].nbytes

    def clear(self) -> None:
        """Forgets everything."""
        self._kept.clear()
        self.bytes = 0
