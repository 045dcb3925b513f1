"""What each patch of a tile shows: labels for the vision encoder's own loss."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from PIL import Image

from training import scenes
from training.checkpoint import PATCH, TILE
from vlmbatch.finetune.examples import IGNORED
from vlmbatch.prepare.tiles import TilePlan

PATCHES = TILE // PATCH  # along an edge of a tile
LONGEST_WORD = 6
MOST_SHAPES = 3
PATCH_CLASSES = (
    1 + MOST_SHAPES * len(scenes.SHAPES),
    1 + MOST_SHAPES * len(scenes.COLORS),
    1 + LONGEST_WORD * len(scenes.CHARACTERS),
    1 + LONGEST_WORD * len(scenes.CHARACTERS),
)
"""A character and its place are one class, not two: so the encoder learns to say "B, second" where
a sum over patches keeps it readable.
"""
IntArray = npt.NDArray[np.int64]


def patch_labels(
    labels: npt.NDArray[np.uint8],
    things: Sequence[scenes.Thing],
    plan: TilePlan,
    pages: bool = False,
) -> IntArray:
    """Label each patch of each tile, see ``Example.patches``. The whole of a page is too small
    to be read, so nothing is asked there.
    """
    image, wide = Image.fromarray(labels), 2 * PATCHES
    whole = np.asarray(image.resize((wide, PATCHES), Image.Resampling.NEAREST))[None]
    tiles = whole
    if plan.rows:
        grid = np.asarray(
            image.resize((plan.cols * wide, plan.rows * PATCHES), Image.Resampling.NEAREST)
        )
        cut = (
            grid.reshape(plan.rows, PATCHES, plan.cols, wide)
            .transpose(0, 2, 1, 3)
            .reshape(-1, PATCHES, wide)
        )
        tiles = np.concatenate([cut, whole])
    asked = np.stack([_tile_labels(tile, things) for tile in tiles])
    if pages:
        asked[-1] = IGNORED
    return asked


def _tile_labels(tile: npt.NDArray[np.uint8], things: Sequence[scenes.Thing]) -> IntArray:
    """The classes of one tile's patches, (PATCHES², 4), from things at two places of each patch,
    (PATCHES, 2 * PATCHES).
    """
    table = np.zeros((len(things), 3), np.int64)
    for place, number in enumerate(n for n in np.unique(tile) if n):
        shape, color, character = things[number]
        if shape:
            table[number] = (
                1 + place * len(scenes.SHAPES) + shape - 1,
                1 + place * len(scenes.COLORS) + color - 1,
                0,
            )
        elif place < LONGEST_WORD:
            table[number, 2] = 1 + place * len(scenes.CHARACTERS) + character - 1
    found = table[tile]
    return np.concatenate([found[:, ::2], found[:, 1::2, 2:]], axis=-1).reshape(-1, 4)
