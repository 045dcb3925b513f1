"""Character error rate of ``ocr --per tile``: pages cut between lines and words, and by the grid.

The pages hold words and numbers that the demo model reads, in several sizes, at places where the
grid tears them ("torn"), at places where it does not ("whole"), and anywhere ("random").

python -m benchmarks.page_layout
python -m benchmarks.page_layout --pages 200 --seed 7
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import jiwer
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from training.scenes.words import random_word, text_colors
from vlmbatch.checkpoint import find_checkpoint
from vlmbatch.core import UInt8Array
from vlmbatch.job import Job
from vlmbatch.prepare.page_layout import lay_out
from vlmbatch.prepare.tiles import TileSettings, fit_picture
from vlmbatch.run.from_python import run

EDGE, PAGE, GAP = 96, 192, 22
"""Edge of the demo model's tiles, of a page of 2 x 2 of them, and least space between words, in
pixels.
"""

KINDS = ("whole", "torn", "random")
HEIGHTS = (44, 46, 48, 50)
"""Of the words, in pixels: the demo model reads one word a tile, and two of these fill no tile."""

Cut = Callable[[UInt8Array, int], list[UInt8Array]]


@dataclasses.dataclass(frozen=True)
class Page:
    """A drawn page, uint8 (PAGE, PAGE, 3), its kind and its text."""

    pixels: UInt8Array
    kind: str
    text: str


def draw_page(rng: np.random.Generator, kind: str, height: int) -> Page:
    """Draw a page of up to two lines of up to two words of two characters."""
    background, ink = text_colors(rng)
    image = Image.new("RGB", (PAGE, PAGE), background)
    canvas = ImageDraw.Draw(image)
    font = ImageFont.load_default(height / 0.73)
    words = []
    for top in _starts(rng, kind, [height, height]):
        boxes: dict[str, tuple[float, float, float]] = {}
        while len(boxes) < 2:
            word = random_word(rng, 2)
            left, upper, right, _ = font.getbbox(word)
            if EDGE / 2 < right - left < EDGE - GAP:
                boxes[word] = (left, upper, right)
        widths = [round(right - left) for left, _, right in boxes.values()]
        for left, (word, box) in zip(_starts(rng, kind, widths), boxes.items(), strict=False):
            canvas.text((left - box[0], top - box[1]), word, fill=ink, font=font)
            words.append(word)
    return Page(np.asarray(image), kind, " ".join(words))


def _starts(rng: np.random.Generator, kind: str, sizes: list[int]) -> list[int]:
    """Return where one or two words or lines of these sizes begin, GAP apart, in pixels."""
    first, second = sizes
    if kind == "whole":
        room = GAP // 2
        return [
            int(rng.integers(room, EDGE - first - room + 1)),
            EDGE + int(rng.integers(room, EDGE - second - room + 1)),
        ]
    if kind == "torn":
        start = EDGE - int(first * rng.uniform(0.3, 0.7))
        behind = start + first + GAP
        return [start, behind] if behind + second < PAGE - 2 else [start]
    start = int(rng.integers(3, PAGE - first - 2))
    behind = start + first + GAP
    if behind + second > PAGE - 3:
        return [start]
    return [start, int(rng.integers(behind, PAGE - second - 2))]


def cut_grid(page: UInt8Array, edge: int) -> list[UInt8Array]:
    """The checkpoint's grid without tiles of one colour."""
    tiles = [
        page[top : top + edge, left : left + edge]
        for top in range(0, len(page), edge)
        for left in range(0, page.shape[1], edge)
    ]
    return [tile for tile in tiles if np.ptp(tile, axis=(0, 1)).max() > 8]


def read(pages: list[Page], cut: Cut, settings: TileSettings) -> tuple[list[str], int, float]:
    """What the demo model reads on each page, tile by tile; how many tiles; seconds of cutting."""
    with tempfile.TemporaryDirectory() as name:
        folder, output = Path(name) / "tiles", Path(name) / "out.jsonl"
        folder.mkdir()
        start, count = time.perf_counter(), 0
        for number, page in enumerate(pages):
            fitted = np.asarray(fit_picture(page.pixels, settings)[0])
            for place, tile in enumerate(cut(fitted, settings.tile_edge)):
                Image.fromarray(tile).save(folder / f"{number:04}-{place:02}.png")
                count += 1
        seconds = time.perf_counter() - start
        job = {"inputs": [str(folder)], "output": str(output), "task": "ocr", "model": "demo"}
        run(Job.from_dict({**job, "detail": "low"}))
        answers: list[list[str]] = [[] for _ in pages]
        for line in output.read_text(encoding="utf-8").splitlines():
            record = json.loads(line)
            answers[int(record["id"][:4])].append(record["text"])
    return [" ".join(" ".join(parts).split()) for parts in answers], count, seconds


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--pages", type=int, default=60, help="of each kind")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    rng = np.random.default_rng(arguments.seed)
    pages = [
        draw_page(rng, kind, HEIGHTS[number % len(HEIGHTS)])
        for kind in KINDS
        for number in range(arguments.pages)
    ]
    files = find_checkpoint("demo").image_processor()
    settings = TileSettings(files["size"]["longest_edge"], files["max_image_size"]["longest_edge"])
    ways: dict[str, Cut] = {"grid": cut_grid, "layout": lay_out}
    print(f"{'':8}{''.join(f'{kind:>9}' for kind in (*KINDS, 'all'))}{'tiles':>8}{'ms/page':>9}")
    for name, cut in ways.items():
        answers, tiles, seconds = read(pages, cut, settings)
        rates = []
        for kind in (*KINDS, None):
            chosen = [i for i, page in enumerate(pages) if kind in (page.kind, None)]
            rates.append(jiwer.cer([pages[i].text for i in chosen], [answers[i] for i in chosen]))
        print(
            f"{name:8}{''.join(f'{rate:9.1%}' for rate in rates)}{tiles:8}"
            f"{seconds / len(pages) * 1000:9.2f}"
        )


if __name__ == "__main__":
    main()
