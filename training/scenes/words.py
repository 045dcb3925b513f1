"""A word or number, or a page of several, in Pillow's built-in font."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from training.scenes.base import BACKGROUNDS, NOTHING, Scene, Thing, harder
from vlmbatch.selftest.scenes import COLORS

WEIGHTS = (0.0, 0.0, 0.02, 0.04)
CHARACTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789"


def random_text(rng: np.random.Generator, edge: int, hard: float = 0.0) -> Scene:
    """A random word or number of one to six characters in a picture with a given longest edge;
    ``hard`` as for ``random_scene``.
    """
    longest = 6 if edge >= 128 else 4 if edge >= 90 else 3
    text = random_word(rng, harder(rng, hard, lambda: int(rng.integers(1, longest + 1))))
    ratio = math.exp(rng.uniform(math.log(0.9), math.log(2.4)))
    width, height = (edge, round(edge / ratio)) if ratio >= 1 else (round(edge * ratio), edge)
    background, ink = text_colors(rng)
    smallest = (
        0.35 if len(text) < 4 else 0.6
    )  # so that as one tile a character is at least 8 pixels wide
    return text_scene(
        text,
        (width, height),
        background,
        ink,
        fill=float(rng.uniform(smallest, 0.95)),
        offset=(rng.uniform(0.05, 0.95), rng.uniform(0.05, 0.95)),
        weight=float(rng.choice(WEIGHTS)),
    )


def random_word(rng: np.random.Generator, length: int) -> str:
    """A random word in capitals, or a number; never one that could be both."""
    while True:
        pool = CHARACTERS[26:] if rng.random() < 0.5 else CHARACTERS[:26]
        text = "".join(rng.choice(list(pool), length))
        if not set(text) <= set("OI01"):  # "10" and "IO" look the same
            return text


def text_scene(
    text: str,
    size: tuple[int, int],
    background: tuple[int, int, int] = (250, 250, 250),
    ink: tuple[int, int, int] = (18, 18, 18),
    fill: float = 0.8,
    offset: tuple[float, float] = (0.5, 0.5),
    weight: float = 0.0,
) -> Scene:
    """Draws a word or number.

    Args:
        text: Capital letters, or digits.
        size: (width, height) in pixels.
        background: RGB.
        ink: RGB.
        fill: Share of the width, or of the height, that the text may take.
        offset: Where in the free space the text stands, 0 to 1 each way.
        weight: How much bolder than the plain font, as a share of its size.
    """
    width, height = size
    image, labels, things = Image.new("RGB", size, background), Image.new("L", size, 0), [NOTHING]
    font, box = _fit_font(text, fill * width, min(fill, 0.8) * height, 0.45 * max(size))
    margin = weight * font.size
    x = margin + offset[0] * max(0.0, width - (box[2] - box[0]) - 2 * margin) - box[0]
    y = margin + offset[1] * max(0.0, height - (box[3] - box[1]) - 2 * margin) - box[1]
    _write(image, labels, things, text, (x, y), font, ink, weight)
    kind = "number" if text.isdigit() else "word"
    questions = (
        (f"What {kind} is shown?", text),
        ("Is it a word or a number?", f"{kind.capitalize()}."),
        ("How many characters are there?", str(len(text))),
        ("How many shapes are there?", "0"),
    )
    return Scene(
        np.asarray(image), f"The {kind} {text}.", text, questions, np.asarray(labels), tuple(things)
    )


def random_page(rng: np.random.Generator, edge: int) -> Scene:
    """A random page: two to four short words, one in each cell, too small to be read in the page as
    a whole.
    """
    rows, cols = ((1, 2), (2, 1), (2, 2))[int(rng.integers(3))]
    words = [random_word(rng, int(rng.integers(1, 4))) for _ in range(rows * cols)]
    # Ratios of which each cell becomes a tile.
    ratio = {
        (1, 2): rng.uniform(2.0, 2.4),
        (2, 1): 1 / rng.uniform(2.0, 2.4),
        (2, 2): rng.uniform(0.87, 1.15),
    }[rows, cols]
    size = (edge, round(edge / ratio)) if ratio >= 1 else (round(edge * ratio), edge)
    background, ink = text_colors(rng)
    places = [(float(x), float(y)) for x, y in rng.uniform(0.1, 0.9, (len(words), 2))]
    return page_scene(
        words, (rows, cols), size, background, ink, float(rng.uniform(0.055, 0.085)), places
    )


def page_scene(
    words: Sequence[str],
    grid: tuple[int, int],
    size: tuple[int, int],
    background: tuple[int, int, int] = (250, 250, 250),
    ink: tuple[int, int, int] = (18, 18, 18),
    height: float = 0.07,
    places: Sequence[tuple[float, float]] | None = None,
) -> Scene:
    """Draws words in a grid, in reading order.

    Args:
        words: One a cell, row by row.
        grid: (rows, columns).
        size: (width, height) in pixels.
        background: RGB.
        ink: RGB.
        height: Of the words, as a share of the longest edge.
        places: Where in the free space of its cell each word stands, 0 to 1 each way.
    """
    image, labels, things = Image.new("RGB", size, background), Image.new("L", size, 0), [NOTHING]
    cell = (size[0] / grid[1], size[1] / grid[0])
    for number, word in enumerate(words):
        font, box = _fit_font(word, 0.8 * cell[0], height * max(size), 0.45 * max(size))
        at_x, at_y = places[number] if places else (0.5, 0.5)
        x = (number % grid[1]) * cell[0] + at_x * (cell[0] - (box[2] - box[0])) - box[0]
        y = (number // grid[1]) * cell[1] + at_y * (cell[1] - (box[3] - box[1])) - box[1]
        _write(image, labels, things, word, (x, y), font, ink, 0.0)
    text = " ".join(words)
    questions = (
        ("How many words are there?", str(len(words))),
        ("What is the first word?", words[0]),
        ("What is the last word?", words[-1]),
    )
    return Scene(
        np.asarray(image),
        f"The words {text}.",
        text,
        questions,
        np.asarray(labels),
        tuple(things),
        pages=True,
    )


def _write(
    image: Image.Image,
    labels: Image.Image,
    things: list[Thing],
    text: str,
    place: tuple[float, float],
    font: ImageFont.FreeTypeFont,
    ink: tuple[int, int, int],
    weight: float,
) -> None:
    """Draws text, marks where each character is, and adds the characters to ``things``."""
    x, y = place
    _, top, _, bottom = font.getbbox(text)
    ImageDraw.Draw(image).text(
        (x, y), text, fill=ink, font=font, stroke_width=weight * font.size, stroke_fill=ink
    )
    canvas = ImageDraw.Draw(labels)
    for i, character in enumerate(text):
        start, end = x + font.getlength(text[:i]), x + font.getlength(text[: i + 1])
        canvas.rectangle((start, y + top, max(start, end - 1), y + bottom), fill=len(things))
        things.append((0, 0, CHARACTERS.index(character) + 1))


@functools.lru_cache(maxsize=512)
def _font(size: int) -> ImageFont.FreeTypeFont:
    font = ImageFont.load_default(size)
    if not isinstance(font, ImageFont.FreeTypeFont):
        raise RuntimeError("Pillow was built without FreeType")
    return font


def _fit_font(
    text: str, width: float, height: float, largest: float
) -> tuple[ImageFont.FreeTypeFont, tuple[float, float, float, float]]:
    """The largest font in which the text fits, and the text's box."""
    box = _font(100).getbbox(text)
    size = max(
        6, int(100 * min(width / (box[2] - box[0]), height / (box[3] - box[1]), largest / 100))
    )
    return _font(size), _font(size).getbbox(text)


def text_colors(rng: np.random.Generator) -> tuple[tuple[int, int, int], tuple[int, int, int]]:
    """A background and an ink that can be told from it."""
    while True:
        background = BACKGROUNDS[int(rng.integers(len(BACKGROUNDS)))]
        ink = (
            list(COLORS.values())[int(rng.integers(len(COLORS)))]
            if rng.random() < 0.5
            else ((18, 18, 18), (247, 247, 247))[int(rng.integers(2))]
        )
        if abs(sum(background) - sum(ink)) > 240:
            return background, ink
