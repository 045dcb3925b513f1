"""Run a job for the command line, with progress, signals, closing lines and an exit code."""

from __future__ import annotations

import logging
import os
import sys
import threading
from typing import TYPE_CHECKING

import click

from vlmbatch.cli.closing import other_file_lines, say_summary
from vlmbatch.cli.folders import with_user_folders
from vlmbatch.cli.logs import name_run, set_up_logging
from vlmbatch.cli.signals import catch_signals
from vlmbatch.errors import OutputError, VlmbatchError, one_line
from vlmbatch.job import Job, ReportingOptions
from vlmbatch.run.events import event
from vlmbatch.wording import number_of

if TYPE_CHECKING:
    from vlmbatch.run.plan import Plan

logger = logging.getLogger("vlmbatch")


def execute(job: Job, *, dry_run: bool, estimate: bool, verbose: int, quiet: bool) -> None:
    """Run a job, print it, or estimate its time, and exit with its code."""
    wants_bar = job.progress == "on" or (job.progress == "auto" and sys.stderr.isatty())
    bar = wants_bar and not quiet and job.log_format == "text"
    set_up_logging(job.log_format, verbose=verbose, quiet=quiet, bar=bar)
    try:
        if dry_run:
            print_job(job)
        elif estimate:
            print_estimate(with_user_folders(job))
        else:
            _run(with_user_folders(job), bar=bar, lines=job.progress != "off" and not quiet)
    except VlmbatchError as error:
        say_error(job, error)
        raise click.exceptions.Exit(error.exit_code) from error


def _run(job: Job, *, bar: bool, lines: bool) -> None:
    from vlmbatch.run.pipeline import Run
    from vlmbatch.run.progress import ProgressReporter

    with ProgressReporter(bar=bar, lines=lines) as reporter:
        run = Run(job, reporter=reporter)
        name_run(run.run_id)
        catch_signals(run)
        outcome = run.start()
    error = outcome.error
    if isinstance(error, VlmbatchError):
        say_error(job, error)
    elif error is not None:
        fields = event(
            "error", error_type=type(error).__name__, error=str(error), exit_code=outcome.exit_code
        )
        logger.error("unexpected error, please report it", exc_info=error, extra=fields)
    finished = error is None and not outcome.interrupted
    wrote_rows = outcome.summary["rows"] and not isinstance(error, OutputError)
    say_summary(
        job,
        outcome.summary,
        exit_code=outcome.exit_code,
        interrupted=outcome.interrupted,
        names_output=finished or bool(wrote_rows),
    )
    if any(thread.name == "reader" for thread in threading.enumerate()):
        # It waits for a line on stdin; the interpreter would wait with it.
        logging.shutdown()
        sys.stdout.flush()
        os._exit(outcome.exit_code)
    raise click.exceptions.Exit(outcome.exit_code)


def say_error(job: ReportingOptions, error: BaseException) -> None:
    """Say what ended a run, as one line in the format of its log."""
    text = one_line(error)
    if job.log_format == "json":
        code = getattr(error, "exit_code", 1)
        fields = event("error", error_type=type(error).__name__, error=text, exit_code=code)
        logger.error("%s", text, extra=fields)
    else:
        click.echo(f"vlmbatch: {text}", err=True)


def print_job(job: Job) -> None:
    """Print the resolved job as YAML that ``vlmbatch run`` reads, after what it would do."""
    import yaml

    from vlmbatch.checkpoint import check_revision
    from vlmbatch.run.plan import plan_items

    check_revision(job.model, job.revision)
    plan = plan_items(job)
    values = {**job.to_dict(), "output": job.output_path}
    click.echo(f"# {number_of(plan.items, 'item')}")
    if job.output_path != "-":
        click.echo(f"# {_said(plan)}")
        for line in other_file_lines(plan.other_files):
            click.echo(f"# {line}")
    click.echo(yaml.safe_dump(values, sort_keys=False, allow_unicode=True, width=120), nl=False)


def _said(plan: Plan) -> str:
    """Return what a run would do with the items."""
    if plan.refusal is not None:
        return f"the run is refused: {plan.refusal}"
    parts = [f"{plan.new} new", f"{plan.changed} changed", f"{plan.done} done"]
    parts += [f"{plan.again} asked again"] if plan.again else []
    parts += [f"{plan.unasked} of these without a question"] if plan.unasked else []
    return ", ".join(parts)


def print_estimate(job: Job) -> None:
    """Print how long a job takes on this machine at each detail."""
    from vlmbatch.run.estimate import estimate_job
    from vlmbatch.run.progress import duration

    found = estimate_job(job)
    done = f", {found.done:,} done before" if found.done else ""
    if not found.items:
        click.echo(f"0 items{done}: there is nothing to do")
        return
    questions = "" if found.questions == 1 else f", {found.questions:.3g} questions each"
    items = f"{found.items:,} item{'' if found.items == 1 else 's'}"
    click.echo(f"{items}{done}{questions}; torch on {found.device}, {found.dtype}")
    click.echo(f"{'detail':<10}{'tiles':>12}{'time':>16}{'at most':>16}")
    for row in found.details:
        times = f"{duration(row.seconds):>16}{duration(row.most_seconds):>16}"
        click.echo(f"{row.detail:<10}{row.tiles:>12,}{times}")
    click.echo(
        f"time: answers of {found.new_tokens:.0f} tokens; "
        f"at most: all of them at --max-new-tokens {job.max_new_tokens}"
    )
