"""Runs a job for the command line: logging, progress, signals, the closing lines and the exit code."""

from __future__ import annotations

import dataclasses
import json
import logging
import os
import signal
import sys
import threading
from pathlib import Path
from types import FrameType
from typing import Any

import click

from vlmbatch.cli.progress import make_reporter
from vlmbatch.errors import OutputError, VlmbatchError
from vlmbatch.job import Job
from vlmbatch.urls import is_url, without_credentials

logger = logging.getLogger("vlmbatch")


class JsonFormatter(logging.Formatter):
    """One JSON object a line: time, level, message."""

    def format(self, record: logging.LogRecord) -> str:
        """A record as a line."""
        entry = {
            "time": self.formatTime(record, "%Y-%m-%dT%H:%M:%S%z"),
            "level": record.levelname.lower(),
            "message": record.getMessage(),
        }
        return json.dumps(entry, ensure_ascii=False)


class BarHandler(logging.StreamHandler[Any]):
    """Writes log lines above a progress bar, not through it."""

    def emit(self, record: logging.LogRecord) -> None:
        """Writes a line."""
        from tqdm import tqdm

        with tqdm.external_write_mode(file=sys.stderr):
            super().emit(record)


def set_up_logging(form: str, *, verbose: int, quiet: bool, bar: bool) -> None:
    """Sends the package's log lines to stderr."""
    handler: logging.Handler = BarHandler(sys.stderr) if bar else logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonFormatter() if form == "json" else logging.Formatter("%(message)s"))
    root = logging.getLogger("vlmbatch")
    root.handlers = [handler]
    root.propagate = False
    root.setLevel(
        logging.ERROR
        if quiet
        else logging.DEBUG
        if verbose > 1
        else logging.INFO
        if verbose
        else logging.WARNING
    )
    logging.captureWarnings(True)  # Pillow warns about damaged EXIF data; a row tells what matters
    logging.getLogger("py.warnings").handlers = [handler] if verbose else [logging.NullHandler()]
    logging.getLogger("py.warnings").propagate = False
    # The closing lines and the progress of a run are news, not details.
    logging.getLogger("vlmbatch.report").setLevel(logging.ERROR if quiet else logging.INFO)


def execute(job: Job, *, dry_run: bool, verbose: int, quiet: bool) -> None:
    """Runs a job, or prints it, and exits with its code."""
    bar = (
        not quiet
        and (job.progress == "on" or (job.progress == "auto" and sys.stderr.isatty()))
        and job.log_format == "text"
    )
    set_up_logging(job.log_format, verbose=verbose, quiet=quiet, bar=bar)
    if dry_run:
        try:
            print_job(job)
        except VlmbatchError as error:
            say_error(job, error)
            raise click.exceptions.Exit(error.exit_code) from error
        return
    from vlmbatch.run.pipeline import Run
    from vlmbatch.write import default_staging_root

    cache = os.environ.get("XDG_CACHE_HOME")
    if cache and is_url(job.output_path) and job.staging_dir is None:
        job = dataclasses.replace(job, staging_dir=str(default_staging_root(Path(cache))))
    with make_reporter(bar=bar, lines=job.progress != "off" and not quiet) as reporter:
        try:
            run = Run(job, reporter=reporter)
        except VlmbatchError as error:
            say_error(job, error)
            raise click.exceptions.Exit(error.exit_code) from error
        catch_signals(run)
        outcome = run.start()
    if outcome.error is not None and not hasattr(outcome.error, "exit_code"):
        logger.error("unexpected error, please report it", exc_info=outcome.error)
    elif outcome.error is not None:
        say_error(job, outcome.error)
    is_finished = outcome.error is None and not outcome.interrupted
    is_written = is_finished or bool(
        outcome.summary["rows"] and not isinstance(outcome.error, OutputError)
    )
    _report(job, outcome.summary, interrupted=outcome.interrupted, is_written=is_written)
    if any(thread.name == "reader" for thread in threading.enumerate()):
        # It waits for a line on stdin; the interpreter would wait with it.
        logging.shutdown()
        sys.stdout.flush()
        os._exit(outcome.exit_code)
    raise click.exceptions.Exit(outcome.exit_code)


def say_error(job: Job, error: BaseException) -> None:
    """What ended a run, as one line of the form that its log has."""
    text = " ".join(str(error).split())
    if job.log_format == "json":
        logger.error("%s", text)
    else:
        click.echo(f"vlmbatch: {text}", err=True)


def print_job(job: Job) -> None:
    """Prints the resolved job as YAML that ``vlmbatch run`` takes back, with the number of its
    items as a comment.
    """
    import yaml

    from vlmbatch.checkpoint import check_revision
    from vlmbatch.run.intake import count_items

    check_revision(job.model, job.revision)
    count = count_items(job)
    values = {**job.to_dict(), "output": job.output_path}
    click.echo(f"# {count} item{'' if count == 1 else 's'}")
    click.echo(yaml.safe_dump(values, sort_keys=False, allow_unicode=True, width=120), nl=False)


def catch_signals(run: Any) -> None:
    """The first Ctrl-C or SIGTERM stops the run in order; the second one ends it at once."""

    def stop(number: int, frame: FrameType | None) -> None:
        for each in (signal.SIGINT, signal.SIGTERM):
            signal.signal(each, signal.SIG_DFL)
        logging.getLogger("vlmbatch.report").info(
            "stopping: what is finished is committed, the same command goes on from there (again: quit at once)"
        )
        run.stop()

    for each in (signal.SIGINT, signal.SIGTERM):
        signal.signal(each, stop)


def _count(number: int, name: str) -> str:
    return f"{number} {name}{'' if number == 1 else 's'}"


def say_sidecars(counts: dict[str, int]) -> None:
    """What came of the sidecars."""
    say = logging.getLogger("vlmbatch.report").info
    changed = f" ({counts['unchanged']} more are as they were)" if counts["unchanged"] else ""
    say("%s written%s", _count(counts["written"], "sidecar"), changed)
    if counts["kept"]:
        say(
            "%s there that we did not write, or that was changed since: kept (--overwrite replaces)",
            _count(counts["kept"], "file"),
        )
    if counts["renamed"]:
        say(
            "%s named after the whole file, because another one has the shorter name",
            _count(counts["renamed"], "sidecar"),
        )
    if counts["no_place"]:
        say(
            "%s without a file on this disk to stand beside; use --sidecar-dir DIR",
            _count(counts["no_place"], "item"),
        )


def _report(job: Job, summary: dict[str, Any], *, interrupted: bool, is_written: bool) -> None:
    """The closing lines; those of a run that did not get to write OUTPUT do not name it."""
    say = logging.getLogger("vlmbatch.report").info
    status, kept, left = summary["status"], summary["kept"], summary["left_alone"]
    rate = f"{summary['items_per_second']:.2f} items/s, {summary['new_tokens_per_second']:.1f} tokens/s"
    parts = [
        f"{status.get('ok', 0)} ok",
        *([f"{status['similar']} similar"] if "similar" in status else []),
        _count(status.get("error", 0), "error"),
        *([f"{kept['rows']} done before"] if kept["rows"] else []),
    ]
    failed = summary["error"] is not None
    done = _count(summary["items"], "item")
    output = f" -> {without_credentials(job.output_path)}" if is_written else ""
    say(
        "%s%s in %.1f s (%s): %s%s",
        "interrupted: " if interrupted else "",
        done,
        summary["wall_seconds"],
        rate,
        ", ".join(parts),
        output,
    )
    for name, count in summary["errors"].items():
        say("  %d x %s", count, name)
    if left["other_media"]:
        other, command = ("video", "video") if job.media == "image" else ("image", "caption")
        say("%s left alone (use `vlmbatch %s`)", _count(left["other_media"], other), command)
    if kept["errors"]:
        say(
            "%s done before ended in an error; --retry-errors does them again",
            _count(kept["errors"], "item"),
        )
    if summary["found"] == 0 and not failed and not interrupted:
        say(
            "no %s",
            "images found"
            if job.media == "image"
            else "videos found, or nothing of them was asked for",
        )
    if left["without_question"]:
        say(
            "%s without a question%s",
            _count(left["without_question"], "item"),
            f" in {job.questions_file}" if job.questions_file else "",
        )
    if summary["questions"]:
        logger.warning("%s", summary["questions"]["hint"])
    if summary["cut_off"]["answers"]:
        say("%s", summary["cut_off"]["hint"])
    if summary["sidecars"]:
        say_sidecars(summary["sidecars"])
    if "similar" in status:
        answers = _count(status["similar"], "answer")
        say(
            "%d of %s resembled an earlier one: so many encodes and %s saved",
            summary["similar_items"],
            _count(summary["items"], "frame"),
            answers,
        )
    native, full = summary["native_tiles"], summary["full_tiles"]
    if native and native <= 0.75 * full:
        say("small pictures were enlarged to %d tiles; --detail native would take %d", full, native)
    for event in summary["engine"].get("oom_events", [])[:3]:
        say("out of memory in %s with %d: %s", event["phase"], event["size"], event["action"])
