"""Wording that messages and tables share."""

from __future__ import annotations


def number_of(count: int, noun: str) -> str:
    """Return ``1 item`` or ``3 items``."""
    return f"{count} {noun}{'' if count == 1 else 's'}"


def shortened(text: str, width: int) -> str:
    """Return a text in one line of at most ``width`` characters, with ``…`` where it is cut."""
    line = " ".join(text.split())
    return line if len(line) <= width else line[: width - 1] + "…"
