"""``bench``: measure the speed of this machine against its own limits."""

from __future__ import annotations

import dataclasses
import json
import sys
from pathlib import Path
from typing import Any

import click

from vlmbatch.bench.shapes import SHAPES
from vlmbatch.bench.sizes import NAMES
from vlmbatch.cli.folders import with_user_folders
from vlmbatch.cli.options import GroupedCommand, GroupedOption, given, job_options
from vlmbatch.job import Job
from vlmbatch.wording import number_of

HELP = """Measure the phases of a model and whole workloads against the limits of this machine.

The model has random weights in the shapes of a published one, as speed does not depend on their
values. The pictures are drawn, and every answer runs to its limit. Shares are relative to the speed
of matrix products (gemm) and copies (copy) in the same run."""


def _callback(
    shape: str | None,
    model: str | None,
    only: tuple[str, ...],
    quick: bool,
    rounds: int | None,
    compare: Any,
    json_path: str | None,
    retune: bool,
    **values: Any,
) -> None:
    from vlmbatch.bench.run import Settings, open_bench, run

    if model is None and values.get("revision"):
        raise click.UsageError("--revision goes with --model")
    if model is not None and shape is not None:
        raise click.UsageError("--shape makes random weights, --model takes real ones: give one")
    job = Job.from_dict({**given(values), **({"model": model} if model else {})})
    job = with_user_folders(job)
    settings = Settings(job, shape or "256m", model, only, quick, compare, rounds)
    report = Report(json_path)
    bench = open_bench(settings)
    report.head(bench.describe())
    if retune:
        report.kernels(bench.choose_kernels_again())
    for row in run(bench, settings.names(), report.starting):
        report.add(row)
    report.close()
    raise click.exceptions.Exit(3 if any(row.failed for row in report.rows) else 0)


class Report:
    """Table of results, printed line by line, and the same as JSON."""

    def __init__(self, json_path: str | None) -> None:
        """``json_path`` is a file, ``-`` for stdout (the table goes to stderr then), or None."""
        self.rows: list[Any] = []
        self._path = json_path
        self._machine: dict[str, Any] = {}
        self._tty = sys.stderr.isatty()

    def head(self, machine: dict[str, Any]) -> None:
        """Print the model and the machine."""
        self._machine = machine
        threads = number_of(machine["threads"], "thread")
        cores = f", {threads} on {machine['share']}" if machine["device"] == "cpu" else ""
        reference = f", transformers {machine['transformers']}" if machine["transformers"] else ""
        dtype = machine["dtype"] + (
            f"+{machine['quantize']}" if machine["quantize"] != "none" else ""
        )
        weights = f"{machine['parameters'] / 1e6:,.1f} M weights"
        device = f"{machine['device']} ({machine['device_name']}{cores})"
        self._say(f"{machine['model']}, {weights}, {dtype} on {device}")
        self._say(f"vlmbatch {machine['vlmbatch']}, torch {machine['torch']}{reference}")
        self._write()

    def kernels(self, choice: dict[str, Any]) -> None:
        """Say how the kernels were chosen."""
        self._machine["kernel_choice"] = choice
        steady = (
            "kept for this machine"
            if choice["steady"]
            else "kept until they can be chosen on a quiet machine"
        )
        left = f"{100 * choice['share']:.0f} % of the processor was left"
        self._say(f"kernels chosen again: {left}, times spread {choice['spread']:.2f}x; {steady}")

    def starting(self, name: str) -> None:
        """Show on a terminal what is being measured."""
        if self._tty:
            click.echo(f"… {name}\r", err=True, nl=False)

    def add(self, row: Any) -> None:
        """Print a row, and write all rows so far to the file."""
        self.rows.append(row)
        self._say(row.line())
        self._write()

    def close(self) -> None:
        """Print the JSON if it goes to stdout."""
        if self._path == "-":
            click.echo(self._json())

    def _say(self, line: str) -> None:
        if self._tty:
            click.echo("\x1b[2K", err=True, nl=False)
        click.echo(line, err=self._path == "-")

    def _json(self) -> str:
        return json.dumps(
            {"machine": self._machine, "rows": [dataclasses.asdict(row) for row in self.rows]},
            indent=2,
        )

    def _write(self) -> None:
        if self._path not in (None, "-"):
            from vlmbatch.write.atomic import replacing

            with replacing(Path(str(self._path))) as file:
                file.write(self._json().encode() + b"\n")


_command = GroupedCommand("bench", callback=_callback, help=HELP)
_command.params += [
    GroupedOption(
        ["--shape"],
        type=click.Choice(list(SHAPES)),
        default=None,
        help="Use random weights in the shapes of this SmolVLM2 or Idefics3. [default: 256m]",
        group="",
    ),
    GroupedOption(
        ["--model"],
        default=None,
        metavar="MODEL",
        help="Use a real checkpoint: hub id, local folder, or `demo`.",
        group="",
    ),
    GroupedOption(
        ["--quick"],
        is_flag=True,
        help="Measure a few rows with little work: about a minute on two cores, with --compare.",
        group="",
    ),
    GroupedOption(
        ["--only"],
        type=click.Choice(NAMES),
        multiple=True,
        help="Measure only this row; repeatable.",
        group="",
    ),
    GroupedOption(
        ["--rounds"],
        type=click.IntRange(min=1),
        default=None,
        metavar="N",
        help="Repetitions of each measurement; several show the spread. "
        "[default: 3; 1 with --quick]",
        group="",
    ),
    GroupedOption(
        ["--retune"],
        is_flag=True,
        help="Forget which kernels were chosen for this machine's CPU, and choose again.",
        group="",
    ),
    GroupedOption(
        ["--compare"],
        type=click.Choice(["transformers"]),
        default=None,
        help="Do the same with transformers, in turns, and print ratios.",
        group="",
    ),
    GroupedOption(
        ["--json", "json_path"],
        default=None,
        metavar="PATH",
        help="Also write the figures as JSON; `-` is stdout.",
        group="",
    ),
]
job_options(
    ["revision", "device", "dtype", "quantize", "max_memory", "memory_fraction", "batch_size"]
    + ["threads", "cache_dir"]
)(_command)

COMMANDS = {"bench": _command}
