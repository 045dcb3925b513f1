"""Clips of one shape that moves."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from training.scenes.base import NOTHING, Clip, random_background, with_article
from training.scenes.shapes import SHAPES, Shape, draw_shapes
from vlmbatch.selftest.scenes import COLORS

DIRECTIONS = {"left": (-1, 0), "right": (1, 0), "up": (0, -1), "down": (0, 1)}


def random_clip(
    rng: np.random.Generator, *, longest: tuple[int, int] = (64, 320), max_frames: int = 8
) -> Clip:
    """A random clip: one shape moves left, right, up or down at an even pace."""
    edge = round(math.exp(rng.uniform(math.log(longest[0]), math.log(longest[1]))))
    ratio = float(rng.choice([1.0, 4 / 3, 16 / 9, 3 / 4]))
    size = (edge, round(edge / ratio)) if ratio >= 1 else (round(edge * ratio), edge)
    count = int(rng.integers(2, max_frames + 1))
    step = float(rng.choice([0.25, 0.5, 1.0, 1.0, 2.0, rng.uniform(0.1, 5)]))
    start = float(rng.choice([0.0, 0.0, rng.uniform(0, 200)]))
    times = tuple(start + step * i for i in range(count))
    duration = times[-1] + step + float(rng.choice([0.0, rng.uniform(0, 100)]))
    kind, color, direction = (
        str(rng.choice(SHAPES)),
        str(rng.choice(list(COLORS))),
        str(rng.choice(list(DIRECTIONS))),
    )
    return moving_clip(kind, color, direction, size, times, duration, rng)


def moving_clip(
    kind: str,
    color: str,
    direction: str,
    size: tuple[int, int],
    times_seconds: Sequence[float],
    duration_seconds: float,
    rng: np.random.Generator,
    background: tuple[int, int, int] | None = None,
    travel: tuple[float, float] | None = None,
) -> Clip:
    """Draws a shape on its way.

    Args:
        kind: One of ``SHAPES``.
        color: One of ``COLORS``.
        direction: One of ``DIRECTIONS``.
        size: (width, height) in pixels.
        times_seconds: Presentation times of the frames.
        duration_seconds: Of the whole video.
        rng: Chooses what is not given.
        background: RGB, or None to choose.
        travel: Where on its way, 0 to 1, the shape is in the first and the last frame, or None to
            choose.
    """
    width, height = size
    radius = float(rng.uniform(0.12, 0.24)) * min(size)
    background = background or random_background(rng, [color])
    dx, dy = DIRECTIONS[direction]
    begin, end = travel or _travel(rng)
    side = float(rng.uniform(0.3, 0.7))
    turn = float(rng.uniform(-12, 12))
    frames, labels = [], []
    for i in range(len(times_seconds)):
        way = begin + (end - begin) * i / max(1, len(times_seconds) - 1)
        way = way if dx + dy > 0 else 1 - way
        x = radius * 1.1 + way * (width - 2.2 * radius) if dx else side * width
        y = radius * 1.1 + way * (height - 2.2 * radius) if dy else side * height
        pixels, label = draw_shapes(
            [Shape(kind, color, x, y, radius, turn)], size, background, None
        )
        frames.append(pixels)
        labels.append(label)
    name = f"{color} {kind}"
    questions = (
        (f"Which way does the {kind} move?", f"{direction.capitalize()}."),
        ("Which way does it move?", f"{direction.capitalize()}."),
        (f"What color is the {kind}?", f"{color.capitalize()}."),
        ("What shape is moving?", f"{kind.capitalize()}."),
    )
    things = (NOTHING, (SHAPES.index(kind) + 1, list(COLORS).index(color) + 1, 0))
    return Clip(
        tuple(frames),
        tuple(times_seconds),
        duration_seconds,
        with_article(f"A {name} moves {direction}."),
        questions,
        tuple(labels),
        things,
    )


def _travel(rng: np.random.Generator) -> tuple[float, float]:
    length = float(rng.uniform(0.35, 1.0))
    begin = float(rng.uniform(0, 1 - length))
    return begin, begin + length
