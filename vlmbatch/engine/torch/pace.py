"""The pace of decoding while pictures wait: whether the next encoder call waits for decode steps.

One token an encoder call is what costs least, and its answers come late: of 40 photos of 13 tiles,
the first answer of 48 tokens would wait for 48 encoder calls. Where encoding dominates, decode
steps cost little beside it:

- The first answer of a run is decoded to its end at once, if that takes at most ``FIRST_SHARE`` of
  the time that its pictures took to encode.
- After that, each encoder call allows decode steps for ``SHARE`` of its time. What is not used adds
  up, and what the first answer took counts; so the whole run takes no longer than that share.

Where decoding takes about as long as encoding (frames of one tile, a GPU), batches must grow for
speed, and the encoder goes first. Costs are measured as the engine runs.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

SHARE = 0.025
"""Decoding's share of an encoder call's time, beyond the step that follows every call."""
FIRST_SHARE = 0.35
"""Most time that the rest of the first answer may take, in shares of the encoding so far."""
DOMINANT = 3.0
"""Encoding dominates if it takes this many times as long as decoding the answer by itself."""
SMOOTHING = 0.3
"""Weight of a new measurement of a cost."""


@dataclasses.dataclass(frozen=True, slots=True)
class Pending:
    """A live sequence, as the pace sees it.

    Attributes:
        tiles: Tiles of its request, for each of its questions.
        max_tokens: Longest answer.
        tokens: Tokens so far.
    """

    tiles: float
    max_tokens: int
    tokens: int


class Pace:
    """Knows what a tile and a decode step cost, and what decoding may take now.

    Attributes:
        tile_seconds, step_seconds: Measured costs; 0 until measured.
    """

    def __init__(self) -> None:
        self.tile_seconds = self.step_seconds = 0.0
        self.restart()

    def restart(self) -> None:
        """Begin a run; the costs stay known."""
        self._is_answered = False
        self._vision_seconds = 0.0
        self._allowed_seconds = 0.0

    def encoded(self, tiles: int, seconds: float) -> None:
        """Note an encoder call."""
        self.tile_seconds = _smooth(self.tile_seconds, seconds / tiles)
        self._vision_seconds += seconds
        self._allowed_seconds += SHARE * seconds

    def decoded(self, seconds: float, *, was_extra: bool) -> None:
        """Note a decode step.

        Args:
            seconds: Its time.
            was_extra: Whether an encoder call waited for it.
        """
        self.step_seconds = _smooth(self.step_seconds, seconds)
        if was_extra:
            self._allowed_seconds -= seconds

    def answered(self) -> None:
        """Note the end of an answer."""
        self._is_answered = True

    def wants_step(self, live: Sequence[Pending]) -> bool:
        """True if the next encoder call should wait for a decode step of these sequences."""
        if not live or not self.step_seconds or not all(map(self._is_dominated, live)):
            return False
        if self._is_answered:
            return self.step_seconds <= self._allowed_seconds
        left = min(each.max_tokens - each.tokens for each in live)
        return left * self.step_seconds <= FIRST_SHARE * self._vision_seconds

    def _is_dominated(self, sequence: Pending) -> bool:
        """True if encoding a sequence's pictures takes far longer than decoding its answer."""
        decode_seconds = sequence.max_tokens * self.step_seconds
        return sequence.tiles * self.tile_seconds >= DOMINANT * decode_seconds


def _smooth(old: float, new: float) -> float:
    return old + SMOOTHING * (new - old) if old else new
