"""``serve``: an OpenAI-compatible server."""

from __future__ import annotations

import dataclasses
import logging
from typing import Any

import click

from vlmbatch.cli.logs import set_up_logging
from vlmbatch.cli.options import GroupedCommand, GroupedOption, given, job_options
from vlmbatch.errors import VlmbatchError
from vlmbatch.serve.extras import require
from vlmbatch.serve.settings import ServeJob

HELP = """Serve OpenAI's chat API on this machine.

Any client of OpenAI's API can ask about pictures and videos: give it the base URL
http://127.0.0.1:8000/v1 and any key. Many clients are answered together.

SIGTERM and Ctrl-C end the server in order: open requests have --drain seconds. Exit codes: 0 ended
as told, 1 the model cannot be loaded or has failed, 2 bad usage."""


def serve(job: ServeJob, *, dry_run: bool, verbose: int, quiet: bool) -> None:
    """Serve, or print the options, for the command line."""
    set_up_logging(job.log_format, verbose=verbose, quiet=quiet, bar=False)
    logging.getLogger("uvicorn.error").handlers = logging.getLogger("vlmbatch").handlers
    logging.getLogger("uvicorn.error").setLevel(logging.WARNING)
    if dry_run:
        print_options(job)
        return
    require()
    from vlmbatch.cli.execute import say_error
    from vlmbatch.serve.server import Serving

    try:
        Serving(job).run()
    except VlmbatchError as error:
        say_error(job, error)
        raise click.exceptions.Exit(error.exit_code) from error


def print_options(job: ServeJob) -> None:
    """Print the options as a job file that ``vlmbatch run`` reads."""
    import yaml

    values = {"serve": job.to_dict()}
    click.echo(yaml.safe_dump(values, sort_keys=False, allow_unicode=True, width=120), nl=False)


def add_reporting(command: click.Command) -> None:
    """Add --dry-run, -v and -q."""
    command.params += [
        GroupedOption(["--dry-run"], is_flag=True, help="Print the options as YAML; load nothing."),
        GroupedOption(
            ["-v", "--verbose"], count=True, help="Log prompts too; twice: log everything."
        ),
        GroupedOption(["-q", "--quiet"], is_flag=True, help="Log errors only."),
    ]


def _callback(dry_run: bool, verbose: int, quiet: bool, **values: Any) -> None:
    job = ServeJob.from_dict(given(values))
    serve(job, dry_run=dry_run, verbose=verbose, quiet=quiet)


_command = GroupedCommand("serve", callback=_callback, help=HELP)
job_options(
    [field.name for field in dataclasses.fields(ServeJob) if field.name != "progress"], of=ServeJob
)(_command)
add_reporting(_command)

COMMANDS = {"serve": _command}
