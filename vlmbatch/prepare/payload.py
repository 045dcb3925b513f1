"""The payload of a prepared request: tiles, cut or still to be cut, and token ids."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from vlmbatch.core import UInt8Array
from vlmbatch.prepare.tiles import TilePlan, cut_as_planned


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class UncutPicture:
    """A picture that is resized and cut on the engine's device.

    Attributes:
        pixels: RGB, uint8, (H, W, 3), C-contiguous; nothing else holds it.
        plan: Sizes and number of its tiles; the filter is Lanczos.
        tile_edge: E, the edge of a tile, in pixels.
    """

    pixels: UInt8Array
    plan: TilePlan
    tile_edge: int

    def __len__(self) -> int:
        return self.plan.n_tiles

    @property
    def nbytes(self) -> int:
        """Bytes of the pixels."""
        return self.pixels.nbytes

    def cut(self) -> UInt8Array:
        """Cut the tiles here: uint8, (n_tiles, 3, E, E)."""
        return cut_as_planned(self.pixels, self.plan, self.tile_edge)


class UncutTiles:
    """Tiles of several pictures, some of which are still to be cut.

    Attributes:
        parts: Uncut pictures, and tiles (n, 3, E, E) that are cut already, in order.
        shape: Shape of all the tiles.
        dtype: Their dtype.
        nbytes: Bytes held until they are cut.
    """

    dtype = np.dtype(np.uint8)

    def __init__(self, parts: Sequence[UncutPicture | UInt8Array], tile_edge: int) -> None:
        self.parts = parts
        self.shape = (sum(map(len, parts)), 3, tile_edge, tile_edge)
        self.nbytes = sum(part.nbytes for part in parts)
        self._places = [(part, number) for part in parts for number in range(len(part))]

    def __len__(self) -> int:
        return self.shape[0]

    def find(self, number: int) -> tuple[UncutPicture | UInt8Array, int]:
        """The part that has a tile, and the tile's number within it."""
        return self._places[number]


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class Payload:
    """Tiles and token ids of a request, the torch engine's input.

    Attributes:
        tiles: uint8, (n_tiles, 3, E, E); none for text alone. ``UncutTiles`` if the preparer leaves
            pictures to the device.
        prefix_ids: Token ids that all questions share: the chat opening and the media.
        question_ids: For each question the token ids that follow the prefix.
        seeds: For each question its sampling seed.
        tile_keys: For each tile a digest of its pixels, or of its picture's pixels and its place
            there, to find equal tiles; see digests.py.
    """

    tiles: UInt8Array | UncutTiles
    prefix_ids: Sequence[int]
    question_ids: Sequence[Sequence[int]]
    seeds: Sequence[int]
    tile_keys: Sequence[bytes] = ()

    @property
    def prompt_tokens(self) -> int:
        """Number of tokens of the longest prompt."""
        return len(self.prefix_ids) + max(map(len, self.question_ids))
