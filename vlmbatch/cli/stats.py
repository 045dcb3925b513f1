"""``stats``: the figures of a run, from its own records."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

from vlmbatch.cli.closing import failure_lines
from vlmbatch.errors import JobError
from vlmbatch.urls import without_credentials
from vlmbatch.wording import number_of


def show(output: str, figures: dict[str, Any]) -> None:
    """Print the figures of an OUTPUT as a table."""
    click.echo(f"{output}: {figures['items']} items, {figures['rows']} rows")
    for name, count in figures["models"].items():
        click.echo(f"  {number_of(count, 'row')} by {name}")
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
            f"{figures['new_tokens_per_busy_second']:.1f} tokens/s of the engine's busy time, "
            f"{figures['phases']['compute_seconds']['total']:.1f} s"
        )
    # Phases of rows overlap: their sums, which --json has, are no time that somebody waited.
    click.echo(f"{'seconds':<12}{'p50':>10}{'p95':>10}{'p99':>10}   of a row")
    for name, phase in figures["phases"].items():
        click.echo(
            f"  {name.removesuffix('_seconds'):<10}"
            + "".join(f"{phase[key]:>10.3f}" for key in ("p50", "p95", "p99"))
        )


def show_groups(figures: dict[str, Any]) -> None:
    """Print a line for each day, run or model."""
    by = figures["by"]
    names = [group[by] or "-" for group in figures["groups"]]
    width = max(map(len, [by, *names]))
    heads = ("items", "answers ok", "similar", "errors", "tokens", "tiles", "busy s")
    more = f"{'exit':>6}{'wall s':>10}" if by == "run" else ""
    click.echo(f"{by:<{width}}" + "".join(f"{head:>12}" for head in heads) + more)
    for name, group in zip(names, figures["groups"], strict=True):
        status = group["status"]
        cells = [group["items"], *(status.get(kind, 0) for kind in ("ok", "similar", "error"))]
        cells += [group["new_tokens"], group["tiles"], f"{group['busy_seconds']:.1f}"]
        line = f"{name:<{width}}" + "".join(f"{cell!s:>12}" for cell in cells)
        if by == "run":
            wall = "?" if group["wall_seconds"] is None else f"{group['wall_seconds']:.1f}"
            code = "?" if group["exit_code"] is None else group["exit_code"]
            line += f"{code:>6}{wall:>10}"
        click.echo(line)


def _check_metrics(ctx: click.Context, parameter: click.Parameter, value: str | None) -> str | None:
    if value is not None and Path(value).suffix != ".prom":
        raise JobError(f"metrics must be a file that ends in .prom, not {value!r}")
    return value


@click.command(name="stats")
@click.argument("output")
@click.option(
    "--since",
    metavar="TIME",
    help="Only rows and runs since then: how long ago (7d, 12h, 30m, 2w), or a date (UTC).",
)
@click.option(
    "--by",
    type=click.Choice(["day", "run", "model"]),
    help="A line for each day (UTC), run or model. Of runs, the rows that are still theirs.",
)
@click.option(
    "--metrics",
    metavar="FILE.prom",
    callback=_check_metrics,
    help="Write the figures for Prometheus' text file collector, and print nothing.",
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def _stats(output: str, since: str | None, by: Any, metrics: str | None, as_json: bool) -> None:
    """Print the figures of a run, from its own records: counts, tokens, and the seconds of each
    phase with percentiles. OUTPUT may be a URL.
    """
    from vlmbatch.stats import collect, parse_since, write_metrics
    from vlmbatch.write import local_copy

    begin = None if since is None else parse_since(since)
    with local_copy(output, allow_private=True) as path:
        figures = collect(path, since=begin, by=by)
    shown = without_credentials(output)
    if metrics is not None:
        write_metrics(Path(metrics), shown, figures)
    if as_json:
        click.echo(json.dumps(figures, indent=2))
    elif by is not None:
        show_groups(figures)
    elif metrics is None:
        show(shown, figures)


COMMANDS = {"stats": _stats}
