"""Resize pictures on a device with the bits of Pillow, and cut them into tiles.

prepare/lanczos.py says why products of float32 matrices are exact here. A pass is eight kernels,
for any number of pictures of one size.
"""

from __future__ import annotations

import collections
import dataclasses
import itertools
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from vlmbatch.prepare import UncutPicture
from vlmbatch.prepare.lanczos import BLOCK, Axis, Pass, Size, resize_passes, working_bytes
from vlmbatch.prepare.tiles import TilePlan

KEPT_BYTES = 32 << 20
"""Most bytes of matrices that stay for later calls: those of about 40 sizes."""


@dataclasses.dataclass(frozen=True)
class _Matrices:
    """An axis on the device: input pixels (blocks * window), weights (2, blocks, window, BLOCK)."""

    inputs: Tensor
    weights: Tensor


class DeviceResizer:
    """Resizes and cuts pictures on a device, with matrices that were sent there."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._matrices: collections.OrderedDict[tuple[int, int], _Matrices] = (
            collections.OrderedDict()
        )

    def missing(self, pictures: Sequence[UncutPicture]) -> list[Axis]:
        """The axes of these pictures that are not on the device."""
        found = {}
        for picture in pictures:
            for each in _passes(_sizes(picture)):
                key = each.axis.in_size, each.axis.out_size
                if key in self._matrices:
                    self._matrices.move_to_end(key)
                else:
                    found[key] = each.axis
        return list(found.values())

    def add(self, axis: Axis, inputs: Tensor, places: Tensor, weights: Tensor) -> None:
        """Make the matrices of an axis of its three arrays, which are on the device."""
        dense = torch.zeros(
            (2, axis.blocks * axis.window * BLOCK), dtype=torch.float32, device=self._device
        )
        dense.index_copy_(1, places, weights)
        shape = 2, axis.blocks, axis.window, BLOCK
        # The arrays are parts of an upload; what stays is a copy.
        self._matrices[axis.in_size, axis.out_size] = _Matrices(inputs.clone(), dense.view(shape))

    def trim(self, most_bytes: int = KEPT_BYTES) -> None:
        """Drop the matrices that were used the longest time ago."""
        held = sum(each.weights.nbytes for each in self._matrices.values())
        while self._matrices and held > most_bytes:
            held -= self._matrices.popitem(last=False)[1].weights.nbytes

    def cut(self, pixels: Tensor, plan: TilePlan, tiles: Tensor) -> None:
        """Cut pictures of one size.

        Args:
            pixels: uint8, (n, H, W, 3).
            plan: The tiles of each of them.
            tiles: Receives them: uint8, (n, n_tiles, 3, E, E).
        """
        edge = tiles.shape[-1]
        sizes = plan.sizes((pixels.shape[2], pixels.shape[1]), edge)
        x = pixels.permute(0, 3, 1, 2)
        if plan.rows:
            x = self._resize(x, sizes[:-1])
            grid = x.unflatten(2, (plan.rows, edge)).unflatten(4, (plan.cols, edge))
            places = tiles[:, :-1].unflatten(1, (plan.rows, plan.cols))
            places.copy_(grid.permute(0, 2, 4, 1, 3, 5))
            sizes = sizes[-2:]
        tiles[:, -1].copy_(self._resize(x, sizes))

    def _resize(self, x: Tensor, sizes: Sequence[Size]) -> Tensor:
        """Resize pictures, uint8 (n, 3, H, W), to one size after the other."""
        for each in _passes(sizes):
            x = self._resize_axis(x, each)
        return x

    def _resize_axis(self, x: Tensor, each: Pass) -> Tensor:
        axis, (pictures, _, height, width) = each.axis, x.shape
        kept = self._matrices[axis.in_size, axis.out_size]
        if each.is_wide:
            windows = x.index_select(3, kept.inputs).float()
            windows = windows.view(-1, axis.blocks, axis.window).transpose(0, 1)
            sums = torch.bmm(windows, kept.weights[0]).floor_()
            sums.baddbmm_(windows, kept.weights[1], beta=axis.scale)
            sums = sums.transpose(0, 1)
            shape = pictures, 3, height, axis.blocks * BLOCK
        else:
            windows = x.index_select(2, kept.inputs).float().view(-1, axis.window, width)
            weights = kept.weights.transpose(2, 3).unsqueeze(1)
            low, high = weights.expand(2, 3 * pictures, -1, -1, -1).flatten(1, 2)
            sums = torch.bmm(low, windows).floor_()
            sums.baddbmm_(high, windows, beta=axis.scale)
            shape = pictures, 3, axis.blocks * BLOCK, width
        found = torch.empty(sums.shape, dtype=torch.uint8, device=self._device)
        found.copy_(sums.add_(0.5).clamp_(0, 255))  # what is behind the point is dropped
        found = found.view(shape)
        return found[..., : axis.out_size] if each.is_wide else found[:, :, : axis.out_size]


def picture_bytes(picture: UncutPicture) -> int:
    """Bytes that cutting a picture takes on the device at most."""
    return max((working_bytes(*two) for two in itertools.pairwise(_sizes(picture))), default=1)


def _sizes(picture: UncutPicture) -> list[Size]:
    height, width = picture.pixels.shape[:2]
    return picture.plan.sizes((width, height), picture.tile_edge)


def _passes(sizes: Sequence[Size]) -> Iterator[Pass]:
    for size, to in itertools.pairwise(sizes):
        yield from resize_passes(size, to)
