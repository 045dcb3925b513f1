"""The reason why an export has no row."""

from __future__ import annotations

from collections.abc import Iterable

from vlmbatch.export.rows import RowFilter
from vlmbatch.wording import shortened
from vlmbatch.write.columns import Row

SHOWN = 3
SHOWN_WIDTH = 60


def explain_no_rows(rows: Iterable[Row], wanted: RowFilter) -> str | None:
    """Return why a filter takes no row; None when it takes one.

    Args:
        rows: All rows, with the columns ``task``, ``prompt`` and ``status``.
        wanted: The filter.
    """
    chosen = {"task": wanted.tasks, "prompt": wanted.prompts, "status": wanted.statuses}
    there: dict[str, dict[str, None]] = {name: {} for name in chosen}
    count = 0
    for row in rows:
        if wanted.has(row):
            return None
        count += 1
        for name, values in there.items():
            values[row[name]] = None
    if not count:
        return "it has no rows"
    missing = [
        f"no {name} is {_listed(values)}: there is {_listed(there[name])}"
        for name, values in chosen.items()
        if values and there[name].keys().isdisjoint(values)
    ]
    return "; ".join(missing) or (
        f"none of {count} rows has the {' and the '.join(n for n, v in chosen.items() if v)} "
        "that was chosen"
    )


def _listed(values: Iterable[str]) -> str:
    found = [shortened(value, SHOWN_WIDTH) for value in values]
    more = f" and {len(found) - SHOWN} more" if len(found) > SHOWN else ""
    return ", ".join(found[:SHOWN]) + more
