"""Upload tiles to the device as uint8; on CUDA from pinned memory, ahead of the next call."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from vlmbatch.prepare import Payload

Tiles = Sequence[tuple[Payload, int]]
"""Tiles, each as a payload and its index there."""


@dataclasses.dataclass(frozen=True)
class _Sent:
    wanted: list[tuple[Payload, int]]
    tiles: Tensor
    arrived: torch.cuda.Event | None


class TileUploads:
    """Sends tiles to a device.

    Attributes:
        is_ahead: Whether tiles are sent before they are asked for.
    """

    def __init__(self, device: torch.device, *, ahead: bool | None = None) -> None:
        """Set ``is_ahead`` to ``ahead``; by default True on CUDA."""
        self._device = device
        self.is_ahead = device.type == "cuda" if ahead is None else ahead
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None
        self._sent: _Sent | None = None

    def send_ahead(self, wanted: Tiles) -> None:
        """Start sending the likely next tiles; a wrong guess costs the copy."""
        self._sent = self._send(wanted) if self.is_ahead and wanted else None

    def take(self, wanted: Tiles) -> Tensor:
        """Return tiles on the device, uint8 (n, 3, E, E)."""
        sent, self._sent = self._sent, None
        if sent is None or sent.wanted != list(wanted):
            sent = self._send(wanted)
        if sent.arrived is not None:
            current = torch.cuda.current_stream(self._device)
            current.wait_event(sent.arrived)
            sent.tiles.record_stream(current)
        return sent.tiles

    def clear(self) -> None:
        """Drop tiles that were sent ahead."""
        self._sent = None

    def _send(self, wanted: Tiles) -> _Sent:
        # numpy copies tile by tile on this thread. torch would start its threads for each tile, and
        # wait for all of them: on a busy machine that takes longer than the copy.
        tiles = [payload.tiles[number] for payload, number in wanted]
        if self._stream is None:
            stacked = torch.from_numpy(np.stack(tiles))
            return _Sent(list(wanted), stacked.to(self._device), None)
        staging = torch.empty((len(tiles), *tiles[0].shape), dtype=torch.uint8, pin_memory=True)
        np.stack(tiles, out=staging.numpy())
        with torch.cuda.stream(self._stream):
            sent = staging.to(
                self._device, non_blocking=True
            )  # torch keeps the pinned block until the copy is done
            arrived = torch.cuda.Event()
            arrived.record(self._stream)
        return _Sent(list(wanted), sent, arrived)
