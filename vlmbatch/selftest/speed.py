"""Speed of each phase, as the engine's own counts tell it."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from vlmbatch.selftest.asking import Round
from vlmbatch.selftest.trial import Trial


@dataclasses.dataclass(frozen=True)
class Speed:
    """Rates; None where the engine tells no time of that phase.

    Attributes:
        tiles: Tiles a second in the vision encoder.
        prefill_tokens: Tokens of prompts a second.
        decode_tokens: Tokens of answers a second, all questions at once.
        one_sequence: The same, one question at a time.
        answers: Answers a second, all questions at once.
    """

    tiles: float | None
    prefill_tokens: float | None
    decode_tokens: float | None
    one_sequence: float | None
    answers: float

    def describe(self) -> str:
        """Write the rates that are known."""
        rates = (
            (self.tiles, "tiles/s"),
            (self.prefill_tokens, "prefill tokens/s"),
            (self.decode_tokens, "decode tokens/s"),
            (self.one_sequence, "with one sequence"),
            (self.answers, "answers/s"),
        )
        return ", ".join(f"{rate:,.3g} {unit}" for rate, unit in rates if rate is not None)


def speed_of(many: Round, alone: Sequence[Round] = ()) -> Speed:
    """Return the rates of a run of all questions, and of runs of one question each."""
    stats = many.stats
    return Speed(
        _rate(stats.tiles, stats.vision_seconds),
        _rate(stats.prefill_tokens, stats.prefill_seconds),
        _rate(stats.decode_tokens, stats.decode_seconds),
        _rate(
            sum(each.stats.decode_tokens for each in alone),
            sum(each.stats.decode_seconds for each in alone),
        ),
        len(many.flat) / max(many.seconds, 1e-9),
    )


def trial_speed(trial: Trial) -> Speed:
    """Return the rates of the second run of all questions, when the engine is warm."""
    return speed_of(trial.again, trial.alone)


def _rate(count: int, seconds: float) -> float | None:
    return count / seconds if count and seconds > 0 else None
