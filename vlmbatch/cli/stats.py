"""``stats``: the figures of a run, from its own records."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

from vlmbatch.cli.closing import failure_lines
from vlmbatch.urls import without_credentials


def collect(path: Path) -> dict[str, Any]:
    """Return figures over all rows of an OUTPUT."""
    from vlmbatch.run.summary import RowStats
    from vlmbatch.write import read_records

    stats = RowStats()
    previous: str | None = None
    models: dict[str, int] = {}
    for row in read_records(path):
        stats.add_row(row, new_item=row["id"] != previous)
        previous = row["id"]
        name = _answerer(row)
        models[name] = models.get(name, 0) + 1
    figures = stats.describe()
    busy = figures["phases"]["compute_seconds"]["total"]
    figures["models"] = models
    figures["items_per_busy_second"] = round(stats.items / busy, 3) if busy else None
    figures["new_tokens_per_busy_second"] = round(stats.new_tokens / busy, 3) if busy else None
    return figures


def _answerer(row: dict[str, Any]) -> str:
    """Return the model of a row and where it ran, as far as the row says."""
    where = ", ".join(filter(None, (row["engine"], row["device"], row["dtype"])))
    settings = f" with {row['settings']}" if row.get("settings") else ""
    return (row["model"] or "no model") + (f" ({where})" if where else "") + settings


def show(output: str, figures: dict[str, Any]) -> None:
    """Print the figures of an OUTPUT as a table."""
    click.echo(f"{output}: {figures['items']} items, {figures['rows']} rows")
    for name, count in figures["models"].items():
        click.echo(f"  {count} row{'' if count == 1 else 's'} by {name}")
    status = ", ".join(f"{count} {name}" for name, count in figures["status"].items()) or "nothing"
    click.echo(f"status      {status}")
    for line in failure_lines(figures, output):
        click.echo(line)
    reasons = ", ".join(f"{count} by {name}" for name, count in figures["finish_reason"].items())
    click.echo(
        f"tokens      {figures['prompt_tokens']} in prompts, {figures['new_tokens']} in answers"
        + (f" (ended {reasons})" if reasons else "")
    )
    click.echo(f"tiles       {figures['tiles']}")
    if figures["items_per_busy_second"]:
        click.echo(
            f"busy rate   {figures['items_per_busy_second']:.2f} items/s, "
            f"{figures['new_tokens_per_busy_second']:.1f} tokens/s of the engine's busy time"
        )
    click.echo(f"{'seconds':<12}{'total':>10}{'p50':>10}{'p95':>10}{'p99':>10}")
    for name, phase in figures["phases"].items():
        click.echo(
            f"  {name.removesuffix('_seconds'):<10}"
            + "".join(f"{phase[key]:>10.3f}" for key in ("total", "p50", "p95", "p99"))
        )


@click.command(name="stats")
@click.argument("output")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def _stats(output: str, as_json: bool) -> None:
    """Print the figures of a run, from its own records: counts, tokens, and the seconds of each
    phase with percentiles. OUTPUT may be a URL.
    """
    from vlmbatch.write import local_copy

    with local_copy(output, allow_private=True) as path:
        figures = collect(path)
    if as_json:
        click.echo(json.dumps(figures, indent=2))
    else:
        show(without_credentials(output), figures)


COMMANDS = {"stats": _stats}
