"""``eval``: score the answers of an OUTPUT against a reference."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from vlmbatch.cli.json_file import check_json_path, json_option, write_json
from vlmbatch.cli.options import OutputName
from vlmbatch.evaluate.options import METRICS, Columns, EvalOptions, parse_limits
from vlmbatch.tasks import TASKS
from vlmbatch.urls import without_credentials

BELOW_LIMIT = 4
"""Exit code when a ``--fail-under`` is not held; also that of ``--max-errors``."""

HELP = """Score the answers of OUTPUT (a file or URL) against a reference.

The reference is .jsonl, .csv or .parquet with the columns `id` and `answer` (or `caption`, `text`,
or `answers`, a list) and, if several questions were asked, `prompt` (or `question`). Rows of the
same id and question add up. Another OUTPUT whose texts were corrected is a reference too, and so
is a folder of .txt files beside pictures, as --sidecar txt writes them and you corrected them.
A corrected OUTPUT may be its own reference: then text_original is scored against text.

Rows are joined by id and prompt, or by id alone if the reference has no prompts. If no id is the
same on both sides, ids are joined by the end of the path: a/1.jpg and /data/a/1.jpg. Rows without a
partner are counted and named; error rows are wrong answers.

\b
exact       equal, letter for letter
normalized  equal without case, punctuation, articles and white space
vqa         VQA accuracy, min(1, matches / 3); needs 4 right answers or more
anls        edit similarity, 0 below one half: for documents
cer, wer    character and word error rate of the whole OUTPUT, with white space
            as single spaces; less is better
chrf        chrF2 of the whole OUTPUT, 0 to 100

Intervals are bootstrap percentiles (95 %) over rows. Exit codes: 0; 2 for bad usage or a reference
that cannot be understood; 4 when a --fail-under is not held."""

DEFAULTS = EvalOptions()
PATH = click.Path(exists=True, path_type=Path)
OUTPUT = OutputName()


@click.command(name="eval", help=HELP, no_args_is_help=True)
@click.argument("output", type=OUTPUT)
@click.option(
    "--reference",
    required=True,
    type=PATH,
    metavar="FILE|FOLDER",
    help="File of right answers, or folder of .txt files.",
)
@click.option(
    "--against",
    type=OUTPUT,
    metavar="OTHER",
    help="Compare with another OUTPUT, over the rows that both have.",
)
@click.option(
    "--metric",
    "metrics",
    multiple=True,
    type=click.Choice(METRICS),
    help="Measure only this; repeatable. [default: all that apply]",
)
@click.option("--task", type=click.Choice(TASKS), help="Score only rows of this task.")
@click.option(
    "--id-column",
    metavar="NAME",
    help="Column of ids in the reference. [default: id, image, video, file or path]",
)
@click.option(
    "--prompt-column",
    metavar="NAME",
    help="Column of questions in the reference. [default: prompt or question]",
)
@click.option(
    "--answer-column",
    multiple=True,
    metavar="NAME",
    help="Column of right answers in the reference; repeatable. "
    "[default: answers, answer, caption or text]",
)
@click.option(
    "--id-prefix",
    default="",
    metavar="TEXT",
    help="Text before the ids of OUTPUT that makes them the reference's, such as images/.",
)
@click.option(
    "--ignore-prompt", is_flag=True, help="Join by id alone, for example to compare prompts."
)
@click.option(
    "--worst",
    type=int,
    default=DEFAULTS.worst,
    show_default=True,
    metavar="N",
    help="Number of worst rows to show.",
)
@click.option(
    "--worst-by",
    type=click.Choice(METRICS),
    help="Metric that ranks the worst rows. [default: anls, or the first that is measured]",
)
@click.option(
    "--max-questions",
    type=int,
    default=DEFAULTS.max_questions,
    show_default=True,
    metavar="N",
    help="Number of questions with scores of their own.",
)
@click.option(
    "--resamples",
    type=int,
    default=DEFAULTS.resamples,
    show_default=True,
    metavar="N",
    help="Number of bootstrap resamples.",
)
@click.option(
    "--seed", type=int, default=DEFAULTS.seed, show_default=True, help="Seed of the resamples."
)
@click.option(
    "--fail-under",
    multiple=True,
    metavar="METRIC=VALUE",
    help="Exit with code 4 when a metric, or `coverage`, is under VALUE (cer, wer: over it); "
    "repeatable.",
)
@json_option
def _eval(
    output: str,
    reference: Path,
    against: str | None,
    id_column: str | None,
    prompt_column: str | None,
    answer_column: tuple[str, ...],
    fail_under: tuple[str, ...],
    json_path: str | None,
    **settings: Any,
) -> None:
    limits = parse_limits(fail_under)
    columns = Columns(id_column, prompt_column, answer_column)
    options = EvalOptions(columns=columns, fail_under=limits, **settings)
    check_json_path(json_path)

    from vlmbatch.evaluate.report import describe, lines
    from vlmbatch.evaluate.score import evaluate_files

    found = evaluate_files(output, reference, options, against)
    names = {
        "output": without_credentials(output),
        "reference": str(reference),
        "against": without_credentials(against) if against else None,
    }
    if json_path is not None:
        write_json(json_path, describe(found, options, **names))
    if json_path != "-":
        for line in lines(found, **names):
            click.echo(line)
    failed = found.below(limits)
    for message in failed:
        click.echo(f"vlmbatch: {message} (--fail-under)", err=True)
    if failed:
        raise click.exceptions.Exit(BELOW_LIMIT)


COMMANDS = {"eval": _eval}
