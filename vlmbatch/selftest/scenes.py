"""Drawn pictures and a clip, with the answers that the demo model gives about them."""

from __future__ import annotations

import dataclasses
import io
import math
from collections.abc import Sequence
from typing import Literal

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from vlmbatch.core import Conversation, Part, Pixels, Turn, UInt8Array
from vlmbatch.tasks import DEFAULT_PROMPTS

COLORS = {
    "red": (220, 35, 40),
    "green": (35, 150, 60),
    "blue": (40, 75, 215),
    "yellow": (245, 220, 40),
    "purple": (140, 50, 170),
    "orange": (245, 140, 25),
    "black": (18, 18, 18),
    "white": (247, 247, 247),
}
"""Colours that the demo model knows by name; its training draws with them, too."""
PALE, DARK = (250, 250, 250), (12, 12, 12)
CORNERS = {"square": 4, "triangle": 3, "star": 10}
PICTURE_SIZE, WIDE_SIZE, CLIP_SIZE = (320, 240), (640, 240), (160, 120)
SMOOTHING = 4
"""Shapes are drawn so many times larger and scaled down."""
CAPTION, READ = "Describe this image in one sentence.", DEFAULT_PROMPTS["ocr"]


@dataclasses.dataclass(frozen=True)
class Scene:
    """Pixels, and questions with their answers.

    Attributes:
        name: Its name; the key of its conversation.
        pixels: One frame, or several for a clip.
        questions: Each question with the demo model's answer.
        detail: Detail of the picture; None for the engine's own, which the tiles of a large picture
            are tested with.
    """

    name: str
    pixels: Pixels
    questions: tuple[tuple[str, str], ...]
    detail: Literal["low"] | None = "low"

    @property
    def is_clip(self) -> bool:
        """True if it has several frames."""
        return len(self.pixels.frames) > 1

    def conversation(self, *, takes_detail: bool) -> Conversation:
        """Make a conversation about it.

        Args:
            takes_detail: Whether the model can take a picture at low detail.
        """
        detail = self.detail if takes_detail and not self.is_clip else None
        part = Part("clip" if self.is_clip else "picture", pixels=self.pixels, detail=detail)
        return Conversation((Turn("user", (part,)),), self.name)


def scenes(*, with_clip: bool) -> list[Scene]:
    """Draw all scenes.

    Args:
        with_clip: Whether the model takes clips.
    """
    two = _row([("red", "circle"), ("blue", "square")], PICTURE_SIZE)
    left_of = "A red circle to the left of a blue square."
    found = [
        _scene("circle", _row([("red", "circle")], PICTURE_SIZE), (CAPTION, "A red circle.")),
        _scene(
            "pair",
            two,
            ("What is in this image?", left_of),
            ("What color is the square?", "Blue."),
            ("What shape is red?", "Circle."),
            ("How many shapes are there?", "2"),
        ),
        _scene(
            "star",
            _drawn([("yellow", "star", 0.83, 0.17, 0.14)], PICTURE_SIZE, DARK),
            ("Where is the star?", "Top right."),
        ),
        _scene(
            "stack",
            _drawn(
                [("black", "square", 0.5, 0.27, 0.2), ("green", "circle", 0.52, 0.75, 0.2)],
                PICTURE_SIZE,
            ),
            ("Describe this image.", "A black square above a green circle."),
            ("Is there a red square?", "No."),
        ),
        _scene("word", _written("CAT"), (READ, "CAT"), ("Caption this image.", "The word CAT.")),
        _scene("number", _written("42"), ("Is it a word or a number?", "Number."), (READ, "42")),
        dataclasses.replace(
            _scene(
                "wide",
                _row([("green", "star"), ("yellow", "circle"), ("purple", "square")], WIDE_SIZE),
                (
                    CAPTION,
                    "A green star to the left of a yellow circle to the left of a purple square.",
                ),
            ),
            detail=None,
        ),
    ]
    if with_clip:
        frames = [
            _drawn([("red", "circle", 0.2 + 0.2 * place, 0.5, 0.18)], CLIP_SIZE)
            for place in range(4)
        ]
        asked = (
            (DEFAULT_PROMPTS["clip"], "A red circle moves right."),
            ("Which way does the circle move?", "Right."),
        )
        found.append(Scene("clip", Pixels(frames, (0.0, 1.0, 2.0, 3.0), 4.0), asked))
    return found


def broken_jpeg() -> bytes:
    """Return the first half of a JPEG file."""
    file = io.BytesIO()
    Image.fromarray(_row([("red", "circle")], PICTURE_SIZE)).save(file, "JPEG")
    return file.getvalue()[: len(file.getvalue()) // 2]


def strip() -> Pixels:
    """Return a picture of one row of pixels, which many processors cannot resize."""
    return Pixels([np.zeros((1, 4000, 3), np.uint8)])


def _scene(name: str, pixels: UInt8Array, *questions: tuple[str, str]) -> Scene:
    return Scene(name, Pixels([pixels]), questions)


def _row(looks: Sequence[tuple[str, str]], size: tuple[int, int]) -> UInt8Array:
    """Draw shapes side by side."""
    step = 1 / len(looks)
    radius = 0.3 if len(looks) == 1 else 0.22
    shapes = [
        (color, kind, step * (place + 0.5), 0.48 + 0.04 * (place % 2), radius)
        for place, (color, kind) in enumerate(looks)
    ]
    return _drawn(shapes, size)


def _drawn(
    shapes: Sequence[tuple[str, str, float, float, float]],
    size: tuple[int, int],
    background: tuple[int, int, int] = PALE,
) -> UInt8Array:
    """Draw shapes: colour, kind, centre as shares of the size, radius as a share of the height."""
    width, height = (edge * SMOOTHING for edge in size)
    image = Image.new("RGB", (width, height), background)
    canvas = ImageDraw.Draw(image)
    for color, kind, across, down, share in shapes:
        x, y, radius = across * width, down * height, share * height
        if kind == "circle":
            canvas.ellipse((x - radius, y - radius, x + radius, y + radius), fill=COLORS[color])
            continue
        corners = CORNERS[kind]
        start = -math.pi / 4 if kind == "square" else -math.pi / 2
        canvas.polygon(
            [
                (x + reach * math.cos(angle), y + reach * math.sin(angle))
                for place in range(corners)
                for reach in [radius * (0.45 if kind == "star" and place % 2 else 1)]
                for angle in [start + 2 * math.pi * place / corners]
            ],
            fill=COLORS[color],
        )
    return np.asarray(image.resize(size, Image.Resampling.BOX))


def _written(text: str) -> UInt8Array:
    """Draw a word or a number in Pillow's own font."""
    image = Image.new("RGB", PICTURE_SIZE, PALE)
    font = ImageFont.load_default(110)
    left, top, right, bottom = font.getbbox(text)
    place = ((image.width - right - left) / 2, (image.height - bottom - top) / 2)
    ImageDraw.Draw(image).text(place, text, fill=COLORS["black"], font=font)
    return np.asarray(image)
