"""Upload tiles and pictures to the device as uint8, all of an encoder call in one copy; on CUDA
from pinned memory, ahead of the next call.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from vlmbatch.engine.torch.cuda.cutting import Parcel, TileCutter, Tiles
from vlmbatch.prepare import Payload

ALIGNMENT = 64
"""Items of a copy begin at multiples of so many bytes: they are read as other types too."""


@dataclasses.dataclass(frozen=True)
class _Sent:
    wanted: list[tuple[Payload, int]]
    parcel: Parcel
    items: list[Tensor]
    arrived: torch.cuda.Event | None


class TileUploads:
    """Sends tiles to a device.

    Attributes:
        is_ahead: Whether tiles are sent before they are asked for.
    """

    def __init__(
        self, device: torch.device, *, ahead: bool | None = None, resizing_bytes: int = 1 << 28
    ) -> None:
        """Set ``is_ahead`` to ``ahead``; by default True on CUDA. ``resizing_bytes`` is the most
        memory that resizing pictures there may take.
        """
        self._device = device
        self.is_ahead = device.type == "cuda" if ahead is None else ahead
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None
        self._cutter = TileCutter(device, resizing_bytes)
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
            sent.items[0].record_stream(current)  # the copy, of which all items are views
        return self._cutter.open(wanted, sent.parcel, sent.items)

    def clear(self) -> None:
        """Drop what was sent ahead, and tiles that are not asked for yet."""
        self._sent = None
        self._cutter.clear()

    def _send(self, wanted: Tiles) -> _Sent:
        parcel = self._cutter.parcel(wanted)
        items = list(parcel.items())
        sizes = [sum(array.nbytes for array in item) for item in items]
        ends = np.cumsum([math.ceil(size / ALIGNMENT) * ALIGNMENT for size in sizes]).tolist()
        begins = [0, *ends[:-1]]
        is_pinned = self._stream is not None
        staging = torch.empty(ends[-1], dtype=torch.uint8, pin_memory=is_pinned)
        for begin, item in zip(begins, items, strict=True):
            _fill(staging.numpy()[begin:], item)
        if self._stream is None:
            sent, arrived = staging.to(self._device), None
        else:
            with torch.cuda.stream(self._stream):
                sent = staging.to(
                    self._device, non_blocking=True
                )  # torch keeps the pinned block until the copy is done
                arrived = torch.cuda.Event()
                arrived.record(self._stream)
        places = zip(begins, sizes, strict=True)
        found = [sent[begin : begin + size] for begin, size in places]
        return _Sent(list(wanted), parcel, found, arrived)


def _fill(staging: npt.NDArray[np.uint8], arrays: Iterable[npt.NDArray[Any]]) -> None:
    """Write arrays one after the other. numpy copies them on this thread: torch would start its
    threads for each of them, and wait for all: on a busy machine that takes longer than the copy.
    """
    begin = 0
    for array in arrays:
        place = staging[begin : begin + array.nbytes].view(array.dtype)
        np.copyto(place.reshape(array.shape), array)
        begin += array.nbytes
