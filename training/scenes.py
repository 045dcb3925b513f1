"""Draws the scenes that the demo model knows, together with everything that is true about them.

A scene is one to three shapes in a row or a column, or a short word or number; a clip is one shape that moves. The wording of captions, questions and
answers is fixed here and documented in the demo model's card.
"""

from __future__ import annotations

import dataclasses
import functools
import io
import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFont

from vlmbatch.tasks import DEFAULT_PROMPTS

UInt8Array = npt.NDArray[np.uint8]
Question = tuple[str, str]
Thing = tuple[int, int, int]  # shape, colour, character; each counted from 1, 0 for none
NOTHING: Thing = (0, 0, 0)

SHAPES = ("circle", "square", "triangle", "star")
COLORS: dict[str, tuple[int, int, int]] = {
    "red": (220, 35, 40),
    "green": (35, 150, 60),
    "blue": (40, 75, 215),
    "yellow": (245, 220, 40),
    "purple": (140, 50, 170),
    "orange": (245, 140, 25),
    "black": (18, 18, 18),
    "white": (247, 247, 247),
}
BACKGROUNDS = ((250, 250, 250), (12, 12, 12), (205, 205, 205), (128, 128, 128), (75, 75, 75), (250, 238, 215), (200, 220, 235), (90, 110, 105))
GRID = (("Top left.", "Top.", "Top right."), ("Left.", "Center.", "Right."), ("Bottom left.", "Bottom.", "Bottom right."))
DIRECTIONS = {"left": (-1, 0), "right": (1, 0), "up": (0, -1), "down": (0, 1)}
OPPOSITE = {"to the left of": "to the right of", "above": "below"}
WEIGHTS = (0.0, 0.0, 0.02, 0.04)
CHARACTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789"
CAPTION_PROMPTS = (DEFAULT_PROMPTS["caption"], "Describe this image.", "What is in this image?", "Can you describe this image?", "Caption this image.")
OCR_PROMPTS = (DEFAULT_PROMPTS["ocr"], "What text is in this image?", "What does it say?")
CLIP_PROMPTS = (DEFAULT_PROMPTS["clip"], "Describe this video.", "What happens in this video?", "What is happening?")


@dataclasses.dataclass(frozen=True)
class Shape:
    """One shape: its kind and colour by name, its centre and radius in pixels, its turn in degrees."""

    kind: str
    color: str
    x: float
    y: float
    radius: float
    turn: float = 0.0

    @property
    def name(self) -> str:
        return f"{self.color} {self.kind}"


@dataclasses.dataclass(frozen=True)
class Scene:
    """A picture and what is true about it.

    Attributes:
        pixels: RGB, uint8, (H, W, 3).
        caption: The answer to every caption prompt.
        text: The answer to every OCR prompt.
        questions: Questions with their answers; captions and OCR not among them.
        labels: Which thing each pixel shows, uint8, (H, W): an index into ``things``.
        things: What each label is, in reading order.
        pages: Whether it is a page: too small to be read as a whole.
    """

    pixels: UInt8Array
    caption: str
    text: str
    questions: tuple[Question, ...]
    labels: UInt8Array
    things: tuple[Thing, ...]
    pages: bool = False


@dataclasses.dataclass(frozen=True)
class Clip:
    """Frames of one moving shape, uint8 (H, W, 3) each, with their times and what is true about them."""

    frames: tuple[UInt8Array, ...]
    times_seconds: tuple[float, ...]
    duration_seconds: float
    caption: str
    questions: tuple[Question, ...]
    labels: tuple[UInt8Array, ...]
    things: tuple[Thing, ...]


def random_scene(rng: np.random.Generator, *, longest: tuple[int, int] = (64, 1600), reading: float = 0.4) -> Scene:
    """A random scene whose longest edge lies, log-uniformly, in a range of pixels; ``reading`` is the share of words and numbers."""
    edge = round(math.exp(rng.uniform(math.log(longest[0]), math.log(longest[1]))))
    if rng.random() < reading:
        return random_text(rng, edge)
    ratio = math.exp(rng.uniform(math.log(0.5), math.log(2.0))) if rng.random() < 0.7 else 1.0
    width, height = (edge, round(edge / ratio)) if ratio >= 1 else (round(edge * ratio), edge)
    shapes, relation = random_shapes(rng, width, height)
    return shape_scene(shapes, relation, (width, height), random_background(rng, [s.color for s in shapes]), rng)


def random_shapes(rng: np.random.Generator, width: int, height: int) -> tuple[list[Shape], str]:
    """One to three shapes that fit a picture, in reading order, and the relation between neighbours."""
    count = int(rng.choice([1, 2, 3], p=[0.34, 0.36, 0.3]))
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
            centre = (width * ((col + 0.5) / 3 + rng.uniform(-0.03, 0.03)), height * ((row + 0.5) / 3 + rng.uniform(-0.03, 0.03)))
        centres = [centre]
        radii = [radius]
    else:
        largest = min(0.42 * along / count, 0.3 * short)
        radii = [rng.uniform(0.65, 1.0) * largest for _ in range(count)]
        step = along / count
        positions = [step * (i + 0.5) + rng.uniform(-0.5, 0.5) * (step / 2 - radii[i]) for i in range(count)]
        base = across * rng.uniform(0.35, 0.65)
        spread = min(0.12 * across, 0.25 * step)
        sides = [float(np.clip(base + rng.uniform(-spread, spread), radii[i] * 1.05, across - radii[i] * 1.05)) for i in range(count)]
        centres = [(p, s) if horizontal else (s, p) for p, s in zip(positions, sides, strict=True)]
    shapes = [Shape(kind, color, x, y, r, float(rng.uniform(-12, 12))) for (kind, color), (x, y), r in zip(looks, centres, radii, strict=True)]
    return shapes, "to the left of" if horizontal else "above"


def shape_scene(
    shapes: Sequence[Shape], relation: str, size: tuple[int, int], background: tuple[int, int, int], rng: np.random.Generator | None = None
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
    caption = _article(f"A{caption}.")
    things = (NOTHING, *((SHAPES.index(s.kind) + 1, list(COLORS).index(s.color) + 1, 0) for s in shapes))
    return Scene(pixels, caption, "No text.", tuple(shape_questions(shapes, relation, size)), labels, things)


def shape_questions(shapes: Sequence[Shape], relation: str, size: tuple[int, int]) -> list[Question]:
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
            found.append((f"{verb} {nxt}{relation} the {shape.name}?", _article(before)))
            found.append((f"{verb} {nxt}{OPPOSITE[relation]} the {shape.name}?", _article(after)))
    if len(shapes) == 1:
        col, row = (min(2, int(3 * shapes[0].x / size[0])), min(2, int(3 * shapes[0].y / size[1])))
        found.append((f"Where is the {shapes[0].kind}?", GRID[row][col]))
    return found


def absent_questions(shapes: Sequence[Shape], rng: np.random.Generator, count: int) -> list[Question]:
    """Questions for shapes that are not there, made from colours and kinds that are (so that neither alone gives it away)."""
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


def random_text(rng: np.random.Generator, edge: int) -> Scene:
    """A random word or number of one to six characters in a picture with a given longest edge."""
    longest = 6 if edge >= 128 else 4 if edge >= 90 else 3
    text = random_word(rng, int(rng.integers(1, longest + 1)))
    ratio = math.exp(rng.uniform(math.log(0.9), math.log(2.4)))
    width, height = (edge, round(edge / ratio)) if ratio >= 1 else (round(edge * ratio), edge)
    background, ink = text_colors(rng)
    smallest = 0.35 if len(text) < 4 else 0.6  # so that as one tile a character is at least 8 pixels wide
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
    return Scene(np.asarray(image), f"The {kind} {text}.", text, questions, np.asarray(labels), tuple(things))


def random_page(rng: np.random.Generator, edge: int) -> Scene:
    """A random page: two to four short words, one in each cell, too small to be read in the page as a whole."""
    rows, cols = ((1, 2), (2, 1), (2, 2))[int(rng.integers(3))]
    words = [random_word(rng, int(rng.integers(1, 4))) for _ in range(rows * cols)]
    # Ratios of which each cell becomes a tile.
    ratio = {(1, 2): rng.uniform(2.0, 2.4), (2, 1): 1 / rng.uniform(2.0, 2.4), (2, 2): rng.uniform(0.87, 1.15)}[rows, cols]
    size = (edge, round(edge / ratio)) if ratio >= 1 else (round(edge * ratio), edge)
    background, ink = text_colors(rng)
    places = [(float(x), float(y)) for x, y in rng.uniform(0.1, 0.9, (len(words), 2))]
    return page_scene(words, (rows, cols), size, background, ink, float(rng.uniform(0.055, 0.085)), places)


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
    questions = (("How many words are there?", str(len(words))), ("What is the first word?", words[0]), ("What is the last word?", words[-1]))
    return Scene(np.asarray(image), f"The words {text}.", text, questions, np.asarray(labels), tuple(things), pages=True)


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
    ImageDraw.Draw(image).text((x, y), text, fill=ink, font=font, stroke_width=weight * font.size, stroke_fill=ink)
    canvas = ImageDraw.Draw(labels)
    for i, character in enumerate(text):
        start, end = x + font.getlength(text[:i]), x + font.getlength(text[: i + 1])
        canvas.rectangle((start, y + top, max(start, end - 1), y + bottom), fill=len(things))
        things.append((0, 0, CHARACTERS.index(character) + 1))


def random_clip(rng: np.random.Generator, *, longest: tuple[int, int] = (64, 320), max_frames: int = 8) -> Clip:
    """A random clip: one shape moves left, right, up or down at an even pace."""
    edge = round(math.exp(rng.uniform(math.log(longest[0]), math.log(longest[1]))))
    ratio = float(rng.choice([1.0, 4 / 3, 16 / 9, 3 / 4]))
    size = (edge, round(edge / ratio)) if ratio >= 1 else (round(edge * ratio), edge)
    count = int(rng.integers(2, max_frames + 1))
    step = float(rng.choice([0.25, 0.5, 1.0, 1.0, 2.0, rng.uniform(0.1, 5)]))
    start = float(rng.choice([0.0, 0.0, rng.uniform(0, 200)]))
    times = tuple(start + step * i for i in range(count))
    duration = times[-1] + step + float(rng.choice([0.0, rng.uniform(0, 100)]))
    kind, color, direction = str(rng.choice(SHAPES)), str(rng.choice(list(COLORS))), str(rng.choice(list(DIRECTIONS)))
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
        travel: Where on its way, 0 to 1, the shape is in the first and the last frame, or None to choose.
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
        pixels, label = draw_shapes([Shape(kind, color, x, y, radius, turn)], size, background, None)
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
    return Clip(tuple(frames), tuple(times_seconds), duration_seconds, _article(f"A {name} moves {direction}."), questions, tuple(labels), things)


def draw_shapes(
    shapes: Sequence[Shape], size: tuple[int, int], background: tuple[int, int, int], rng: np.random.Generator | None
) -> tuple[UInt8Array, UInt8Array]:
    """Pixels, uint8 (H, W, 3), and labels, uint8 (H, W), of shapes; edges are smoothed by drawing larger and scaling down."""
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


def jpeg(pixels: UInt8Array, quality: int) -> UInt8Array:
    """The pixels after JPEG compression."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG", quality=quality)
    return np.asarray(Image.open(buffer).convert("RGB"))


def random_background(rng: np.random.Generator, colors: Sequence[str]) -> tuple[int, int, int]:
    """A background that every one of the colours stands out from."""
    choices = [b for b in BACKGROUNDS if all(_distance(b, COLORS[c]) > 70 for c in colors)]
    base = choices[int(rng.integers(len(choices)))]
    return tuple(int(np.clip(c + rng.integers(-5, 6), 0, 255)) for c in base)  # type: ignore[return-value]


def _draw(canvas: ImageDraw.ImageDraw, shape: Shape, scale: int, fill: tuple[int, int, int] | int) -> None:
    x, y, r = shape.x * scale, shape.y * scale, shape.radius * scale
    if shape.kind == "circle":
        canvas.ellipse((x - r, y - r, x + r, y + r), fill=fill)
        return
    corners = {"square": 4, "triangle": 3, "star": 10}[shape.kind]
    start = math.radians(shape.turn) - (math.pi / 4 if shape.kind == "square" else math.pi / 2)
    radii = [r * 0.45 if shape.kind == "star" and i % 2 else r for i in range(corners)]
    angles = [start + 2 * math.pi * i / corners for i in range(corners)]
    canvas.polygon([(x + q * math.cos(a), y + q * math.sin(a)) for q, a in zip(radii, angles, strict=True)], fill=fill)


@functools.lru_cache(maxsize=512)
def _font(size: int) -> ImageFont.FreeTypeFont:
    font = ImageFont.load_default(size)
    if not isinstance(font, ImageFont.FreeTypeFont):
        raise RuntimeError("Pillow was built without FreeType")
    return font


def _fit_font(text: str, width: float, height: float, largest: float) -> tuple[ImageFont.FreeTypeFont, tuple[float, float, float, float]]:
    """The largest font in which the text fits, and the text's box."""
    box = _font(100).getbbox(text)
    size = max(6, int(100 * min(width / (box[2] - box[0]), height / (box[3] - box[1]), largest / 100)))
    return _font(size), _font(size).getbbox(text)


def text_colors(rng: np.random.Generator) -> tuple[tuple[int, int, int], tuple[int, int, int]]:
    """A background and an ink that can be told from it."""
    while True:
        background = BACKGROUNDS[int(rng.integers(len(BACKGROUNDS)))]
        ink = list(COLORS.values())[int(rng.integers(len(COLORS)))] if rng.random() < 0.5 else ((18, 18, 18), (247, 247, 247))[int(rng.integers(2))]
        if abs(sum(background) - sum(ink)) > 240:
            return background, ink


def _travel(rng: np.random.Generator) -> tuple[float, float]:
    length = float(rng.uniform(0.35, 1.0))
    begin = float(rng.uniform(0, 1 - length))
    return begin, begin + length


def _distance(a: tuple[int, int, int], b: tuple[int, int, int]) -> float:
    return math.dist(a, b)


def _article(sentence: str) -> str:
    return sentence.replace("A orange", "An orange").replace(" a orange", " an orange")
