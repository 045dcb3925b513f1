"""One to three shapes in a row or a column, and every question about them."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw

from training.scenes.base import NOTHING, Question, Scene, harder, with_article
from vlmbatch.core import UInt8Array
from vlmbatch.selftest.scenes import COLORS

SHAPES = ("circle", "square", "triangle", "star")
GRID = (
    ("Top left.", "Top.", "Top right."),
    ("Left.", "Center.", "Right."),
    ("Bottom left.", "Bottom.", "Bottom right."),
)
OPPOSITE = {"to the left of": "to the right of", "above": "below"}


@dataclasses.dataclass(frozen=True)
class Shape:
    """One shape: its kind and colour by name, its centre and radius in pixels, its turn in
    degrees.
    """

    kind: str
    color: str
    x: float
    y: float
    radius: float
    turn: float = 0.0

    @property
    def name(self) -> str:
        return f"{self.color} {self.kind}"


def random_shapes(
    rng: np.random.Generator, width: int, height: int, hard: float = 0.0
) -> tuple[list[Shape], str]:
    """One to three shapes that fit a picture, in reading order, and the relation between
    neighbours; ``hard`` as for ``random_scene``.
    """
    count = harder(rng, hard, lambda: int(rng.choice([1, 2, 3], p=[0.34, 0.36, 0.3])))
    short = min(width, height)
    looks = [(str(rng.choice(SHAPES)), str(rng.choice(list(COLORS)))) for _ in range(count)]
    while len(set(looks)) < count:  # equal twins would make "the red circle" mean two things
        looks = [(str(rng.choice(SHAPES)), str(rng.choice(list(COLORS)))) for _ in range(count)]
    horizontal = bool(rng.random() < 0.5)
    along, across = (width, height) if horizontal else (height, width)
    if count == 1:
        radius = rng.uniform(0.11, 0.165) * short
        if rng.random() < 0.3:
            radius = rng.uniform(0.2, 0.4) * short
            centre = (width * rng.uniform(0.48, 0.52), height * rng.uniform(0.48, 0.52))
        else:
            col, row = rng.integers(3), rng.integers(3)
            centre = (
                width * ((col + 0.5) / 3 + rng.uniform(-0.03, 0.03)),
                height * ((row + 0.5) / 3 + rng.uniform(-0.03, 0.03)),
            )
        centres = [centre]
        radii = [radius]
    else:
        largest = min(0.42 * along / count, 0.3 * short)
        radii = [rng.uniform(0.65, 1.0) * largest for _ in range(count)]
        step = along / count
        positions = [
            step * (i + 0.5) + rng.uniform(-0.5, 0.5) * (step / 2 - radii[i]) for i in range(count)
        ]
        base = across * rng.uniform(0.35, 0.65)
        spread = min(0.12 * across, 0.25 * step)
        sides = [
            float(
                np.clip(
                    base + rng.uniform(-spread, spread), radii[i] * 1.05, across - radii[i] * 1.05
                )
            )
            for i in range(count)
        ]
        centres = [(p, s) if horizontal else (s, p) for p, s in zip(positions, sides, strict=True)]
    shapes = [
        Shape(kind, color, x, y, r, float(rng.uniform(-12, 12)))
        for (kind, color), (x, y), r in zip(looks, centres, radii, strict=True)
    ]
    return shapes, "to the left of" if horizontal else "above"


def shape_scene(
    shapes: Sequence[Shape],
    relation: str,
    size: tuple[int, int],
    background: tuple[int, int, int],
    rng: np.random.Generator | None = None,
) -> Scene:
    """Draws shapes and says what is true about them.

    Args:
        shapes: In order of the relation.
        relation: ``to the left of`` or ``above``.
        size: (width, height) in pixels.
        background: RGB.
        rng: Varies colours a little; None draws the pure ones.
    """
    pixels, labels = draw_shapes(shapes, size, background, rng)
    caption = f" {relation} a".join(f" {s.name}" for s in shapes)
    caption = with_article(f"A{caption}.")
    things = (
        NOTHING,
        *((SHAPES.index(s.kind) + 1, list(COLORS).index(s.color) + 1, 0) for s in shapes),
    )
    return Scene(
        pixels, caption, "No text.", tuple(shape_questions(shapes, relation, size)), labels, things
    )


def shape_questions(
    shapes: Sequence[Shape], relation: str, size: tuple[int, int]
) -> list[Question]:
    """Every question about shapes whose answer is one answer."""
    found: list[Question] = [("How many shapes are there?", str(len(shapes)))]
    for kind in SHAPES:
        same = [s for s in shapes if s.kind == kind]
        found.append((f"How many {kind}s are there?", str(len(same))))
        if len(same) == 1:
            found.append((f"What color is the {kind}?", f"{same[0].color.capitalize()}."))
    for color in COLORS:
        same = [s for s in shapes if s.color == color]
        found.append((f"How many {color} shapes are there?", str(len(same))))
        if len(same) == 1:
            found.append((f"What shape is {color}?", f"{same[0].kind.capitalize()}."))
    for shape in shapes:
        found.append((f"Is there a {shape.name}?".replace("a orange", "an orange"), "Yes."))
    for i, shape in enumerate(shapes):
        if len(shapes) > 1:
            before = f"A {shapes[i - 1].name}." if i else "Nothing."
            after = f"A {shapes[i + 1].name}." if i + 1 < len(shapes) else "Nothing."
            verb = "What is"
            nxt = "directly " if len(shapes) > 2 else ""
            found.append((f"{verb} {nxt}{relation} the {shape.name}?", with_article(before)))
            found.append(
                (f"{verb} {nxt}{OPPOSITE[relation]} the {shape.name}?", with_article(after))
            )
    if len(shapes) == 1:
        col, row = (min(2, int(3 * shapes[0].x / size[0])), min(2, int(3 * shapes[0].y / size[1])))
        found.append((f"Where is the {shapes[0].kind}?", GRID[row][col]))
    return found


def absent_questions(
    shapes: Sequence[Shape], rng: np.random.Generator, count: int
) -> list[Question]:
    """Questions for shapes that are not there, made from colours and kinds that are (so that
    neither alone gives it away).
    """
    names = {s.name for s in shapes}
    colors = [s.color for s in shapes] + list(rng.choice(list(COLORS), 2))
    kinds = [s.kind for s in shapes] + list(rng.choice(SHAPES, 2))
    absent = sorted({f"{c} {k}" for c in colors for k in kinds} - names)
    picked = rng.choice(absent, min(count, len(absent)), replace=False)
    return [(f"Is there a {name}?".replace("a orange", "an orange"), "No.") for name in picked]


def shape_named(question: str) -> Shape:
    """The shape, placed nowhere, that a question ends in."""
    color, kind = question.rstrip("?").split()[-2:]
    return Shape(kind, color, 0, 0, 0)


def draw_shapes(
    shapes: Sequence[Shape],
    size: tuple[int, int],
    background: tuple[int, int, int],
    rng: np.random.Generator | None,
) -> tuple[UInt8Array, UInt8Array]:
    """Pixels, uint8 (H, W, 3), and labels, uint8 (H, W), of shapes; edges are smoothed by drawing
    larger and scaling down.
    """
    scale = 3 if max(size) < 200 else 2 if max(size) < 500 else 1
    large = (size[0] * scale, size[1] * scale)
    image, labels = Image.new("RGB", large, background), Image.new("L", size, 0)
    for i, shape in enumerate(shapes):
        color = COLORS[shape.color]
        if rng is not None:
            color = tuple(int(np.clip(c + rng.integers(-8, 9), 0, 255)) for c in color)  # type: ignore[assignment]
        _draw(ImageDraw.Draw(image), shape, scale, color)
        _draw(ImageDraw.Draw(labels), shape, 1, i + 1)
    if scale > 1:
        image = image.resize(size, Image.Resampling.BOX)
    return np.asarray(image), np.asarray(labels)


def _draw(
    canvas: ImageDraw.ImageDraw, shape: Shape, scale: int, fill: tuple[int, int, int] | int
) -> None:
    x, y, r = shape.x * scale, shape.y * scale, shape.radius * scale
    if shape.kind == "circle":
        canvas.ellipse((x - r, y - r, x + r, y + r), fill=fill)
        return
    corners = {"square": 4, "triangle": 3, "star": 10}[shape.kind]
    start = math.radians(shape.turn) - (math.pi / 4 if shape.kind == "square" else math.pi / 2)
    radii = [r * 0.45 if shape.kind == "star" and i % 2 else r for i in range(corners)]
    angles = [start + 2 * math.pi * i / corners for i in range(corners)]
    canvas.polygon(
        [(x + q * math.cos(a), y + q * math.sin(a)) for q, a in zip(radii, angles, strict=True)],
        fill=fill,
    )
