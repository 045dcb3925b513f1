"""``export``: an OUTPUT in another form, without asking the model again."""

from __future__ import annotations

import codecs
import contextlib
import dataclasses
import os
import sys
import tempfile
import urllib.parse
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import click

from vlmbatch.errors import JobError, OutputError
from vlmbatch.tasks import TASKS
from vlmbatch.urls import can_be_written, is_url, url_name, without_credentials

TABLES = ("jsonl", "parquet", "csv")
TEXTS = ("txt", "srt", "vtt")
STATUSES = ("ok", "error", "similar")


@click.command(name="export")
@click.argument("output", metavar="OUTPUT")
@click.option(
    "--to",
    "form",
    type=click.Choice((*TABLES, *TEXTS)),
    required=True,
    help="A table of all rows, or a text or subtitle file each.",
)
@click.option(
    "-o",
    "--output",
    "target",
    metavar="PATH",
    help="Tables: the file or its URL (s3://, gs://, hf:// ...), `-` for stdout [default: OUTPUT with the other suffix]. Texts and subtitles: a folder, or "
    "the file or its URL when OUTPUT is about one picture or video [default: beside the sources].",
)
@click.option(
    "--task",
    "tasks",
    multiple=True,
    type=click.Choice(TASKS),
    help="Only rows of this task; may be given several times.",
)
@click.option(
    "--prompt",
    "prompts",
    multiple=True,
    metavar="TEXT",
    help="Only answers to this question or instruction; may be given several times.",
)
@click.option(
    "--status",
    "statuses",
    multiple=True,
    type=click.Choice(STATUSES),
    help="Only rows with this status; may be given several times.",
)
@click.option("--overwrite", is_flag=True, help="Replace what is there.")
@click.option(
    "--bom",
    is_flag=True,
    help="csv: begin with a byte order mark, without which Excel does not see that it is UTF-8.",
)
def _export(
    output: str,
    form: str,
    target: str | None,
    overwrite: bool,
    bom: bool,
    **wanted: tuple[str, ...],
) -> None:
    """OUTPUT as a table of another format, or as a text or subtitle file for each picture or video.

    Tables have every row, or those that --task, --prompt and --status leave. Texts and subtitles
    are what --sidecar writes: rows with an answer, files of others left alone. OUTPUT may be a URL;
    what is made of it is called after it, in the current folder, unless -o says another place.
    """
    from vlmbatch.write import local_copy

    if bom and form != "csv":
        raise JobError("--bom goes with --to csv")
    if target is not None and is_url(target):
        if not can_be_written(target):
            raise JobError(
                f"-o must be a file, or a URL of a store that can be written such as s3://, gs:// or hf://, not {without_credentials(target)}"
            )
        if _place_of(target) == _place_of(output):
            raise JobError(
                f"{without_credentials(target)} is the OUTPUT itself: give -o another file"
            )
    with local_copy(output, allow_private=True) as path:
        export(
            path,
            Path(url_name(output) if is_url(output) else output),
            form,
            target,
            Wanted(**wanted),
            overwrite=overwrite,
            bom=bom,
        )


@dataclasses.dataclass(frozen=True)
class Wanted:
    """Which rows are taken; of each column those with one of the values, all where there are none.

    Attributes:
        tasks: Tasks.
        prompts: Questions and instructions, word for word.
        statuses: Values of ``status``.
    """

    tasks: tuple[str, ...] = ()
    prompts: tuple[str, ...] = ()
    statuses: tuple[str, ...] = ()

    def of(self, rows: Iterator[dict[str, Any]]) -> Iterator[dict[str, Any]]:
        """The rows that are taken."""
        columns = [
            (name, values)
            for name, values in (
                ("task", self.tasks),
                ("prompt", self.prompts),
                ("status", self.statuses),
            )
            if values
        ]
        return (row for row in rows if all(row[name] in values for name, values in columns))


def export(
    path: Path,
    output: Path,
    form: str,
    target: str | None,
    wanted: Wanted,
    *,
    overwrite: bool,
    bom: bool,
) -> None:
    """Writes what is asked for.

    Args:
        path: The file that is read.
        output: What it is called: the same, or a name in the current folder.
        form: One of ``TABLES`` or ``TEXTS``.
        target: Where it goes, as given.
        wanted: Which rows are taken.
        overwrite: Whether what is there is replaced.
        bom: Whether CSV begins with a byte order mark.
    """
    from vlmbatch.write import read_records, read_summary
    from vlmbatch.write.columns import carried_kinds

    rows = wanted.of(read_records(path))  # says at once when there is nothing to read
    if form in TABLES:
        extra = (
            carried_kinds(wanted.of(read_records(path))) if form != "jsonl" else {}
        )  # which only a look at every row tells
        export_table(
            output,
            rows,
            (read_summary(path) or {}).get("job"),
            extra,
            form,
            target,
            overwrite=overwrite,
            bom=bom,
        )
    elif (
        target is not None
        and _name_of(target).suffix.lower() == f".{form}"
        and not os.path.isdir(target)
    ):
        export_text(output, rows, form, target, overwrite=overwrite)
    elif target is not None and is_url(target):
        raise JobError(
            f"{form} files go to a folder of this disk, or one of them to a URL that ends in .{form}, not to {without_credentials(target)}"
        )
    elif target == "-":
        raise JobError(
            f"{form} files cannot go to stdout: give -o FOLDER, or -o FILE.{form} for one picture or video"
        )
    else:
        export_texts(output, rows, form, target, overwrite=overwrite)


def export_table(
    output: Path,
    rows: Iterator[dict[str, Any]],
    job: dict[str, Any] | None,
    extra: Mapping[str, Any],
    form: str,
    target: str | None,
    *,
    overwrite: bool,
    bom: bool,
) -> None:
    """Writes rows to a table of another format, whole or not at all; ``job`` goes into its
    metadata, ``extra`` are the kinds of carried columns.
    """
    from vlmbatch.write.formats import find_format

    place = target if target is not None and target != "-" else str(output.with_suffix(f".{form}"))
    if _name_of(place).suffix.lower() != f".{form}":
        raise JobError(
            f"--to {form} writes a file that ends in .{form}, not {without_credentials(place)}"
        )
    format = find_format(_name_of(place))
    opening = codecs.BOM_UTF8 if bom else b""
    if target == "-":
        if form == "parquet":
            raise JobError("parquet does not go to stdout: give -o FILE.parquet")
        sys.stdout.buffer.write(opening)
        format.write_rows(sys.stdout.buffer, rows, job, extra)
        sys.stdout.buffer.flush()
        return
    count = 0

    def counted() -> Iterator[dict[str, Any]]:
        nonlocal count
        for count, row in enumerate(rows, 1):  # noqa: B007
            yield row

    with _writing(output, place, overwrite) as file:
        file.write(opening)
        format.write_rows(file, counted(), job, extra)
    click.echo(f"{count} row{'' if count == 1 else 's'} -> {without_credentials(place)}", err=True)


def export_text(
    output: Path, rows: Iterator[dict[str, Any]], form: str, target: str, *, overwrite: bool
) -> None:
    """Writes the one file of an OUTPUT that is about one picture or video."""
    sidecars = _gather(output, rows, form, None, overwrite=overwrite)
    found = [content for *_, content in sidecars.contents()]
    if len(found) != 1 or found[0] is None:
        raise JobError(
            f"{output} is about {len(found)} files, not one: give -o FOLDER"
            if len(found) != 1
            else f"{output} has no answer to write"
        )
    with _writing(output, target, overwrite) as file:
        file.write(found[0])
    click.echo(f"1 file -> {without_credentials(target)}", err=True)


def export_texts(
    output: Path, rows: Iterator[dict[str, Any]], form: str, folder: str | None, *, overwrite: bool
) -> None:
    """Writes a file for each picture or video, as ``--sidecar`` does."""
    from vlmbatch.cli.closing import say_sidecars
    from vlmbatch.cli.logs import set_up_logging

    set_up_logging("text", verbose=0, quiet=False, bar=False)
    say_sidecars(_gather(output, rows, form, folder, overwrite=overwrite).write())


def _gather(
    output: Path, rows: Iterator[dict[str, Any]], form: str, folder: str | None, *, overwrite: bool
) -> Any:
    from vlmbatch.write import Sidecars, sidecars_path

    sidecars = Sidecars(
        form,
        sidecars_path(output),
        folder=None if folder is None else Path(folder),
        overwrite=overwrite,
    )
    answers = timed = 0
    for row in rows:
        sidecars.expect(row["id"], row["source"])
        sidecars.add(row)
        answers += row["status"] != "error"
        timed += row["time_seconds"] is not None
    if form != "txt" and answers and not timed:
        raise JobError(f"{output} has no times: {form} files are made from videos")
    return sidecars


def _place_of(target: str) -> str:
    """The same for every way of writing a place."""
    if target.lower().startswith("file://"):
        target = urllib.parse.unquote(urllib.parse.urlsplit(target).path)
    return target if is_url(target) else os.path.realpath(target)


def _name_of(target: str) -> Path:
    """What a file or URL is called, its suffix in place."""
    return Path(url_name(target) if is_url(target) else target)


@contextlib.contextmanager
def _writing(output: Path, target: str, overwrite: bool) -> Iterator[BinaryIO]:
    """Opens a file that takes its place, on this disk or behind a URL, once the block has ended
    well.
    """
    from vlmbatch.write.atomic import replacing
    from vlmbatch.write.remote.file import RemoteFile

    if is_url(target):
        remote = RemoteFile(target, allow_private=True)
        if not overwrite and remote.fingerprint() is not None:
            raise OutputError(f"{remote.shown} is there; --overwrite replaces it")
        with tempfile.TemporaryDirectory(prefix="vlmbatch-") as folder:
            path = Path(folder) / url_name(target)
            with replacing(path) as file:
                yield file
            remote.put(path)
        return
    path = Path(target)
    _make_way(output, path, overwrite)
    with replacing(path) as file:
        yield file


def _make_way(output: Path, path: Path, overwrite: bool) -> None:
    if path.exists() and output.exists() and os.path.samefile(path, output):
        raise JobError(f"{path} is the OUTPUT itself: give -o another file")
    if path.exists() and not overwrite:
        raise OutputError(f"{path} is there; --overwrite replaces it")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"cannot write {path}: {error.strerror}") from error


COMMANDS = {"export": _export}
