"""Reporters of a run's progress."""

from __future__ import annotations

from typing import Protocol


class Reporter(Protocol):
    """Receives the progress of a run; the command line shows it."""

    def loading(self, model: str) -> None:
        """Note that the model is being loaded."""

    def total(self, items: int | None) -> None:
        """Set the number of items, once it is known."""

    def item(self, *, error: bool, kept: bool, new_tokens: int) -> None:
        """Note a finished item: answered, failed, or kept from an earlier run."""


class Silent:
    """A reporter without output."""

    def loading(self, model: str) -> None:
        """See ``Reporter``."""

    def total(self, items: int | None) -> None:
        """See ``Reporter``."""

    def item(self, *, error: bool, kept: bool, new_tokens: int) -> None:
        """See ``Reporter``."""
