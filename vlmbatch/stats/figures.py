"""Figures over the rows of an OUTPUT, whole or by day, run or model."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, get_args

from vlmbatch.run.summary import RowStats
from vlmbatch.write import read_records, read_runs

Grouping = Literal["day", "run", "model"]
BY: tuple[Grouping, ...] = get_args(Grouping)

_OF_RUNS = ("started_at", "ended_at", "exit_code", "wall_seconds", "error")


class _Rows:
    """Sums over some rows of an OUTPUT, which come in its order."""

    def __init__(self) -> None:
        self.stats = RowStats()
        self._previous: str | None = None

    def add(self, row: Mapping[str, Any]) -> None:
        self.stats.add_row(row, new_item=row["id"] != self._previous)
        self._previous = row["id"]


def collect(path: Path, *, since: str | None = None, by: Grouping | None = None) -> dict[str, Any]:
    """Return figures over the rows of an OUTPUT, as plain JSON values.

    Args:
        path: OUTPUT.
        since: Rows and runs before this time are left out; in the form of ``created_at``.
        by: Adds ``groups``: the figures of each day (UTC), run or model, in order of time; models
            in the order of their first rows.

    Raises:
        OutputError: OUTPUT cannot be read.
    """
    whole, groups, models = _Rows(), dict[str, _Rows](), dict[str, int]()
    for row in read_records(path):
        if since is not None and (row["created_at"] or "") < since:
            continue
        whole.add(row)
        name = _answerer(row)
        models[name] = models.get(name, 0) + 1
        if by is not None:
            key = {"day": (row["created_at"] or "")[:10], "run": row["run_id"], "model": name}[by]
            groups.setdefault(key, _Rows()).add(row)
    runs = [run for run in read_runs(path) if since is None or str(run.get("started_at")) >= since]
    figures = whole.stats.describe()
    busy = figures["phases"]["compute_seconds"]["total"]
    figures["models"] = models
    figures["items_per_busy_second"] = round(whole.stats.items / busy, 3) if busy else None
    figures["new_tokens_per_busy_second"] = (
        round(whole.stats.new_tokens / busy, 3) if busy else None
    )
    figures["runs"] = len(runs)
    figures["last_run"] = runs[-1] if runs else None
    if by is not None:
        figures["by"] = by
        figures["groups"] = _groups(groups, by, runs)
    return figures


def _groups(
    groups: dict[str, _Rows], by: Grouping, runs: list[dict[str, Any]]
) -> list[dict[str, Any]]:
    """Return the figures of each group. Of runs they are those of the rows that are left of it, and
    what the run says of itself; one that was killed says nothing.
    """
    if by == "model":
        return [{by: name, **_short(rows.stats)} for name, rows in groups.items()]
    if by == "day":
        return [{by: name, **_short(rows.stats)} for name, rows in sorted(groups.items())]
    said = {str(run.get("run_id")): run for run in runs}
    nothing = dict.fromkeys(_OF_RUNS)
    return [  # ids of runs begin with the time
        {
            by: name,
            **_short(groups[name].stats if name in groups else RowStats()),
            **{key: said.get(name, nothing).get(key) for key in _OF_RUNS},
        }
        for name in sorted({*groups, *said})
    ]


def _short(stats: RowStats) -> dict[str, Any]:
    busy = sum(stats.phases["compute_seconds"])
    return {
        "items": stats.items,
        "rows": stats.rows,
        "status": dict(stats.status),
        "errors": dict(stats.errors),
        "tiles": stats.tiles,
        "prompt_tokens": stats.prompt_tokens,
        "new_tokens": stats.new_tokens,
        "busy_seconds": round(busy, 3),
    }


def _answerer(row: Mapping[str, Any]) -> str:
    """Return the model of a row and where it ran, as far as the row says."""
    where = ", ".join(filter(None, (row["engine"], row["device"], row["dtype"])))
    settings = f" with {row['settings']}" if row.get("settings") else ""
    return (row["model"] or "no model") + (f" ({where})" if where else "") + settings
