"""Counts, rates and phases of a run, from its records; written beside OUTPUT and printed by
``vlmbatch stats``.
"""

from __future__ import annotations

import array
import collections
import dataclasses
import importlib.metadata
import platform
import sys
import types
from collections.abc import Mapping
from typing import Any

from vlmbatch.job import Job
from vlmbatch.processor import processor_share

PHASES = (
    "read_seconds",
    "prepare_seconds",
    "wait_seconds",
    "vision_seconds",
    "prefill_seconds",
    "decode_seconds",
    "compute_seconds",
)
PERCENTILES = (50, 95, 99)
NAMED_FAILURES = 3
"""Items of each kind of error that are named; `export` lists the rest."""
VERSIONS_OF = ("vlmbatch", "torch", "numpy", "pillow", "av", "tokenizers", "safetensors", "pyarrow")


@dataclasses.dataclass
class RowStats:
    """Sums over rows; it keeps four bytes per phase and row for the percentiles.

    Attributes:
        rows: Number of rows.
        items: Number of items: a row with another id or index than the row before starts a new one.
        status: Rows by status.
        errors: Error rows by class name.
        failures: Id and error of the first items of each class of errors.
        finish: Rows by finish reason.
        error_items, similar_items: Items whose first row has this status.
        new_tokens, prompt_tokens, tiles: Sums.
        batch_sizes: Rows by batch size.
    """

    rows: int = 0
    items: int = 0
    error_items: int = 0
    similar_items: int = 0
    status: collections.Counter[str] = dataclasses.field(default_factory=collections.Counter)
    errors: collections.Counter[str] = dataclasses.field(default_factory=collections.Counter)
    failures: dict[str, dict[str, str]] = dataclasses.field(default_factory=dict)
    finish: collections.Counter[str] = dataclasses.field(default_factory=collections.Counter)
    batch_sizes: collections.Counter[int] = dataclasses.field(default_factory=collections.Counter)
    new_tokens: int = 0
    prompt_tokens: int = 0
    tiles: int = 0
    phases: dict[str, array.array[float]] = dataclasses.field(
        default_factory=lambda: {name: array.array("f") for name in PHASES}
    )

    def add(self, record: Any, *, new_item: bool) -> None:
        """Add a row.

        Args:
            record: A ``Record``, or an object with its fields.
            new_item: Whether it is the first of its item; the others share its tiles.
        """
        self.rows += 1
        self.status[record.status] += 1
        if new_item:
            self.items += 1
            self.tiles += record.tiles or 0
            self.error_items += record.status == "error"
            self.similar_items += record.status == "similar"
        if record.error_type:
            self.errors[record.error_type] += 1
            named = self.failures.setdefault(record.error_type, {})
            if len(named) < NAMED_FAILURES:
                named.setdefault(record.id, record.error or "")
        if record.finish_reason and record.status != "similar":
            self.finish[record.finish_reason] += 1
        self.new_tokens += record.new_tokens or 0
        self.prompt_tokens += record.prompt_tokens or 0
        if record.batch_size:
            self.batch_sizes[record.batch_size] += 1
        for name in PHASES:
            seconds = getattr(record, name)
            if seconds is not None:
                self.phases[name].append(seconds)

    def add_row(self, row: Mapping[str, Any], *, new_item: bool) -> None:
        """Add a row of a file, a mapping with the record's keys. See ``add``."""
        self.add(types.SimpleNamespace(**row), new_item=new_item)

    def describe(self) -> dict[str, Any]:
        """Return the figures as plain JSON values."""
        return {
            "items": self.items,
            "rows": self.rows,
            "similar_items": self.similar_items,
            "status": dict(self.status),
            "errors": dict(self.errors),
            "failures": {
                kind: [{"id": id, "error": error} for id, error in named.items()]
                for kind, named in self.failures.items()
            },
            "finish_reason": dict(self.finish),
            "tiles": self.tiles,
            "prompt_tokens": self.prompt_tokens,
            "new_tokens": self.new_tokens,
            "batch_sizes": {str(size): count for size, count in sorted(self.batch_sizes.items())},
            "phases": {name: phase_figures(values) for name, values in self.phases.items()},
        }


def describe_run(
    job: Job,
    stats: RowStats,
    *,
    wall_seconds: float,
    engine: dict[str, Any],
    identity: Mapping[str, Any],
    revision: str,
    **facts: Any,
) -> dict[str, Any]:
    """Return the contents of OUTPUT.summary.json as plain JSON values.

    Args:
        job: The resolved job.
        stats: The rows of the run.
        wall_seconds: From start to end, model loading included.
        engine: The engine's own figures.
        revision: Revision of the checkpoint.
        facts: Further facts about the run, by name.
    """
    return {
        **facts,
        **stats.describe(),
        "cut_off": cut_off(stats, job),
        "wall_seconds": round(wall_seconds, 3),
        "items_per_second": round(stats.items / wall_seconds, 3),
        "new_tokens_per_second": round(stats.new_tokens / wall_seconds, 3),
        "processor": dataclasses.asdict(processor_share()),
        "peak_host_bytes": peak_host_bytes(),
        "engine": engine,
        "revision": revision,
        "identity": identity,
        "versions": versions(),
        "job": job.to_dict(credentials=False),
    }


def cut_off(stats: RowStats, job: Job) -> dict[str, Any]:
    """Count the answers that ended at their limit, and name the option that raises it.

    Args:
        stats: The rows of the run.
        job: Its settings.
    """
    answers = stats.finish["length"]
    if not answers:
        return {"answers": 0, "hint": None}
    of = (
        f"{answers} of {stats.finish.total()} answers {'was' if answers == 1 else 'were'} cut "
        f"off at --max-new-tokens {job.max_new_tokens}"
    )
    return {
        "answers": answers,
        "hint": (
            f"{of}; --redo cut-off --max-new-tokens {4 * job.max_new_tokens} asks these again with "
            "more room"
        ),
    }


def phase_figures(values: array.array[float]) -> dict[str, float]:
    """Total and percentiles (nearest rank) of seconds."""
    ordered = sorted(values)
    figures = {"total": round(sum(ordered), 6)}
    for percent in PERCENTILES:
        rank = max(0, -(-len(ordered) * percent // 100) - 1)
        figures[f"p{percent}"] = round(ordered[rank], 6) if ordered else 0.0
    return figures


def peak_host_bytes() -> int | None:
    """Peak resident memory of this process; None where the system does not report it."""
    try:
        import resource
    except ImportError:
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return int(peak) if sys.platform == "darwin" else int(peak) * 1024


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that affect the result."""
    found = {"python": platform.python_version(), "platform": platform.platform()}
    for name in VERSIONS_OF:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found
