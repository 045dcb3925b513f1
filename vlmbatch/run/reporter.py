"""Reporters of a run's progress."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Protocol


@dataclasses.dataclass(frozen=True)
class Activity:
    """The work of a run at a moment, also before its first answer.

    Attributes:
        items_prepared: Items that were made ready for the engine so far.
        tiles_prepared: Their tiles.
        tiles: Tiles that are encoded, or were equal to encoded ones.
        tokens: Tokens that are decoded.
        encode_seconds: Time of the engine that encoding and reading prompts has taken; 0, like the
            next one, where the engine cannot tell.
        decode_seconds: Time that decoding has taken.
        in_work: Items between preparation and their last row.
    """

    items_prepared: int
    tiles_prepared: int
    tiles: int
    tokens: int
    encode_seconds: float
    decode_seconds: float
    in_work: int


class Reporter(Protocol):
    """Receives the progress of a run; the command line shows it."""

    def loading(self, model: str) -> None:
        """Note that the model is being loaded."""

    def started(self, activity: Callable[[], Activity]) -> None:
        """The engine is open; ``activity`` may be called from any thread until the run ends."""

    def total(self, items: int | None) -> None:
        """Set the number of items, once it is known."""

    def item(self, *, error: bool, kept: bool, new_tokens: int) -> None:
        """Note a finished item: answered, failed, or kept from an earlier run."""


class Silent:
    """A reporter without output."""

    def loading(self, model: str) -> None:
        """See ``Reporter``."""

    def started(self, activity: Callable[[], Activity]) -> None:
        """See ``Reporter``."""

    def total(self, items: int | None) -> None:
        """See ``Reporter``."""

    def item(self, *, error: bool, kept: bool, new_tokens: int) -> None:
        """See ``Reporter``."""
