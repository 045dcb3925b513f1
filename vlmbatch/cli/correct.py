"""``correct``: put corrections by people back into an OUTPUT."""

from __future__ import annotations

import os
from pathlib import Path

import click

from vlmbatch.cli.options import OutputName
from vlmbatch.urls import without_credentials
from vlmbatch.wording import number_of

SHOWN = 3


@click.command(name="correct")
@click.argument("output", type=OutputName())
@click.argument("corrections", metavar="FILE|FOLDER", type=click.Path(exists=True))
def _correct(output: str, corrections: str) -> None:
    """Put corrections back into OUTPUT, which may be a URL.

    FILE is a .jsonl or .csv with columns id and text, such as a table that `export` wrote; a
    column prompt or task tells several answers about an item apart. FOLDER has the .txt files of
    --sidecar, edited: the pictures' folder, or that of --sidecar-dir.

    A sidecar that nobody edited, and the model's own text, are no corrections: they take no other
    correction back. In OUTPUT, text becomes the corrected text, and text_original keeps what the
    model said. Later runs keep corrected rows, whatever happens to their sources. eval and
    finetune take the corrected OUTPUT.
    """
    from vlmbatch.correct import correct_output
    from vlmbatch.write import default_staging_root

    cache = os.environ.get("XDG_CACHE_HOME")
    staging = str(default_staging_root(Path(cache))) if cache else None
    done = correct_output(output, Path(corrections), staging_dir=staging)
    for reason in done.unused[:SHOWN]:
        click.echo(f"left out: {reason}", err=True)
    if len(done.unused) > SHOWN:
        click.echo(f"left out: {len(done.unused) - SHOWN} more", err=True)
    source = os.path.normpath(corrections)
    if done.replaced:
        click.echo(f"{_texts(done.replaced)} corrected before: {source} replaces them", err=True)
    if done.kept:
        click.echo(
            f"{_texts(done.kept)} kept: what {source} has there was written by vlmbatch, and is no "
            "correction (--redo ids:FILE asks the model again)",
            err=True,
        )
    same = f", {done.same} as they were" if done.same else ""
    texts = f"{number_of(done.texts, 'text')} corrected"
    click.echo(f"{texts}{same} -> {without_credentials(output)}", err=True)


def _texts(ids: tuple[str, ...]) -> str:
    return f"{number_of(len(ids), 'text')} (such as {ids[0]})"


COMMANDS = {"correct": _correct}
