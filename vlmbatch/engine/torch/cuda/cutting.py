"""The tiles of an encoder call, from what was sent to the device: tiles that were cut on the CPU,
and pictures that are cut there.
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Iterator, Sequence
from typing import Any

import numpy.typing as npt
import torch
from torch import Tensor

from vlmbatch.core import UInt8Array
from vlmbatch.engine.torch.cuda.resizing import DeviceResizer, picture_bytes
from vlmbatch.engine.torch.device import is_out_of_memory
from vlmbatch.prepare import Payload, UncutPicture, UncutTiles
from vlmbatch.prepare.lanczos import Axis

logger = logging.getLogger(__name__)

Tiles = Sequence[tuple[Payload, int]]
"""Tiles, each as a payload and its index there."""
Group = list[UncutPicture]
"""Pictures of one size and plan, which are cut together."""


@dataclasses.dataclass(frozen=True)
class Parcel:
    """Things that an encoder call needs on the device and that are not there.

    Attributes:
        tiles: Tiles that are cut already, in order.
        groups: Pictures.
        axes: What resizing them needs.
    """

    tiles: list[UInt8Array]
    groups: list[Group]
    axes: list[Axis]

    def items(self) -> Iterator[list[npt.NDArray[Any]]]:
        """Arrays, those of one item to lie without a gap: the tiles, the pictures of each group,
        and the three arrays of each axis.
        """
        yield self.tiles
        for group in self.groups:
            yield [picture.pixels for picture in group]
        for axis in self.axes:
            yield from ([array] for array in (axis.inputs, axis.places, axis.weights))


class TileCutter:
    """Cuts pictures on a device, each once: tiles that are not asked for yet are kept for the next
    call.
    """

    def __init__(self, device: torch.device, limit_bytes: int) -> None:
        """``limit_bytes`` is the most memory that resizing may take."""
        self._device, self._limit_bytes = device, limit_bytes
        self._resizer = DeviceResizer(device)
        self._kept: dict[UncutPicture, tuple[Tensor, int]] = {}

    def clear(self) -> None:
        """Drop kept tiles, and what resizing needs."""
        self._kept.clear()
        self._resizer.trim(0)

    def parcel(self, wanted: Tiles) -> Parcel:
        """Return what is to be sent for these tiles."""
        tiles, groups = [], dict[Any, Group]()
        chosen: dict[UncutPicture, None] = {}
        for payload, number in wanted:
            part, place = _find(payload, number)
            if not isinstance(part, UncutPicture):
                tiles.append(part[place])
            elif place < self._first_kept(part):
                chosen[part] = None
        for picture in chosen:
            key = picture.pixels.shape, picture.plan, picture.tile_edge
            groups.setdefault(key, []).append(picture)
        return Parcel(tiles, list(groups.values()), self._resizer.missing(list(chosen)))

    def open(self, wanted: Tiles, parcel: Parcel, sent: Sequence[Tensor]) -> Tensor:
        """Return tiles on the device, uint8 (n, 3, E, E).

        Args:
            wanted: The tiles.
            parcel: What was sent for them.
            sent: Its items on the device, uint8 vectors.
        """
        shape = wanted[0][0].tiles.shape[1:]
        pieces = iter(sent)
        cut = next(pieces).view(-1, *shape)
        pixels = [next(pieces) for _ in parcel.groups]
        for axis in parcel.axes:
            inputs, places, weights = next(pieces), next(pieces), next(pieces)
            parts = inputs.view(torch.int64), places.view(torch.int64), weights.view(torch.float32)
            self._resizer.add(axis, *parts[:2], parts[2].view(2, -1))
        held = dict(self._kept)
        if parcel.groups:
            held.update(self._cut(parcel.groups, pixels))
            self._resizer.trim()
        found = _gather(wanted, cut, held)
        self._keep(wanted, held)
        return found

    def _first_kept(self, picture: UncutPicture) -> int:
        """The first tile of a picture that is kept from the last call; all others follow it."""
        return -self._kept[picture][1] if picture in self._kept else len(picture)

    def _cut(
        self, groups: Sequence[Group], pixels: Sequence[Tensor]
    ) -> Iterator[tuple[UncutPicture, tuple[Tensor, int]]]:
        """Cut pictures. Yield for each the tensor that has its tiles, and its first place there."""
        count = sum(len(picture) for group in groups for picture in group)
        edge, begin = groups[0][0].tile_edge, 0
        whole = torch.empty((count, 3, edge, edge), dtype=torch.uint8, device=self._device)
        for group, sent in zip(groups, pixels, strict=True):
            each = len(group[0])
            tiles = whole[begin : begin + each * len(group)].unflatten(0, (-1, each))
            self._cut_group(group, sent.view(-1, *group[0].pixels.shape), tiles)
            for number, picture in enumerate(group):
                yield picture, (whole, begin + each * number)
            begin += each * len(group)

    def _cut_group(self, group: Group, pixels: Tensor, tiles: Tensor) -> None:
        """Cut pictures of one size, as many at once as memory allows."""
        done = 0
        while done < len(group):
            at_once = max(1, self._limit_bytes // picture_bytes(group[0]))
            some = slice(done, done + at_once)
            if self._is_cut(pixels[some], group[0], tiles[some]):
                done += at_once
            elif at_once > 1:
                self._limit_bytes = 0  # one at a time from now on
            else:
                tiles[done].copy_(torch.from_numpy(group[done].cut()))
                done += 1

    def _is_cut(self, pixels: Tensor, picture: UncutPicture, tiles: Tensor) -> bool:
        """Cut pictures unless memory runs out. Return True if they are cut."""
        try:
            self._resizer.cut(pixels, picture.plan, tiles)
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            logger.debug("out of memory while %d pictures are resized: %s", len(pixels), error)
            return False
        return True

    def _keep(self, wanted: Tiles, held: dict[UncutPicture, tuple[Tensor, int]]) -> None:
        """Keep the tiles behind the last one that was wanted of each picture; drop others."""
        last: dict[UncutPicture, int] = {}
        for payload, number in wanted:
            part, place = _find(payload, number)
            if isinstance(part, UncutPicture):
                last[part] = max(place, last.get(part, 0))
        before, self._kept = self._kept, {}
        for picture, number in last.items():
            tiles, begin = held[picture]
            if number + 1 < len(picture):
                rest = tiles[begin + number + 1 : begin + len(picture)]
                if picture not in before or tiles is not before[picture][0]:
                    rest = rest.clone()  # so that the tiles of the whole call can go
                self._kept[picture] = rest, -(number + 1)


def _find(payload: Payload, number: int) -> tuple[UncutPicture | UInt8Array, int]:
    """The picture or the cut tiles that have a tile, and its number there."""
    if isinstance(payload.tiles, UncutTiles):
        return payload.tiles.find(number)
    return payload.tiles, number


def _gather(wanted: Tiles, cut: Tensor, held: dict[UncutPicture, tuple[Tensor, int]]) -> Tensor:
    """Tiles in the order in which they are wanted; those that lie so already are not copied."""
    runs: list[tuple[Tensor, int, int]] = []
    num_cut = 0
    for payload, number in wanted:
        part, place = _find(payload, number)
        if isinstance(part, UncutPicture):
            tiles, begin = held[part]
            place += begin
        else:
            tiles, place = cut, num_cut
            num_cut += 1
        if runs and runs[-1][0] is tiles and runs[-1][2] == place:
            runs[-1] = (*runs[-1][:2], place + 1)
        else:
            runs.append((tiles, place, place + 1))
    pieces = [tiles[begin:end] for tiles, begin, end in runs]
    return pieces[0] if len(pieces) == 1 else torch.cat(pieces)
