"""``export``: an OUTPUT in another form, without asking the model again."""

from __future__ import annotations

import codecs
import contextlib
from pathlib import Path
from typing import TYPE_CHECKING

import click

from vlmbatch.errors import JobError, NothingFound
from vlmbatch.export.rows import RowFilter, TableLayout
from vlmbatch.tasks import TASKS
from vlmbatch.urls import is_url, url_name, without_credentials
from vlmbatch.wording import number_of

if TYPE_CHECKING:
    from vlmbatch.export.outputs import Outputs
    from vlmbatch.export.wide import WideTable

TABLES = ("jsonl", "parquet", "csv")
TEXTS = ("txt", "srt", "vtt")
FOLDER = "imagefolder"
STATUSES = ("ok", "error", "similar")


@click.command(name="export")
@click.argument("outputs", metavar="OUTPUT...", nargs=-1, required=True)
@click.option(
    "--to",
    "form",
    type=click.Choice((*TABLES, *TEXTS, FOLDER)),
    required=True,
    help="A table of all rows; a text or subtitle file each; or a folder of pictures with "
    "metadata.jsonl, which `datasets` loads.",
)
@click.option(
    "-o",
    "--output",
    "target",
    metavar="PATH",
    help="Tables: the file or its URL (s3://, gs://, hf:// ...), `-` for stdout [default: OUTPUT "
    "with the other suffix]. Texts and subtitles: a folder, or the file or its URL when OUTPUT is "
    "about one picture or video [default: beside the sources]. imagefolder: a new folder [default: "
    "OUTPUT with that suffix].",
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
@click.option(
    "--wide",
    is_flag=True,
    help="Tables: a row for each picture, page, frame, clip or window, with a column for each "
    "question. A column has the name that -q NAME=TEXT gave, else that of the task, or the "
    "question's text.",
)
@click.option(
    "--link",
    is_flag=True,
    help="imagefolder: symbolic links to the pictures. Without it they are copied.",
)
@click.option("--overwrite", is_flag=True, help="Replace what is there.")
@click.option(
    "--overwrite-all",
    is_flag=True,
    help="Of texts and subtitles, also replace those of others, and those that were edited.",
)
@click.option(
    "--bom",
    is_flag=True,
    help="csv: begin with a byte order mark, which Excel needs to read UTF-8.",
)
def _export(
    outputs: tuple[str, ...],
    form: str,
    target: str | None,
    overwrite: bool,
    overwrite_all: bool,
    bom: bool,
    wide: bool,
    link: bool,
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

    Several OUTPUTs become one table: a column `output` says whose a row is. In a --wide table,
    answers of several OUTPUTs to one question have a column each.
    """
    from vlmbatch.export.outputs import Output, Outputs
    from vlmbatch.export.places import check_target
    from vlmbatch.write import local_copy

    layout = TableLayout(
        tuple(name.strip() for name in (columns or "").split(",") if name.strip()), sort, limit
    )
    _check_options(outputs, form, layout, bom=bom, wide=wide, link=link, target=target)
    if target is not None:
        check_target(target, outputs)
    with contextlib.ExitStack() as copies:
        found = [
            Output(
                without_credentials(name),
                copies.enter_context(local_copy(name, allow_private=True)),
            )
            for name in outputs
        ]
        name = Path(url_name(outputs[0]) if is_url(outputs[0]) else outputs[0])
        rows = RowFilter(**wanted)
        if form in TABLES:
            place = target or str(name.with_suffix(f".{form}"))
            export_table(
                Outputs(found, rows), form, place, layout, overwrite=overwrite, bom=bom, wide=wide
            )
        elif form == FOLDER:
            folder = Path(target or name.with_suffix(f".{FOLDER}"))
            export_pictures(Outputs(found, rows), folder, link=link, overwrite=overwrite)
        else:
            again = {"overwrite": overwrite or overwrite_all, "overwrite_all": overwrite_all}
            export_texts(name, found[0].path, form, target, rows, **again)


def _check_options(
    outputs: tuple[str, ...],
    form: str,
    layout: TableLayout,
    *,
    bom: bool,
    wide: bool,
    link: bool,
    target: str | None,
) -> None:
    """Check which options go together.

    Raises:
        JobError: Some do not.
    """
    if bom and form != "csv":
        raise JobError("--bom goes with --to csv")
    if form not in TABLES and layout != TableLayout():
        raise JobError(f"--columns, --sort and --limit go with tables, not with --to {form}")
    if wide and form not in TABLES:
        raise JobError(f"--wide goes with tables, not with --to {form}")
    if link and form != FOLDER:
        raise JobError(f"--link goes with --to {FOLDER}")
    if len(outputs) > 1 and form in TEXTS:
        raise JobError(f"--to {form} takes one OUTPUT at a time, not {len(outputs)}")
    if len(outputs) > 1 and target is None:
        raise JobError("several OUTPUTs have no name together: give -o")
    if form == FOLDER and target is not None and (is_url(target) or target == "-"):
        raise JobError(
            f"--to {FOLDER} writes a folder of this disk, not {without_credentials(target)}"
        )


def export_table(
    outputs: Outputs,
    form: str,
    place: str,
    layout: TableLayout,
    *,
    overwrite: bool,
    bom: bool,
    wide: bool,
) -> None:
    """Write a table."""
    from vlmbatch.export.tables import write_table
    from vlmbatch.export.wide import WideTable

    table = WideTable(outputs.counted()) if wide else None
    opening = codecs.BOM_UTF8 if bom else b""
    count = write_table(outputs, form, place, layout, table, overwrite=overwrite, opening=opening)
    _say_repeated(outputs, table)
    if not count and (why := outputs.why_empty()):
        click.echo(f"no rows of {outputs.name}: {why}", err=True)
    if place != "-":
        click.echo(f"{number_of(count, 'row')} -> {without_credentials(place)}", err=True)


def _say_repeated(outputs: Outputs, table: WideTable | None) -> None:
    """Say what several OUTPUTs have in common, and which cells are empty."""
    if outputs.repeated:
        id, task, prompt = outputs.repeated
        rows = "row is" if outputs.num_repeated == 1 else "rows are"
        told = "the column output tells them apart" if table is None else "each has its column"
        click.echo(
            f"{outputs.num_repeated} {rows} in several OUTPUTs, such as {id} ({task}: {prompt}): "
            + told,
            err=True,
        )
    if table is not None and table.num_same_id:
        ids = "id has" if table.num_same_id == 1 else "ids have"
        click.echo(
            f"{table.num_same_id} {ids} several files: each file has its row, and `source` tells "
            "them apart",
            err=True,
        )
    if table is not None and table.num_errors:
        rows = "error row" if table.num_errors == 1 else "error rows"
        click.echo(f"{table.num_errors} {rows}: no text in these cells", err=True)


def export_pictures(outputs: Outputs, folder: Path, *, link: bool, overwrite: bool) -> None:
    """Write a folder of pictures that ``datasets`` loads."""
    from vlmbatch.export.image_folder import listed, write_image_folder
    from vlmbatch.export.wide import WideTable

    why = outputs.why_empty()
    if why is not None:
        raise NothingFound(f"no rows of {outputs.name} for {folder}: {why}")
    table = WideTable(outputs.counted())
    done = write_image_folder(table, folder, link=link, overwrite=overwrite)
    _say_repeated(outputs, table)
    for count, what in (
        (done.without_answer, "no answer"),
        (done.without_file, f"no picture file on this disk ({listed(done.why_no_file)})"),
    ):
        if count:
            click.echo(f"left out: {number_of(count, 'item')}: {what}", err=True)
    if done.in_train:
        click.echo(
            "datasets would read a split in some names: all pictures are in the folder train",
            err=True,
        )
    pictures = number_of(done.pictures, "picture")
    click.echo(f"{pictures}{' (links)' if link else ''} -> {folder}", err=True)


def export_texts(
    output: Path,
    path: Path,
    form: str,
    target: str | None,
    wanted: RowFilter,
    *,
    overwrite: bool,
    overwrite_all: bool,
) -> None:
    """Write a text or subtitle file for each picture or video, or the only one.

    Args:
        output: Name of the OUTPUT.
        path: The file that is read.
        form: One of ``TEXTS``.
        target: Where they go, as given.
        wanted: The rows that are taken.
        overwrite: Whether what is there is replaced.
        overwrite_all: Whether files of others beside pictures are, too.
    """
    from vlmbatch.cli.closing import say_sidecars
    from vlmbatch.cli.logs import set_up_logging
    from vlmbatch.export.nothing import explain_no_rows
    from vlmbatch.export.texts import check_times, is_one_file, write_text
    from vlmbatch.write import Sidecars, read_by_file, read_records, sidecars_path

    is_file = is_one_file(form, target)
    why = explain_no_rows(read_records(path, ("task", "prompt", "status")), wanted)
    if why is not None:
        click.echo(f"no rows of {output}: {why}", err=True)
    if form != "txt":
        check_times(output, wanted.of(read_records(path)), form)
    files = read_by_file(path, wanted.has)
    if target is not None and is_file:
        write_text(output, path, files, form, target, overwrite=overwrite)
        click.echo(f"1 file -> {without_credentials(target)}", err=True)
        return
    set_up_logging("text", verbose=0, quiet=False, bar=False)
    sidecars = Sidecars(
        form,
        sidecars_path(output),
        folder=None if target is None else Path(target),
        overwrite=overwrite,
        overwrite_all=overwrite_all,
    )
    say_sidecars(sidecars.write(files))


COMMANDS = {"export": _export}
