"""Files that have the id of another file in OUTPUT, as when two folders have files of one name."""

from __future__ import annotations

from typing import Any, Literal, TypeAlias

OtherFileOutcome: TypeAlias = Literal["replaced", "kept"]
"""``replaced``: the other file's row is made anew. ``kept``: its corrected text stays, and the
file of now gets no row.
"""


class OtherFiles:
    """Counts such files, with an example of each outcome."""

    def __init__(self) -> None:
        self._names: dict[OtherFileOutcome, set[str]] = {}
        self._examples: dict[OtherFileOutcome, dict[str, str]] = {}

    def has(self, outcome: OtherFileOutcome, name: str) -> bool:
        """Return whether a file is noted. It may have many rows."""
        return name in self._names.get(outcome, ())

    def note(self, outcome: OtherFileOutcome, name: str, was: str, now: str) -> None:
        """Note a file.

        Args:
            outcome: What becomes of the row.
            name: Id of the file.
            was, now: Source of the row, and of the file that has its id now.
        """
        self._names.setdefault(outcome, set()).add(name)
        self._examples.setdefault(outcome, {"id": name, "was": was, "now": now})

    def describe(self) -> dict[str, Any]:
        """Return number and example by outcome; those without a file are left out."""
        return {
            outcome: {"files": len(names), "example": self._examples[outcome]}
            for outcome, names in self._names.items()
        }
