"""``caption``, ``ocr``, ``vqa`` and ``video``: make a Job of the options and run it."""

from __future__ import annotations

import functools
import glob
import os
from collections.abc import Sequence
from typing import Any

import click

from vlmbatch.cli.options import GroupedCommand, GroupedOption, build_job, field_names, job_options
from vlmbatch.errors import JobError
from vlmbatch.job import Kind
from vlmbatch.tasks import TASKS
from vlmbatch.urls import is_url

INPUT_HELP = """INPUT is one or more of these: a file; a folder, with all below it; a glob; a
manifest
(.txt with one path a line; .csv, .tsv, .jsonl or .parquet with a column of paths, URLs or
pictures); an archive (.zip, .tar, .tar.gz, .tar.zst …); a URL (https://, s3://, gs://, hf:// …); or
- for paths and URLs on stdin. Paths in a manifest are relative to its folder.

Manifests and archives inside a folder are left alone: name them, or match them with a glob (a
manifest with one that ends in its suffix)."""
PAGES_HELP = """

Every page of a PDF is a picture. Of other files with several pictures (TIFF, GIF,
WebP …) the first one is taken: see --pages."""
INPUT_HELPS = {"image": INPUT_HELP + PAGES_HELP, "video": INPUT_HELP}


def _command(name: str, summary: str, *, media: Kind, asks: bool) -> click.Command:
    """Make a work command.

    Args:
        name: Its name; for images also its task.
        summary: First line of its help.
        media: ``image`` or ``video``.
        asks: Whether ``-q`` is a question; else it is ``--quiet``.
    """

    def callback(
        inputs: tuple[str, ...],
        dry_run: bool,
        estimate: bool,
        verbose: int,
        quiet: bool,
        **values: Any,
    ) -> None:
        from vlmbatch.cli.execute import execute

        if quiet and not asks:
            _check_no_question(inputs)
        fixed = {"inputs": inputs, "media": media, **({} if media == "video" else {"task": name})}
        job = build_job({**values, **fixed})
        execute(job, dry_run=dry_run, estimate=estimate, verbose=verbose, quiet=quiet)

    command = GroupedCommand(
        name, callback=callback, help=f"{summary}\n\n{INPUT_HELPS[media]}", no_args_is_help=True
    )
    command.advise = functools.partial(_advise, name)
    command.params.append(click.Argument(["inputs"], nargs=-1, required=True, metavar="INPUT..."))
    if media == "video":
        task = GroupedOption(
            ["--task", "task"],
            type=click.Choice(TASKS),
            default=None,
            help="Task for each frame, clip or window. [default: caption]",
            group="Question",
        )
        command.params.append(task)
    names = field_names(media)
    if name == "vqa":
        names.remove("prompt")
    if not asks:
        names.remove("question_column")
    if name in ("caption", "vqa"):
        names.remove("per")  # nothing to choose: a picture is asked about as a whole
    job_options([*(["questions", "questions_file"] if asks else []), *names], media)(command)
    add_estimate(command)
    add_reporting(command, quiet_flags=("--quiet",) if asks else ("-q", "--quiet"))
    return command


def _advise(name: str, flag: str) -> str:
    """Return what to do about an option that a work command does not have, and others have."""
    if name == "vqa" and flag == "--prompt":
        return "vqa asks questions: use -q TEXT"
    others = [
        f"`vlmbatch {other}`"
        for other, command in COMMANDS.items()
        if any(flag in parameter.opts for parameter in command.params)
    ]
    return f"it goes with {' and '.join(others)}" if others else ""


def _check_no_question(inputs: Sequence[str]) -> None:
    """Refuse a question after -q, which is --quiet where no questions are asked."""
    for text in inputs:
        is_phrase = text.endswith("?") or (" " in text and not os.path.splitext(text)[1])
        if is_phrase and not (is_url(text) or os.path.exists(text) or glob.glob(text)):
            raise JobError(
                f"no file matches {text!r}; -q is --quiet here: use `vlmbatch vqa` for questions"
            )


def add_estimate(command: click.Command) -> None:
    """Add --estimate."""
    help_text = (
        "Print how long the job takes on this machine at each --detail: count the items and their "
        "tiles, time a few tiles and decode steps, ask nothing."
    )
    command.params.append(GroupedOption(["--estimate"], is_flag=True, help=help_text))


def add_reporting(command: click.Command, quiet_flags: tuple[str, ...] = ("-q", "--quiet")) -> None:
    """Add the options of every command that runs a job: --dry-run, -v and -q."""
    command.params += [
        GroupedOption(
            ["--dry-run"],
            is_flag=True,
            help="Print the resolved job as YAML, and how many items are new, changed or done; "
            "load no model.",
        ),
        GroupedOption(["-v", "--verbose"], count=True, help="Log more; twice: log everything."),
        GroupedOption([*quiet_flags, "quiet"], is_flag=True, help="Log errors only."),
    ]


COMMANDS = {
    "caption": _command("caption", "Write one caption for each image.", media="image", asks=False),
    "ocr": _command("ocr", "Read the text in each image.", media="image", asks=False),
    "vqa": _command(
        "vqa",
        "Ask questions about each image: -q TEXT, repeatable, or --questions FILE.",
        media="image",
        asks=True,
    ),
    "video": _command(
        "video",
        "Ask about sampled frames, whole clips or windows of each video.",
        media="video",
        asks=True,
    ),
}
