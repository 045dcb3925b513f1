"""``doctor``: check this machine, say how to fix what is missing, and test an engine."""

from __future__ import annotations

import dataclasses
import json
import sys
from typing import Any, Self

import click

from vlmbatch.cli.doctor.findings import look
from vlmbatch.cli.folders import with_user_folders
from vlmbatch.cli.logs import set_up_logging
from vlmbatch.cli.options import GroupedCommand, GroupedOption, given, job_options
from vlmbatch.job import EngineOptions

HELP = """Check this machine, and say how to fix what is missing.

Checks engines, devices, memory, formats and codecs, optional packages, models, and this folder.

--selftest asks an engine, for about a minute, about pictures with known answers: at once and one
at a time, among bad ones, with seeds and stop strings. It compares the answers with those of the
torch engine on the CPU in float32, and says what is broken and what to do. Exit codes: 0 nothing is
broken, 1 something is, or the engine cannot be opened, 2 bad usage."""

SELFTEST_OPTIONS = (
    *("revision", "engine", "device", "dtype", "quantize", "provider", "llama_server", "mmproj"),
    *("endpoint", "api_key_env", "api_key_file", "max_memory", "memory_fraction", "batch_size"),
    *("in_flight", "request_timeout", "threads", "cache_dir"),
)


def _doctor(as_json: bool, selftest: bool, **values: Any) -> None:
    values = given(values)
    if selftest:
        _test(values, as_json=as_json)
        return
    if values:
        flag = next(iter(values)).replace("_", "-")
        raise click.UsageError(f"--{flag} goes with --selftest")
    findings = list(look())
    if as_json:
        click.echo(json.dumps([dataclasses.asdict(finding) for finding in findings], indent=2))
        return
    width = max(len(finding.name) for finding in findings) + 1
    for finding in findings:
        click.echo(f"{'!' if finding.advice else ' '} {finding.name:<{width}}{finding.found}")
        if finding.advice:
            click.echo(f"  {'':<{width}}-> {finding.advice}")
    click.echo("vlmbatch doctor --selftest tests an engine on this machine")


def _test(values: dict[str, Any], *, as_json: bool) -> None:
    """Run the self-test, print its report, and exit."""
    from vlmbatch.job import Job
    from vlmbatch.selftest.run import run_selftest

    if "endpoint" in values:
        values.setdefault("engine", "openai")
    else:
        values.setdefault("model", "demo")
    job = with_user_folders(Job.from_dict(values))
    set_up_logging("text", verbose=0, quiet=False, bar=False)
    with Progress() as progress:
        report = run_selftest(job, progress.say)
    if as_json:
        click.echo(json.dumps(report.to_dict(), indent=2))
    else:
        for line in report.lines():
            click.echo(line)
    raise click.exceptions.Exit(0 if report.is_well else 1)


class Progress:
    """A line on stderr that says what is done now; on a terminal it is replaced by the next."""

    def __init__(self) -> None:
        self._is_terminal = sys.stderr.isatty()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._is_terminal:
            click.echo("\x1b[2K\r", err=True, nl=False)

    def say(self, what: str) -> None:
        """Say what comes next."""
        if self._is_terminal:
            click.echo(f"\x1b[2K\r… {what}", err=True, nl=False)
        else:
            click.echo(f"selftest: {what}", err=True)


_command = GroupedCommand("doctor", callback=_doctor, help=HELP)
_command.params += [
    GroupedOption(["--selftest"], is_flag=True, help="Test an engine on this machine.", group=""),
    GroupedOption(["--json", "as_json"], is_flag=True, help="Print JSON.", group=""),
    GroupedOption(
        ["--model"],
        default=None,
        metavar="MODEL",
        help="Hub id, local folder, or `demo`, for --selftest. [default: demo; the model of an "
        "--endpoint]",
        group="Model",
    ),
]
job_options(SELFTEST_OPTIONS, of=EngineOptions)(_command)

COMMANDS = {"doctor": _command}
