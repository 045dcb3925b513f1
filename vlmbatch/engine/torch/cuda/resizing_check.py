"""A check, when an engine is opened on a GPU, that it resizes pictures with the bits of Pillow."""

from __future__ import annotations

import numpy as np
import torch

from vlmbatch.engine.torch.cuda.uploads import TileUploads
from vlmbatch.prepare import Payload, UncutPicture, UncutTiles
from vlmbatch.prepare.tiles import TileSettings, plan_tiles

CHECKED = (
    *(((61, 47), 256, True), ((640, 480), 320, True), ((96, 64), 96, False)),
    *(((20, 400), 128, True), ((3, 500), 192, True), ((400, 3), 64, False)),
    *(((64, 50), 64, False), ((256, 128), 256, True), ((131, 190), 190, True)),
)
"""Pictures that are compared: size, longest edge, and whether tiles are cut. Enlarged and reduced,
heights first, one pass only, extreme ratios.
"""
CHECKED_EDGE = 64


@torch.inference_mode()
def find_resizing_fault(device: torch.device) -> str:
    """Send a few drawn pictures to a device, and cut them there and with Pillow. Return why the
    device cannot be used; empty if the bits are the same.
    """
    drawn = np.random.default_rng(0)
    uploads = TileUploads(device)
    for (width, height), longest, split in CHECKED:
        settings = TileSettings(longest, CHECKED_EDGE, split)
        plan = plan_tiles(width, height, settings)
        pixels = drawn.integers(0, 256, (2, height, width, 3), dtype=np.uint8)
        pixels[1] = 255 * (pixels[1] > 127)  # sums far outside of a byte
        pictures = [UncutPicture(each, plan, CHECKED_EDGE) for each in pixels]
        payload = Payload(UncutTiles(pictures, CHECKED_EDGE), [], [], [])
        wanted = np.concatenate([picture.cut() for picture in pictures])
        try:
            found = uploads.take([(payload, number) for number in range(len(wanted))]).cpu()
        except Exception as error:  # whatever a device refuses, the CPU can do
            return f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
        if wrong := int((found != torch.from_numpy(wanted)).sum()):
            return (
                f"{wrong} of {wanted.size} bytes of pictures of {width} x {height} differ from "
                "Pillow's"
            )
    return ""
