"""The end of a run: its summary, its exit code, and its line in ``OUTPUT.runs.jsonl``."""

from __future__ import annotations

import dataclasses
from typing import Any

from vlmbatch.engine import Engine

_FROM_SUMMARY = (
    *(
        "found",
        "items",
        "rows",
        "status",
        "errors",
        "kept",
        "output",
        "gone",
        "uncommitted",
        "sidecars",
    ),
    *("tiles", "prompt_tokens", "new_tokens", "wall_seconds", "error", "interrupted"),
)


@dataclasses.dataclass(frozen=True)
class Outcome:
    """The end of a run.

    Attributes:
        summary: The contents of OUTPUT.summary.json.
        interrupted: Whether it was stopped early.
        error: The error that ended it, if any.
    """

    summary: dict[str, Any]
    interrupted: bool = False
    error: BaseException | None = None

    @property
    def exit_code(self) -> int:
        """Exit code of a command: see the table of exit codes in the documentation."""
        if self.error is not None:
            return getattr(self.error, "exit_code", 1)
        if self.interrupted:
            return 130
        return 3 if self.summary["status"].get("error") else 0

    def run_line(self, engine: Engine | None) -> dict[str, Any]:
        """Return what a line of ``OUTPUT.runs.jsonl`` says of the run.

        Args:
            engine: The engine that answered; None if none was opened.
        """
        summary = self.summary
        identity = summary["identity"]
        return {
            "run_id": summary["run_id"],
            "started_at": summary["started_at"],
            "ended_at": summary["ended_at"],
            "exit_code": self.exit_code,
            "task": summary["job"]["task"],
            "model": engine.model if engine else identity["model"],
            "revision": engine.revision if engine else summary["revision"],
            "engine": engine.name if engine else identity["engine"],
            "device": engine.device if engine else "",
            "dtype": engine.dtype if engine else "",
            "busy_seconds": round(engine.stats.busy_seconds, 3) if engine else 0.0,
            **{name: summary[name] for name in _FROM_SUMMARY},
            "version": summary["versions"].get("vlmbatch"),
        }
