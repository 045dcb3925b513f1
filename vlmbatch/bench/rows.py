"""A row of the table, and the format of its numbers."""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Sequence
from typing import Any


@dataclasses.dataclass(frozen=True)
class Measurement:
    """One measurement.

    Attributes:
        name: Its name for ``--only``.
        what: The work, in words.
        value: The figure; None if it is missing.
        unit: Its unit.
        note: Share of a ceiling, spread, or the reason for a missing figure.
        details: Plain values behind it, for JSON.
        failed: Whether it failed with an error.
    """

    name: str
    what: str
    value: float | None
    unit: str
    note: str = ""
    details: dict[str, Any] = dataclasses.field(default_factory=dict)
    failed: bool = False

    def line(self) -> str:
        """Format the row as a line of the table."""
        figure = f"{number(self.value)} {self.unit}" if self.value is not None else "-"
        return f"{self.name:<12} {self.what:<50} {figure:>20}  {self.note}".rstrip()


def number(value: float) -> str:
    """Format three significant digits, without an exponent: ``1,230``, ``12.3``, ``0.123``."""
    if value == 0:
        return "0"
    digits = 2
    while digits < 6 and abs(value) < 10 ** (2 - digits):
        digits += 1
    return (
        f"{value:,.0f}"
        if abs(value) >= 100
        else f"{value:.1f}"
        if abs(value) >= 10
        else f"{value:.{digits}f}"
    )


def share(part: float, whole: float, name: str) -> str:
    """Format a share of a ceiling, such as ``63 % of gemm``."""
    return f"{100 * part / whole:.0f} % of {name}"


def spread(values: Sequence[float]) -> str:
    """Format minimum and maximum: ``(1.79 to 1.83)``; empty for one value."""
    return f"({number(min(values))} to {number(max(values))})" if len(values) > 1 else ""


def summarize(values: Sequence[float]) -> dict[str, float]:
    """Return median, minimum and maximum, for JSON."""
    return {
        "median": statistics.median(values),
        "least": min(values),
        "most": max(values),
        "rounds": len(values),
    }
