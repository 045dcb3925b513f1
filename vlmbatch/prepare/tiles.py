"""Cut pixels into tiles, bit for bit as the checkpoint's own image processor cuts them.

The arithmetic follows transformers' ``SmolVLMImageProcessorPil``, with its truncation and rounding.
Tiles stay uint8, a quarter of float32's bytes; the engine scales them to [-1, 1] on the device.
"""

from __future__ import annotations

import dataclasses
import math
import time

import numpy as np
from PIL import Image

from vlmbatch.core import Picture, UInt8Array, picture_size
from vlmbatch.prepare.compiled import CompiledResizer
from vlmbatch.prepare.resize import Resizer

MAX_EDGE = 4096
"""Maximum edge after the first resize (``MAX_IMAGE_SIZE`` in transformers' SmolVLM image
processors).
"""


@dataclasses.dataclass(frozen=True)
class TileSettings:
    """Settings of the checkpoint's image processor.

    Attributes:
        longest_edge: The longest edge of the picture after the first resize, in pixels.
        tile_edge: E, the edge of a tile, in pixels.
        split: Whether the picture is cut into tiles; otherwise it becomes one tile.
        resize: Whether to do the first resize (``do_resize``).
        resample: Pillow's number of the filter (1 is Lanczos).
    """

    longest_edge: int
    tile_edge: int
    split: bool = True
    resize: bool = True
    resample: int = Image.Resampling.LANCZOS

    def native(self, width: int, height: int) -> TileSettings:
        """Return settings whose longest edge is the picture's own, rounded up to whole tiles and
        at most the checkpoint's.
        """
        own = math.ceil(max(width, height) / self.tile_edge) * self.tile_edge
        return dataclasses.replace(self, longest_edge=min(self.longest_edge, own))


@dataclasses.dataclass(frozen=True)
class TilePlan:
    """Sizes and number of the tiles of a picture.

    Attributes:
        resized: (width, height) after the first resize.
        fitted: (width, height) after the second resize; whole tiles.
        rows: Rows of tiles; 0 when the picture is one tile without a global view.
        cols: Columns of tiles; 0 when the picture is one tile without a global view.
    """

    resized: tuple[int, int]
    fitted: tuple[int, int]
    rows: int
    cols: int

    @property
    def n_tiles(self) -> int:
        """Number of tiles, the global view included."""
        return self.rows * self.cols + 1

    def sizes(self, size: tuple[int, int], edge: int) -> list[tuple[int, int]]:
        """The sizes that a picture of a size has one after the other: its own, resized, fitted, and
        the global view's, without those that change nothing.
        """
        found = [size]
        for to in (self.resized, self.fitted, (edge, edge)):
            found += [to] if to != found[-1] else []
        return found


def plan_tiles(width: int, height: int, settings: TileSettings) -> TilePlan:
    """Plan the tiles of a picture from its size alone.

    Args:
        width: Width of the upright picture in pixels, at least 1.
        height: Height of the upright picture in pixels, at least 1.
        settings: The checkpoint's settings.
    """
    edge = settings.tile_edge
    resized = (
        _longest_edge_size(width, height, settings.longest_edge)
        if settings.resize
        else (width, height)
    )
    if not settings.split:
        return TilePlan(resized, (edge, edge), 0, 0)
    fitted = _whole_tiles_size(*resized, edge)
    cols, rows = fitted[0] // edge, fitted[1] // edge
    if rows == 1 and cols == 1:
        rows = cols = 0
    return TilePlan(resized, fitted, rows, cols)


def fit_picture(picture: Picture, settings: TileSettings) -> tuple[Image.Image, TilePlan]:
    """Resize a picture to whole tiles.

    Args:
        picture: RGB.
        settings: The checkpoint's settings.

    Returns:
        The picture, and its plan.
    """
    plan = plan_tiles(*picture_size(picture), settings)
    return _fit(picture, plan, Image.Resampling(settings.resample)), plan


def cut_tiles(
    picture: Picture, settings: TileSettings, compiled: CompiledResizer | None = None
) -> tuple[UInt8Array, TilePlan]:
    """Cut a picture into tiles, row by row, the global view last.

    Args:
        picture: RGB.
        settings: The checkpoint's settings.
        compiled: What resizes as soon as it can; until then, and by default, Pillow.

    Returns:
        Tiles, uint8, (n_tiles, 3, E, E), and their plan.
    """
    plan = plan_tiles(*picture_size(picture), settings)
    edge, resample = settings.tile_edge, Image.Resampling(settings.resample)
    if compiled is None or resample != Image.Resampling.LANCZOS:
        return cut_as_planned(picture, plan, edge, resample), plan
    resizer = compiled.get()
    if resizer is None:
        started = time.thread_time()
        tiles = cut_as_planned(picture, plan, edge)
        compiled.add_pillow_seconds(time.thread_time() - started)
    else:
        tiles = np.empty((plan.n_tiles, 3, edge, edge), np.uint8)
        _fill_fast(tiles, picture, plan, resizer)
    return tiles, plan


def cut_as_planned(
    picture: Picture,
    plan: TilePlan,
    edge: int,
    resample: Image.Resampling = Image.Resampling.LANCZOS,
) -> UInt8Array:
    """Cut a picture into tiles of a plan with Pillow; see ``cut_tiles``."""
    tiles = np.empty((plan.n_tiles, 3, edge, edge), np.uint8)
    image = _fit(picture, plan, resample)
    if plan.rows:
        grid = np.asarray(image).reshape(plan.rows, edge, plan.cols, edge, 3)
        tiles[:-1].reshape(plan.rows, plan.cols, 3, edge, edge)[:] = grid.transpose(0, 2, 4, 1, 3)
        image = image.resize((edge, edge), resample)
    tiles[-1] = np.asarray(image).transpose(2, 0, 1)
    return tiles


def _fit(picture: Picture, plan: TilePlan, resample: Image.Resampling) -> Image.Image:
    image = Image.fromarray(picture) if isinstance(picture, np.ndarray) else picture
    if plan.resized != image.size:
        image = image.resize(plan.resized, resample)
    if plan.fitted != image.size:
        image = image.resize(plan.fitted, resample)
    return image


def _fill_fast(tiles: UInt8Array, picture: Picture, plan: TilePlan, resizer: Resizer) -> None:
    """Fill in the tiles with the compiled routine, which writes them where they belong."""
    overview = tiles[np.newaxis, -1:]
    grid = tiles[:-1].reshape(plan.rows, plan.cols, *tiles.shape[1:]) if plan.rows else overview
    if plan.resized in (plan.fitted, picture_size(picture)):
        resizer.picture(picture, grid)
    else:
        width, height = plan.resized
        resized = np.empty((1, 1, 3, height, width), np.uint8)
        resizer.picture(picture, resized)
        resizer.grid(resized, grid)
    if plan.rows:
        resizer.grid(grid, overview)


def _longest_edge_size(width: int, height: int, longest: int) -> tuple[int, int]:
    """Scale the longest edge to ``longest``, and the other by ratio, truncated and made even."""
    ratio = width / height
    if width >= height:
        width, height = longest, int(longest / ratio)
        height += height % 2
    else:
        width, height = int(longest * ratio), longest
        width += width % 2
    width, height = max(width, 1), max(height, 1)
    ratio = width / height
    if width >= height and width > MAX_EDGE:
        width, height = MAX_EDGE, int(MAX_EDGE / ratio)
    elif height > width and height > MAX_EDGE:
        width, height = int(MAX_EDGE * ratio), MAX_EDGE
    return max(width, 1), max(height, 1)


def _whole_tiles_size(width: int, height: int, edge: int) -> tuple[int, int]:
    """Round the long side up to whole tiles, then the short one, which follows by ratio."""
    ratio = width / height
    if width >= height:
        width = math.ceil(width / edge) * edge
        height = math.ceil(int(width / ratio) / edge) * edge
    else:
        height = math.ceil(height / edge) * edge
        width = math.ceil(int(height * ratio) / edge) * edge
    return width, height
