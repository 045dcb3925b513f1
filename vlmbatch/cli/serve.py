"""``serve`` and ``batch``: OpenAI's chat API, by HTTP and from a file of requests."""

from __future__ import annotations

import dataclasses
import logging
import os
from typing import Any

import click

from vlmbatch.cli.closing import failure_lines
from vlmbatch.cli.folders import with_user_folders
from vlmbatch.cli.logs import set_up_logging
from vlmbatch.cli.options import GroupedCommand, GroupedOption, given, job_options
from vlmbatch.cli.signals import catch_signals
from vlmbatch.errors import VlmbatchError
from vlmbatch.job.endpoint import EndpointOptions
from vlmbatch.run.events import event
from vlmbatch.serve.allocator import share_one_arena
from vlmbatch.serve.extras import BATCH, require
from vlmbatch.serve.settings import BatchJob, ServeJob, ServerOptions

SERVE_HELP = """Serve OpenAI's chat API on this machine.

Any client of OpenAI's API can ask about pictures and videos: give it the base URL
http://127.0.0.1:8000/v1 and any key. Many clients are answered together.

SIGTERM and Ctrl-C end the server in order: open requests have --drain seconds. Exit codes: 0 ended
as told, 1 the model cannot be loaded or has failed, 2 bad usage."""


BATCH_HELP = """Answer a file of OpenAI batch requests.

A line of REQUESTS.jsonl has `custom_id`, `method` (POST), `url` (/v1/chat/completions) and `body`,
the request. A line of OUTPUT has `custom_id`, `response` with `status_code` and `body`, and
`error`; lines are in the order of the requests.

The same command again continues: answered requests are kept, changed ones are asked again. Exit
codes: 0, 1 the run could not go on, 2 bad usage, 3 some requests are errors, 66 there are none, 75
OUTPUT is in use, 130 interrupted."""

report = logging.getLogger("vlmbatch.report")


def serve(job: ServeJob, *, dry_run: bool, verbose: int, quiet: bool) -> None:
    """Serve, or print the options, for the command line."""
    set_up_logging(job.log_format, verbose=verbose, quiet=quiet, bar=False)
    logging.getLogger("uvicorn.error").handlers = logging.getLogger("vlmbatch").handlers
    logging.getLogger("uvicorn.error").setLevel(logging.WARNING)
    if dry_run:
        print_options(job)
        return
    require()
    if "MALLOC_ARENA_MAX" not in os.environ:
        share_one_arena()
    from vlmbatch.cli.execute import say_error
    from vlmbatch.serve.server import Server

    try:
        Server(with_user_folders(job)).run()
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


def _run_server(dry_run: bool, verbose: int, quiet: bool, **values: Any) -> None:
    job = ServeJob.from_dict(given(values))
    serve(job, dry_run=dry_run, verbose=verbose, quiet=quiet)


def _run_batch(requests: str, verbose: int, quiet: bool, **values: Any) -> None:
    job = BatchJob.from_dict({"requests": requests, **given(values)})
    set_up_logging(job.log_format, verbose=verbose, quiet=quiet, bar=False)
    require(BATCH)
    from vlmbatch.cli.execute import say_error
    from vlmbatch.serve.batch.run import Batch, describe

    try:
        batch = Batch(with_user_folders(job))
        catch_signals(batch)
        code = batch.start()
    except VlmbatchError as error:
        say_error(job, error)
        raise click.exceptions.Exit(error.exit_code) from error
    counts = batch.counts
    fields = event(
        "batch_finished",
        exit_code=code,
        interrupted=batch.interrupted,
        **{name: getattr(counts, name) for name in ("ok", "errors", "kept", "kept_errors")},
    )
    report.info("%s", describe(counts, job.output), extra=fields)
    if job.log_format == "text":  # in JSON each of them is an event
        for line in failure_lines({"errors": counts.kinds, "failures": counts.failures}, "-"):
            report.info("%s", line)
    raise click.exceptions.Exit(code)


_serve = GroupedCommand("serve", callback=_run_server, help=SERVE_HELP)
_own = {field.name for field in dataclasses.fields(ServerOptions)}
_others = {"progress", *(field.name for field in dataclasses.fields(EndpointOptions))} - _own
job_options(
    [field.name for field in dataclasses.fields(ServeJob) if field.name not in _others],
    of=ServeJob,
)(_serve)
add_reporting(_serve)

_batch = GroupedCommand("batch", callback=_run_batch, help=BATCH_HELP, no_args_is_help=True)
_batch.params.append(click.Argument(["requests"], metavar="REQUESTS.jsonl"))
job_options(
    [f.name for f in dataclasses.fields(BatchJob) if f.name not in ("progress", "requests")],
    of=BatchJob,
)(_batch)
_batch.params += [
    GroupedOption(["-v", "--verbose"], count=True, help="Log more; twice: log everything."),
    GroupedOption(["-q", "--quiet"], is_flag=True, help="Log errors only."),
]

COMMANDS = {"serve": _serve, "batch": _batch}
