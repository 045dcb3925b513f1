"""Reporters of a run's progress."""

from __future__ import annotations

from typing import Protocol


class Reporter(Protocol):
    """Hears how a run goes; the command line shows it."""

    def loading(self, model: str) -> None:
        """The model is being loaded."""

    def total(self, items: int | None) -> None:
        """Take the number of items, once that is known."""

    def item(self, *, error: bool, kept: bool, new_tokens: int) -> None:
        """An item is done: answered, failed, or kept from an earlier run."""


class Silent:
    """A reporter that says nothing."""

    def loading(self, model: str) -> None:
        """See ``Reporter``."""

    def total(self, items: int | None) -> None:
        """See ``Reporter``."""

    def item(self, *, error: bool, kept: bool, new_tokens: int) -> None:
        """See ``Reporter``."""
