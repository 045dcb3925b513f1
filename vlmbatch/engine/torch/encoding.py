"""Encode tiles to features: equal tiles once, uploads ahead of the next call, and the cost of a
tile measured in the first call.
"""

from __future__ import annotations

import logging

import torch

from vlmbatch.engine.base import EngineStats
from vlmbatch.engine.torch.budget import MemoryBudget
from vlmbatch.engine.torch.cache.features import FeatureCache
from vlmbatch.engine.torch.cuda.peak_memory import measure_peak
from vlmbatch.engine.torch.cuda.uploads import TileUploads
from vlmbatch.engine.torch.scheduler import Scheduler
from vlmbatch.engine.torch.weights import Model
from vlmbatch.prepare import Payload

logger = logging.getLogger(__name__)


class TileEncoder:
    """Encodes tiles of several requests in one call.

    Attributes:
        is_measured: Whether the cost of a tile is settled: measured in the first call on CUDA,
            whose allocator counts it; elsewhere the budget's estimate holds.
        uploads: Sends tiles to the device.
    """

    def __init__(
        self, model: Model, budget: MemoryBudget, scheduler: Scheduler, stats: EngineStats
    ) -> None:
        """Take the model; the budget, which receives the measured cost of a tile; the scheduler,
        for the size of a call; and the statistics to update.
        """
        self._model, self._budget, self._scheduler, self._stats = model, budget, scheduler, stats
        self.is_measured = model.device.type != "cuda"
        self.uploads = TileUploads(model.device, resizing_bytes=budget.resizing_bytes)
        self._kept = FeatureCache()

    @property
    def is_ahead(self) -> bool:
        """True if tiles are sent before they are asked for."""
        return self.uploads.is_ahead

    @property
    def kept_bytes(self) -> int:
        """Bytes of cached features."""
        return self._kept.bytes

    def features(self, wanted: list[tuple[Payload, int]]) -> list[torch.Tensor]:
        """Return features (tile_tokens, hidden) of tiles; equal tiles are encoded once."""
        found, fresh, chosen = self._sort(wanted)
        if not chosen:
            self._stats.tiles_reused += len(wanted)
            return [features for features in found if features is not None]
        tiles = self.uploads.take(chosen)
        encoded = self._model.vision(tiles) if self.is_measured else self._encode_measured(tiles)
        self._stats.tiles += len(chosen)
        self._stats.tiles_reused += len(wanted) - len(chosen)
        self._stats.vision_calls += 1
        self._stats.max_tiles = max(self._stats.max_tiles, len(chosen))
        # On a GPU the tiles of a call are kept together, without a kernel for each.
        is_copied = encoded.device.type == "cpu"
        for name, number in fresh.items():
            if isinstance(name, bytes):
                features = encoded[number]
                self._kept.put(name, features.clone() if is_copied else features)
        keys = (
            payload.tile_keys[number] if payload.tile_keys else place
            for place, (payload, number) in enumerate(wanted)
        )
        return [
            encoded[fresh[key]] if features is None else features
            for key, features in zip(keys, found, strict=True)
        ]

    def send_ahead(self, wanted: list[tuple[Payload, int]]) -> None:
        """Upload the tiles of the likely next call while the device is busy."""
        self.uploads.send_ahead(self._sort(wanted)[2])

    def clear(self) -> None:
        """Drop cached features and tiles sent ahead."""
        self._kept.clear()
        self.uploads.clear()

    def _sort(
        self, wanted: list[tuple[Payload, int]]
    ) -> tuple[list[torch.Tensor | None], dict[bytes | int, int], list[tuple[Payload, int]]]:
        """Look tiles up in the cache: features, or None for a miss; the first index of each new key
        (or position) among the tiles to encode; and these tiles.
        """
        found: list[torch.Tensor | None] = []
        fresh: dict[
            bytes | int, int
        ] = {}  # key, or position if it has none, to the index among the tiles to encode
        chosen: list[tuple[Payload, int]] = []
        for place, (payload, number) in enumerate(wanted):
            key = payload.tile_keys[number] if payload.tile_keys else b""
            found.append(self._kept.get(key))
            if found[-1] is None and (key or place) not in fresh:
                fresh[key or place] = len(chosen)
                chosen.append((payload, number))
        return found, fresh, chosen

    def _encode_measured(self, tiles: torch.Tensor) -> torch.Tensor:
        """Encode the first call: its first tile alone, to measure its cost, then the others."""
        first, self._budget.tile_bytes = measure_peak(
            lambda: self._model.vision(tiles[:1]), self._model.device
        )
        self.is_measured = True
        self._stats.memory = self._budget.describe()
        logger.debug(
            "a tile takes %d bytes; %d at once", self._budget.tile_bytes, self._budget.tiles_at_once
        )
        rest = (
            [self._model.vision(part) for part in tiles[1:].split(self._scheduler.tiles_at_once)]
            if len(tiles) > 1
            else []
        )
        return torch.cat([first, *rest])
