"""Pictures a second on one core: ours against transformers' image processor without torchvision.

    python -m benchmarks.prepare

Both sides get the shapes of the published 256M and 500M checkpoints (tiles of 512 pixels, a longest edge of 2048) and turn the same decoded Pillow picture into
what their engine takes: ours uint8 tiles and the ids of the prompt, transformers normalised float32 tiles. They take turns in one process.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ["OMP_NUM_THREADS"] = "1"

import numpy as np
from PIL import Image

SIZES = ((640, 480), (1920, 1080), (4000, 3000))
TILE = 512


def photo(width: int, height: int) -> np.ndarray:
    """A made-up picture, (H, W, 3) uint8; the time does not depend on what it shows."""
    rng = np.random.default_rng(0)
    return rng.integers(0, 256, (height, width, 3), dtype=np.uint8)


def our_side(folder: Path) -> Callable[[Image.Image], object]:
    """What the pipeline does with a picture, question included; the model behind it does not matter."""
    from tests.checkpoints import write_tiny_checkpoint
    from vlmbatch.checkpoint import Checkpoint
    from vlmbatch.prepare import Preparer
    from vlmbatch.records import Conversation, Pixels

    preparer = Preparer.from_checkpoint(Checkpoint(write_tiny_checkpoint(folder, tile=TILE, patch=16, scale_factor=4), "tiny", ""))
    return lambda picture: preparer.prepare(Conversation("image", Pixels([picture])), ["Describe this image in one sentence."])


def their_side() -> Callable[[Image.Image], object]:
    """transformers' processor in a normal call; it writes no prompt."""
    from transformers.models.smolvlm.image_processing_pil_smolvlm import SmolVLMImageProcessorPil

    processor = SmolVLMImageProcessorPil(size={"longest_edge": 4 * TILE}, max_image_size={"longest_edge": TILE})
    return lambda picture: processor(picture, return_tensors="np")


def measure(rounds: int) -> list[dict[str, Any]]:
    """One row a size: median pictures a second of both sides, and the ratio with its spread over the rounds."""
    with tempfile.TemporaryDirectory() as folder:
        ours, theirs = our_side(Path(folder)), their_side()
    rows = []
    for size in SIZES:
        picture = Image.fromarray(photo(*size))
        ours(picture), theirs(picture)
        times = [(_seconds(ours, picture), _seconds(theirs, picture)) for _ in range(rounds)]
        ratios = [b / a for a, b in times]
        rows.append(
            {
                "size": f"{size[0]}x{size[1]}",
                "ours_per_second": 1 / statistics.median(a for a, _ in times),
                "transformers_per_second": 1 / statistics.median(b for _, b in times),
                "ratio": statistics.median(ratios),
                "ratio_min": min(ratios),
                "ratio_max": max(ratios),
                "rounds": rounds,
            }
        )
    return rows


def _seconds(call: Callable[[Any], object], picture: Image.Image) -> float:
    start = time.perf_counter()
    call(picture)
    return time.perf_counter() - start


def main() -> None:
    """Prints a table, or JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=15, help="how often both sides take their turn")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    options = parser.parse_args()
    import torch

    torch.set_num_threads(1)
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    rows = measure(options.rounds)
    if options.json:
        json.dump(rows, sys.stdout, indent=2)
        print()
        return
    print(f"{'picture':>10}  {'ours /s':>8}  {'transformers /s':>15}  {'ratio, median (min–max)':>24}")
    for row in rows:
        spread = f"{row['ratio']:.2f} ({row['ratio_min']:.2f}–{row['ratio_max']:.2f})"
        print(f"{row['size']:>10}  {row['ours_per_second']:8.1f}  {row['transformers_per_second']:15.1f}  {spread:>24}")


if __name__ == "__main__":
    main()
