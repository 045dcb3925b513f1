"""Draws the scenes that the demo model knows, together with everything that is true about them.

A scene is one to three shapes in a row or a column, or a short word or number, or a page of a few;
a clip is one shape that moves. The wording of captions, questions and answers is fixed here and
documented in the demo model's card.
"""

from __future__ import annotations

import math

import numpy as np

from training.scenes.base import (
    BACKGROUNDS,
    CAPTION_PROMPTS,
    CLIP_PROMPTS,
    OCR_PROMPTS,
    Clip,
    Question,
    Scene,
    Thing,
    jpeg,
    random_background,
)
from training.scenes.clips import moving_clip, random_clip
from training.scenes.shapes import (
    SHAPES,
    Shape,
    absent_questions,
    random_shapes,
    shape_named,
    shape_scene,
)
from training.scenes.words import CHARACTERS, page_scene, random_page, random_text, text_scene
from vlmbatch.selftest.scenes import COLORS

__all__ = [
    "BACKGROUNDS",
    "CAPTION_PROMPTS",
    "CHARACTERS",
    "CLIP_PROMPTS",
    "COLORS",
    "OCR_PROMPTS",
    "SHAPES",
    "Clip",
    "Question",
    "Scene",
    "Shape",
    "Thing",
    "absent_questions",
    "jpeg",
    "moving_clip",
    "page_scene",
    "random_clip",
    "random_page",
    "random_scene",
    "shape_named",
    "shape_scene",
    "text_scene",
]


def random_scene(
    rng: np.random.Generator,
    *,
    longest: tuple[int, int] = (64, 1600),
    reading: float = 0.4,
    hard: float = 0.0,
) -> Scene:
    """A random scene.

    Args:
        rng: Draws it.
        longest: Range of its longest edge in pixels, log-uniform.
        reading: Share of words and numbers.
        hard: Share of scenes that are drawn twice, the one with more shapes or characters kept. All
            counts are equally likely at 0.
    """
    edge = round(math.exp(rng.uniform(math.log(longest[0]), math.log(longest[1]))))
    if rng.random() < reading:
        return random_text(rng, edge, hard)
    ratio = math.exp(rng.uniform(math.log(0.5), math.log(2.0))) if rng.random() < 0.7 else 1.0
    width, height = (edge, round(edge / ratio)) if ratio >= 1 else (round(edge * ratio), edge)
    shapes, relation = random_shapes(rng, width, height, hard)
    return shape_scene(
        shapes, relation, (width, height), random_background(rng, [s.color for s in shapes]), rng
    )
