"""``caption``, ``ocr``, ``vqa`` and ``video``: options to a Job, and the Job to a run."""

from __future__ import annotations

from typing import Any

import click

from vlmbatch.cli.options import GroupedCommand, GroupedOption, build_job, field_names, job_options
from vlmbatch.job import Kind
from vlmbatch.tasks import TASKS

INPUT_HELP = (
    "INPUT is a file, a folder (with all below it), a glob, a manifest (.txt with a path a line; .csv, .tsv, .jsonl or .parquet with a column of paths, URLs "
    "or pictures), an archive (.zip, .tar, .tar.gz, .tar.zst …), a URL (https://, s3://, gs://, hf:// …), or - for paths and URLs on stdin. Manifests and "
    "archives are opened where they are named or matched by a glob "
    "(a manifest: by one that ends in its suffix), and left alone inside folders; paths in a manifest count from its folder."
)
PAGES_HELP = " A PDF counts as a picture a page, named or found in a folder. Other files with several pictures (TIFF, GIF, WebP …) give their first: see --pages."
INPUT_HELPS = {
    "image": INPUT_HELP + PAGES_HELP,
    "video": INPUT_HELP,
}


def _command(name: str, summary: str, *, media: Kind, asks: bool) -> click.Command:
    """One work command.

    Args:
        name: Its name; that of its task, but for ``video``.
        summary: First line of its help.
        media: ``image`` or ``video``.
        asks: Whether ``-q`` is a question here; elsewhere it is ``--quiet``.
    """

    def callback(
        inputs: tuple[str, ...], dry_run: bool, verbose: int, quiet: bool, **values: Any
    ) -> None:
        from vlmbatch.cli.execute import execute

        fixed = {"inputs": inputs, "media": media, **({} if media == "video" else {"task": name})}
        execute(build_job({**values, **fixed}), dry_run=dry_run, verbose=verbose, quiet=quiet)

    command = GroupedCommand(
        name, callback=callback, help=f"{summary}\n\n{INPUT_HELPS[media]}", no_args_is_help=True
    )
    command.params.append(click.Argument(["inputs"], nargs=-1, required=True, metavar="INPUT..."))
    if media == "video":
        task = GroupedOption(
            ["--task", "task"],
            type=click.Choice(TASKS),
            default=None,
            help="What to do with each frame, clip or window. [default: caption]",
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
    add_reporting(command, quiet_flags=("--quiet",) if asks else ("-q", "--quiet"))
    return command


def add_reporting(command: click.Command, quiet_flags: tuple[str, ...] = ("-q", "--quiet")) -> None:
    """Adds what every command that runs a job has: --dry-run, -v and -q."""
    command.params += [
        GroupedOption(
            ["--dry-run"],
            is_flag=True,
            help="Print the resolved job as YAML and how many items it finds; load no model.",
        ),
        GroupedOption(["-v", "--verbose"], count=True, help="Say more; twice: say everything."),
        GroupedOption([*quiet_flags, "quiet"], is_flag=True, help="Say nothing but errors."),
    ]


COMMANDS = {
    "caption": _command("caption", "One caption per image.", media="image", asks=False),
    "ocr": _command("ocr", "The text in each image.", media="image", asks=False),
    "vqa": _command(
        "vqa",
        "Each question about each image: -q TEXT as often as you like, or --questions FILE.",
        media="image",
        asks=True,
    ),
    "video": _command(
        "video",
        "Captions, text or answers for sampled frames, whole clips or windows of each video.",
        media="video",
        asks=True,
    ),
}
