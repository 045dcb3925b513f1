"""What a scene and a clip are, and what shapes and words share: colours, backgrounds, prompts."""

from __future__ import annotations

import dataclasses
import io
import math
from collections.abc import Callable, Sequence

import numpy as np
from PIL import Image

from vlmbatch.core import UInt8Array
from vlmbatch.selftest.scenes import COLORS
from vlmbatch.tasks import DEFAULT_PROMPTS

Question = tuple[str, str]
Thing = tuple[int, int, int]  # shape, colour, character; each counted from 1, 0 for none
NOTHING: Thing = (0, 0, 0)
BACKGROUNDS = (
    (250, 250, 250),
    (12, 12, 12),
    (205, 205, 205),
    (128, 128, 128),
    (75, 75, 75),
    (250, 238, 215),
    (200, 220, 235),
    (90, 110, 105),
)
CAPTION_PROMPTS = (
    "Describe this image in one sentence.",
    "Describe this image.",
    "What is in this image?",
    "Can you describe this image?",
    "Caption this image.",
)
OCR_PROMPTS = (DEFAULT_PROMPTS["ocr"], "What text is in this image?", "What does it say?")
CLIP_PROMPTS = (
    DEFAULT_PROMPTS["clip"],
    "Describe this video.",
    "What happens in this video?",
    "What is happening?",
)


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
    """Frames of one moving shape, uint8 (H, W, 3) each, with their times and what is true about
    them.
    """

    frames: tuple[UInt8Array, ...]
    times_seconds: tuple[float, ...]
    duration_seconds: float
    caption: str
    questions: tuple[Question, ...]
    labels: tuple[UInt8Array, ...]
    things: tuple[Thing, ...]


def random_background(rng: np.random.Generator, colors: Sequence[str]) -> tuple[int, int, int]:
    """A background that every one of the colours stands out from."""
    choices = [b for b in BACKGROUNDS if all(math.dist(b, COLORS[c]) > 70 for c in colors)]
    base = choices[int(rng.integers(len(choices)))]
    return tuple(int(np.clip(c + rng.integers(-5, 6), 0, 255)) for c in base)  # type: ignore[return-value]


def jpeg(pixels: UInt8Array, quality: int) -> UInt8Array:
    """The pixels after JPEG compression."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG", quality=quality)
    return np.asarray(Image.open(buffer).convert("RGB"))


def harder(rng: np.random.Generator, share: float, draw: Callable[[], int]) -> int:
    """A number, or for a share of the calls the larger of two."""
    found = draw()
    return max(found, draw()) if share and rng.random() < share else found


def with_article(sentence: str) -> str:
    """The sentence with "an" before orange."""
    return sentence.replace("A orange", "An orange").replace(" a orange", " an orange")
