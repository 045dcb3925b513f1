"""The text that stands for pictures and clips in a prompt, as by the checkpoint's own processor."""

from __future__ import annotations

import dataclasses
import datetime
from collections.abc import Sequence

VIDEO_INTRO = (
    "You are provided the following series of {count} frames from a {duration} [H:MM:SS] video.\n"
)
"""Opening of the video prompt (``DEFAULT_VIDEO_INTRO`` of transformers' SmolVLM processor; the
checkpoints were trained on it).
"""

FRAME_INTRO = "\nFrame from {minutes:02d}:{seconds:02d}:"
VIDEO_OUTRO = "\n\n"
VIDEO_MARKER = "<video>"


_ONES = (
    *("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"),
    *(
        "ten",
        "eleven",
        "twelve",
        "thirteen",
        "fourteen",
        "fifteen",
        "sixteen",
        "seventeen",
        "eighteen",
        "nineteen",
    ),
)
_TENS = (
    "zero",
    "ten",
    "twenty",
    "thirty",
    "forty",
    "fifty",
    "sixty",
    "seventy",
    "eighty",
    "ninety",
)


@dataclasses.dataclass(frozen=True)
class MediaTokens:
    """The tokens that represent pictures in a prompt.

    Attributes:
        image: The token that one vision embedding replaces.
        fake: The token that opens every tile and closes the picture.
        global_image: The token before the global view, or before a picture of one tile.
        end_of_utterance: The token that ends a turn.
        seq_len: Image tokens per tile.
    """

    seq_len: int
    image: str = "<image>"
    fake: str = "<fake_token_around_image>"
    global_image: str = "<global-img>"
    end_of_utterance: str = "<end_of_utterance>"


def image_text(rows: int, cols: int, tokens: MediaTokens) -> str:
    """Return the text of a picture of rows x cols tiles and a global view; 0 x 0 is a picture of
    one tile.
    """
    run = tokens.image * tokens.seq_len
    whole = f"{tokens.fake}{tokens.global_image}{run}{tokens.fake}"
    if not rows:
        return whole
    lines = (
        "".join(f"{tokens.fake}<row_{row}_col_{col}>{run}" for col in range(1, cols + 1)) + "\n"
        for row in range(1, rows + 1)
    )
    return "".join(lines) + "\n" + whole


def video_text(times_seconds: Sequence[float], duration_seconds: float, tokens: MediaTokens) -> str:
    """Return the text of a clip: number of frames, duration of the video, and each frame after its
    timestamp.

    Args:
        times_seconds: Presentation time of each frame.
        duration_seconds: Duration of the whole video.
        tokens: The checkpoint's tokens.
    """
    duration = str(datetime.timedelta(seconds=int(duration_seconds)))
    frame = image_text(0, 0, tokens)
    frames = (
        FRAME_INTRO.format(minutes=int(t // 60), seconds=int(t % 60)) + frame for t in times_seconds
    )
    return (
        VIDEO_INTRO.format(count=number_words(len(times_seconds)), duration=duration)
        + "".join(frames)
        + VIDEO_OUTRO
    )


def number_words(number: int) -> str:
    """Spell a number below a million in English, as num2words does (``one hundred and one``)."""
    if number < 20:
        return _ONES[number]
    if number < 100:
        tens, ones = divmod(number, 10)
        return _TENS[tens] + (f"-{_ONES[ones]}" if ones else "")
    if number < 1000:
        hundreds, rest = divmod(number, 100)
        return f"{_ONES[hundreds]} hundred" + (f" and {number_words(rest)}" if rest else "")
    thousands, rest = divmod(number, 1000)
    link = "" if not rest else " and " if rest < 100 else ", "
    return f"{number_words(thousands)} thousand{link}{number_words(rest) if rest else ''}"
