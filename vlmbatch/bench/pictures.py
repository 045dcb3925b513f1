"""Pictures that the benchmark draws: photos, scans and icons, each different and the same on every
machine.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

PHOTO_SIZES = ((640, 480), (1024, 1024), (480, 640), (1280, 720))
"""At full detail a checkpoint cuts them into 13, 17, 13 and 13 tiles."""

SCAN_SIZE = (1240, 1754)
"""A4 at 150 dots an inch."""


def photo(number: int, width: int, height: int) -> Image.Image:
    """Draw soft shapes under fine grain, RGB; a JPEG of it is about as large as a photo's."""
    rng = np.random.default_rng(number)
    coarse = Image.fromarray(rng.integers(0, 256, (12, 16, 3), dtype=np.uint8)).resize(
        (width, height), Image.Resampling.BICUBIC
    )
    grain = rng.integers(0, 256, (min(height, 512), min(width, 512)), dtype=np.uint8)
    repeats = (-(-height // grain.shape[0]), -(-width // grain.shape[1]))
    layer = Image.fromarray(np.tile(grain, repeats)[:height, :width]).convert("RGB")
    return Image.blend(coarse, layer, 0.05)


def photos(count: int, sizes: tuple[tuple[int, int], ...] = PHOTO_SIZES) -> list[Image.Image]:
    """Draw this many photos, in turns of these sizes."""
    return [photo(number, *sizes[number % len(sizes)]) for number in range(count)]


def scan(number: int) -> Image.Image:
    """Draw a page, RGB: the same letterhead on every one, a few lines of marks, and white below."""
    width, height = SCAN_SIZE
    page = Image.new("RGB", SCAN_SIZE, "white")
    draw = ImageDraw.Draw(page)
    head = np.random.default_rng(0)
    for left in range(80, width - 160, 60):
        draw.rectangle((left, 80, left + int(head.integers(20, 50)), 140), fill=(20, 40, 120))
    rng = np.random.default_rng(number + 1)
    for top in range(int(height * 0.3), int(height * 0.45), 40):
        left = 100
        while left < width - 200:
            word = int(rng.integers(20, 140))
            draw.rectangle((left, top, left + word, top + 18), fill="black")
            left += word + 16
    return page


def small_sizes(tile_edge: int) -> tuple[tuple[int, int], ...]:
    """Sizes of pictures that fit into one tile, such as thumbnails and icons."""
    return tuple(
        (max(8, tile_edge * wide // 8), max(8, tile_edge * high // 8))
        for wide, high in ((1, 1), (4, 3), (2, 2), (3, 4))
    )


def write_jpeg(path: Path, width: int, height: int) -> Path:
    """Write a photo as a JPEG file of quality 90."""
    photo(0, width, height).save(path, "JPEG", quality=90)
    return path
