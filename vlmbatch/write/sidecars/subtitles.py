"""Answers about stretches of a video as subtitles: SubRip (``.srt``), WebVTT (``.vtt``), or a
transcript with time stamps (``.txt``).
"""

from __future__ import annotations

import itertools
import textwrap
from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

LINE_CHARACTERS, CUE_LINES = 42, 2
"""The most that a cue shows: the usual limits of subtitles."""


class Cue(NamedTuple):
    """A text and the time when it is shown. None of its lines is blank."""

    start_ms: int
    end_ms: int
    lines: tuple[str, ...]


def make_cues(spans: Iterable[tuple[float, float, str]]) -> Iterator[Cue]:
    """Yield cues in order of time that do not overlap.

    Answers about the same stretch stand one below the other. A text that goes on in the next
    stretch is one cue, unless there is a gap between the stretches. Times are rounded down to whole
    milliseconds, so that no cue runs past the video's end.

    Args:
        spans: (start, end, text), in seconds, ascending by start.
    """
    held: Cue | None = None
    for cue in _cut(spans):
        if held is not None and held.lines == cue.lines and held.end_ms == cue.start_ms:
            held = held._replace(end_ms=cue.end_ms)
            continue
        if held is not None:
            yield held
        held = cue
    if held is not None:
        yield held


def _cut(spans: Iterable[tuple[float, float, str]]) -> Iterator[Cue]:
    """Yield a cue for each stretch, cut where the next one begins, without empty ones."""
    held: Cue | None = None
    for start, group in itertools.groupby(spans, key=lambda span: span[0]):
        answers = list(group)
        lines = tuple(line for *_, text in answers for line in text_lines(text))
        cue = Cue(_milliseconds(start), max(_milliseconds(end) for _, end, _ in answers), lines)
        if held is not None and _is_shown(
            held := held._replace(end_ms=min(held.end_ms, cue.start_ms))
        ):
            yield held
        held = cue
    if held is not None and _is_shown(held):
        yield held


def text_lines(text: str) -> list[str]:
    """Return the lines of a text without white space around them. Blank lines are left out, as one
    would end a cue. Every character that some program takes for a line break is one.
    """
    return [line for line in map(str.strip, text.replace("\0", "").splitlines()) if line]


def srt(cues: Iterable[Cue]) -> str:
    """Return SubRip. The format cannot write ``-->`` in a text, which becomes ``->``."""
    blocks = (
        f"{number}\n{_stamp(cue.start_ms, ',')} --> {_stamp(cue.end_ms, ',')}\n"
        + "\n".join(cue.lines).replace("-->", "->")
        + "\n"
        for number, cue in enumerate(cues, 1)
    )
    return "\n".join(blocks)


def vtt(cues: Iterable[Cue]) -> str:
    """Return WebVTT, with ``&``, ``<`` and ``>`` (so ``-->`` too) as character references."""
    blocks = (
        f"\n{_stamp(cue.start_ms)} --> {_stamp(cue.end_ms)}\n"
        + "\n".join(map(_escape, cue.lines))
        + "\n"
        for cue in cues
    )
    return "WEBVTT\n" + "".join(blocks)


def transcript(cues: Iterable[Cue]) -> str:
    """Return one line a cue: ``[00:00:12.000 --> 00:00:13.500] the text``."""
    return "".join(
        f"[{_stamp(cue.start_ms)} --> {_stamp(cue.end_ms)}] {' '.join(cue.lines)}\n" for cue in cues
    )


def fitted(cues: Iterable[Cue]) -> Iterator[Cue]:
    """Yield cues of at most two lines of 42 characters, as players and broadcasters show them. A
    longer cue is split; each part is shown as long as its share of the characters.
    """
    for cue in cues:
        lines = [part for line in cue.lines for part in textwrap.wrap(line, LINE_CHARACTERS)]
        parts = [tuple(lines[at : at + CUE_LINES]) for at in range(0, len(lines), CUE_LINES)]
        length, said = cue.end_ms - cue.start_ms, 0
        total = sum(map(len, lines))
        if length < total:  # less than a millisecond for a part
            yield cue
            continue
        for part in parts:
            start = cue.start_ms + length * said // total
            said += sum(map(len, part))
            yield Cue(start, cue.start_ms + length * said // total, part)


FORMS: dict[str, Callable[[Iterable[Cue]], str]] = {
    "srt": lambda cues: srt(fitted(cues)),
    "vtt": lambda cues: vtt(fitted(cues)),
    "txt": transcript,
}
"""Functions that format cues, by the suffix of the file."""


def _milliseconds(seconds: float) -> int:
    # 1.001 is a binary fraction just below it.
    return int(seconds * 1000 + 1e-6)


def _is_shown(cue: Cue) -> bool:
    return bool(cue.lines) and cue.end_ms > cue.start_ms


def _stamp(milliseconds: int, point: str = ".") -> str:
    seconds, fraction = divmod(milliseconds, 1000)
    return f"{seconds // 3600:02d}:{seconds // 60 % 60:02d}:{seconds % 60:02d}{point}{fraction:03d}"


def _escape(line: str) -> str:
    return line.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
