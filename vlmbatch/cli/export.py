"""``export``: an OUTPUT in another form, without asking the model again."""

from __future__ import annotations

import codecs
import contextlib
import functools
import os
import sys
import tempfile
import urllib.parse
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import click

from vlmbatch.errors import JobError, OutputError
from vlmbatch.export.rows import RowFilter, TableLayout
from vlmbatch.tasks import TASKS
from vlmbatch.urls import can_be_written, is_url, url_name, without_credentials

if TYPE_CHECKING:
    from vlmbatch.write.records import FileRows

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
    help="Tables: the file or its URL (s3://, gs://, hf:// ...), `-` for stdout [default: OUTPUT "
    "with the other suffix]. Texts and subtitles: a folder, or the file or its URL when OUTPUT is "
    "about one picture or video [default: beside the sources].",
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
@click.option(
    "--columns",
    metavar="A,B,…",
    help="Tables: only these columns, in this order. `page` is the number of a document's page.",
)
@click.option(
    "--sort",
    metavar="COLUMN",
    help="Tables: the rows by this column, the smallest first, rows without a value last; "
    "mean_logprob puts the answers first that the model was least sure of.",
)
@click.option("--limit", type=click.IntRange(1), metavar="N", help="Tables: the first N rows.")
@click.option("--overwrite", is_flag=True, help="Replace what is there.")
@click.option(
    "--bom",
    is_flag=True,
    help="csv: begin with a byte order mark, which Excel needs to read UTF-8.",
)
def _export(
    output: str,
    form: str,
    target: str | None,
    overwrite: bool,
    bom: bool,
    columns: str | None,
    sort: str | None,
    limit: int | None,
    **wanted: tuple[str, ...],
) -> None:
    """Write OUTPUT as a table of another format, or as a text or subtitle file for each picture or
    video.

    Tables have every row, or those that --task, --prompt and --status choose. Texts and subtitles
    are those that --sidecar writes: of rows with an answer, and files of others stay. OUTPUT may be
    a URL; the result has its name, in the current folder, unless -o names another place.
    """
    from vlmbatch.write import local_copy

    if bom and form != "csv":
        raise JobError("--bom goes with --to csv")
    layout = TableLayout(
        tuple(name.strip() for name in (columns or "").split(",") if name.strip()), sort, limit
    )
    if form in TEXTS and layout != TableLayout():
        raise JobError(f"--columns, --sort and --limit go with tables, not with --to {form}")
    if target is not None and is_url(target):
        if not can_be_written(target):
            raise JobError(
                "-o must be a file, or a URL of a store that can be written such as s3://, gs:// "
                f"or hf://, not {without_credentials(target)}"
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
            RowFilter(**wanted),
            layout,
            overwrite=overwrite,
            bom=bom,
        )


def export(
    path: Path,
    output: Path,
    form: str,
    target: str | None,
    wanted: RowFilter,
    layout: TableLayout,
    *,
    overwrite: bool,
    bom: bool,
) -> None:
    """Write one form of an OUTPUT.

    Args:
        path: The file that is read.
        output: Its name: the same, or one in the current folder.
        form: One of ``TABLES`` or ``TEXTS``.
        target: Where it goes, as given.
        wanted: The rows that are taken.
        layout: Columns and order of a table.
        overwrite: Whether what is there is replaced.
        bom: Whether CSV begins with a byte order mark.
    """
    from vlmbatch.write import read_by_file, read_records, read_summary
    from vlmbatch.write.columns import carried_kinds
    from vlmbatch.write.formats import find_format

    if form in TABLES:
        # Only a look at every row tells the kinds of carried columns.
        looks = form != "jsonl" or layout != TableLayout()
        extra = carried_kinds(wanted.of(read_records(path))) if looks else {}
        extra = layout.check(extra, str(output))
        rows = wanted.of(read_records(path))
        job = (read_summary(path) or {}).get("job")
        write = functools.partial(find_format(Path(f"x.{form}")).write_rows, job=job, extra=extra)
        write = functools.partial(write, columns=layout.columns or None)
        export_table(output, layout.of(rows), write, form, target, overwrite=overwrite, bom=bom)
        return
    is_file = (
        target is not None
        and _name_of(target).suffix.lower() == f".{form}"
        and not os.path.isdir(target)
    )
    if target == "-":
        raise JobError(
            f"{form} files cannot go to stdout: give -o FOLDER, or -o FILE.{form} for one picture "
            "or video"
        )
    if target is not None and is_url(target) and not is_file:
        raise JobError(
            f"{form} files go to a folder of this disk, or one of them to a URL that ends in "
            f".{form}, not to {without_credentials(target)}"
        )
    if form != "txt":
        check_times(output, wanted.of(read_records(path)), form)
    files = read_by_file(path, wanted.has)
    if target is not None and is_file:
        export_text(output, files, form, target, overwrite=overwrite)
    else:
        export_texts(output, files, form, target, overwrite=overwrite)


def export_table(
    output: Path,
    rows: Iterator[dict[str, Any]],
    write: Callable[..., None],
    form: str,
    target: str | None,
    *,
    overwrite: bool,
    bom: bool,
) -> None:
    """Write rows to a table of another format, whole or not at all. ``write`` takes a file and
    rows.
    """
    place = target if target is not None and target != "-" else str(output.with_suffix(f".{form}"))
    if _name_of(place).suffix.lower() != f".{form}":
        raise JobError(
            f"--to {form} writes a file that ends in .{form}, not {without_credentials(place)}"
        )
    opening = codecs.BOM_UTF8 if bom else b""
    if target == "-":
        if form == "parquet":
            raise JobError("parquet does not go to stdout: give -o FILE.parquet")
        sys.stdout.buffer.write(opening)
        write(sys.stdout.buffer, rows)
        sys.stdout.buffer.flush()
        return
    count = 0

    def counted() -> Iterator[dict[str, Any]]:
        nonlocal count
        for count, row in enumerate(rows, 1):  # noqa: B007
            yield row

    with _writing(output, place, overwrite) as file:
        file.write(opening)
        write(file, counted())
    click.echo(f"{count} row{'' if count == 1 else 's'} -> {without_credentials(place)}", err=True)


def export_text(
    output: Path, files: Iterator[FileRows], form: str, target: str, *, overwrite: bool
) -> None:
    """Write the one file of an OUTPUT that is about one picture or video."""
    from vlmbatch.write import make_content

    found = [make_content(form, rows) for _, rows in files]
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
    output: Path, files: Iterator[FileRows], form: str, folder: str | None, *, overwrite: bool
) -> None:
    """Write a file for each picture or video, as ``--sidecar`` does."""
    from vlmbatch.cli.closing import say_sidecars
    from vlmbatch.cli.logs import set_up_logging
    from vlmbatch.write import Sidecars, sidecars_path

    set_up_logging("text", verbose=0, quiet=False, bar=False)
    sidecars = Sidecars(
        form,
        sidecars_path(output),
        folder=None if folder is None else Path(folder),
        overwrite=overwrite,
    )
    say_sidecars(sidecars.write(files))


def check_times(output: Path, rows: Iterator[dict[str, Any]], form: str) -> None:
    """Refuse subtitles of an OUTPUT that has answers and no times.

    Raises:
        JobError: It is so.
    """
    answers = [row["time_seconds"] is not None for row in rows if row["status"] != "error"]
    if answers and not any(answers):
        raise JobError(f"{output} has no times: {form} files are made from videos")


def _place_of(target: str) -> str:
    """Return the same text for every way of writing a place."""
    if target.lower().startswith("file://"):
        target = urllib.parse.unquote(urllib.parse.urlsplit(target).path)
    return target if is_url(target) else os.path.realpath(target)


def _name_of(target: str) -> Path:
    """Return the name of a file or URL, with its suffix."""
    return Path(url_name(target) if is_url(target) else target)


@contextlib.contextmanager
def _writing(output: Path, target: str, overwrite: bool) -> Iterator[BinaryIO]:
    """Open a file that takes its place, on this disk or behind a URL, once the block has ended
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
