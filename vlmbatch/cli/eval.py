"""``eval``: how good the answers of an OUTPUT are."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click

from vlmbatch.cli.options import OutputName
from vlmbatch.errors import JobError
from vlmbatch.evaluate.options import METRICS, Columns, EvalOptions, parse_limits
from vlmbatch.tasks import TASKS
from vlmbatch.urls import without_credentials

BELOW_LIMIT = 4
"""The exit code when a ``--fail-under`` is not held: the one of limits that the user set."""

HELP = """How good the answers of OUTPUT (a file or URL) are, measured against right answers.

REFERENCE is .jsonl, .csv or .parquet with columns `id`, `answer` (or `caption`, `text`, or `answers`, a list) and, where several things were asked, `prompt`
(or `question`); rows of the same id and question add up. Another OUTPUT whose texts were corrected will do. Rows are joined by id and prompt, or by id alone
where the reference has no prompt. What has no partner is counted and named; error rows are wrong answers.

\b
exact       letter for letter
normalized  case, punctuation, articles and white space aside
vqa         VQA accuracy, min(1, matches / 3); needs 4 right answers or more
anls        edit similarity, 0 under one half: for documents
cer, wer    character and word error rate of the whole OUTPUT, white space as
            single spaces; less is better
chrf        chrF2 of the whole OUTPUT, 0 to 100

Intervals are bootstrap percentiles (95 %) over rows. Exit codes: 0, 2 for bad usage or a reference that cannot be understood, 4 when a --fail-under is not
held."""

DEFAULTS = EvalOptions()
FILE = click.Path(exists=True, dir_okay=False, path_type=Path)
OUTPUT = OutputName()


@click.command(name="eval", help=HELP, no_args_is_help=True)
@click.argument("output", type=OUTPUT)
@click.option("--reference", required=True, type=FILE, help="The right answers.")
@click.option(
    "--against",
    type=OUTPUT,
    metavar="OTHER",
    help="Another OUTPUT: the difference, over rows both have.",
)
@click.option(
    "--metric",
    "metrics",
    multiple=True,
    type=click.Choice(METRICS),
    help="Measure this only; may be repeated. [default: all that apply]",
)
@click.option("--task", type=click.Choice(TASKS), help="Only rows of this task.")
@click.option(
    "--id-column",
    metavar="NAME",
    help="The reference's column of ids. [default: id, image, video, file or path]",
)
@click.option(
    "--prompt-column", metavar="NAME", help="Its column of questions. [default: prompt or question]"
)
@click.option(
    "--answer-column",
    multiple=True,
    metavar="NAME",
    help="Its column of right answers; repeated for several. [default: answers, answer …]",
)
@click.option(
    "--id-prefix",
    default="",
    metavar="TEXT",
    help="Put before the ids of OUTPUT to make them the reference's, such as images/.",
)
@click.option(
    "--ignore-prompt",
    is_flag=True,
    help="Join by id alone, whatever was asked: to compare prompts.",
)
@click.option(
    "--worst",
    type=int,
    default=DEFAULTS.worst,
    show_default=True,
    metavar="N",
    help="Show the N worst rows.",
)
@click.option(
    "--worst-by",
    type=click.Choice(METRICS),
    help="What says which rows are worst. [default: anls, or the first that is measured]",
)
@click.option(
    "--max-questions",
    type=int,
    default=DEFAULTS.max_questions,
    show_default=True,
    metavar="N",
    help="Questions with figures of their own.",
)
@click.option(
    "--resamples",
    type=int,
    default=DEFAULTS.resamples,
    show_default=True,
    metavar="N",
    help="Bootstrap resamples.",
)
@click.option(
    "--seed", type=int, default=DEFAULTS.seed, show_default=True, help="Of the resamples."
)
@click.option(
    "--fail-under",
    multiple=True,
    metavar="METRIC=VALUE",
    help="Exit with 4 when a metric is under VALUE (cer, wer: over it); `coverage` is a metric here.",
)
@click.option(
    "--json",
    "json_path",
    is_flag=False,
    flag_value="-",
    metavar="[PATH.json|-]",
    help="Write JSON to a file, or to stdout instead of the table.",
)
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
    options = EvalOptions(
        columns=Columns(id_column, prompt_column, answer_column), fail_under=limits, **settings
    )
    if json_path not in (None, "-") and Path(str(json_path)).suffix != ".json":
        raise JobError(f"--json {json_path}: write a name that ends in .json, or - for stdout")

    from vlmbatch.evaluate.join import ROW_COLUMNS
    from vlmbatch.evaluate.reference import read_reference
    from vlmbatch.evaluate.report import describe, lines
    from vlmbatch.evaluate.score import evaluate
    from vlmbatch.write import local_copy, read_records

    def rows(name: str) -> Iterator[dict[str, Any]]:
        """Opens the file when it is its turn, so that an error before leaves none open."""
        with local_copy(name, allow_private=True) as path:
            yield from read_records(path, ROW_COLUMNS)

    right = read_reference(reference, options.columns, ignore_prompt=options.ignore_prompt)
    found = evaluate(rows(output), right, options, rows(against) if against else None)
    shown = without_credentials(output)
    names = {
        "output": shown,
        "reference": str(reference),
        "against": without_credentials(against) if against else None,
    }
    if json_path is not None:
        _write_json(json_path, describe(found, options, **names))
    if json_path != "-":
        for line in lines(
            found, options, output=shown, reference=str(reference), against=names["against"]
        ):
            click.echo(line)
    failed = found.below(limits)
    for message in failed:
        click.echo(f"vlmbatch: {message} (--fail-under)", err=True)
    if failed:
        raise click.exceptions.Exit(BELOW_LIMIT)


def _write_json(path: str, value: dict[str, Any]) -> None:
    text = json.dumps(value, ensure_ascii=False, indent=2, allow_nan=False)
    if path == "-":
        click.echo(text)
        return
    from vlmbatch.write.atomic import replacing

    with replacing(Path(path)) as file:
        file.write(text.encode("utf-8", "backslashreplace") + b"\n")


COMMANDS = {"eval": _eval}
