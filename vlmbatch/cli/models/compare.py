"""``models compare``: how far two engines, number formats or models agree."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from typing import Any

import click

from vlmbatch.cli.folders import with_user_folders
from vlmbatch.cli.json_file import check_json_path, json_option, write_json
from vlmbatch.cli.options import GroupedCommand, GroupedOption, given, job_options
from vlmbatch.errors import JobError, NothingFound
from vlmbatch.tasks import TASKS

SOME_ERRORS, BELOW_LIMIT = 3, 4
"""Exit codes: some items are errors; --min-agreement is not held."""
HELP = """Ask two engines, number formats or models the same questions about the same pictures, and
show how far they agree, how fast they are and what memory they take.

INPUT is what `vlmbatch caption` takes. Without one, the sample pictures are taken.

\b
A and B are  ENGINE[/TYPE][:MODEL][,KEY=VALUE…]
       or    MODEL[,KEY=VALUE…]
ENGINE  torch, transformers, onnx, llama-server or openai
TYPE    float32, float16, bfloat16; int8 (torch, onnx), q4 (onnx);
        q8_0, q5_0, q4_0 (llama-server)
MODEL   as --model of other commands; without it, that of --model here
KEY     an option of the engine, such as dtype, detail, provider, endpoint

\b
  vlmbatch models compare torch onnx/int8 --model demo
  vlmbatch models compare torch:demo llama-server/q8_0:demo photos/
  vlmbatch models compare demo ./mine -q 'What is it?'
  vlmbatch models compare torch:demo openai:demo,endpoint=http://127.0.0.1:8000/v1

Answers are greedy. Tokens are compared up to the first difference of an answer: what follows it has
other words before it. A difference is shown with its margin: how much likelier a side found its own
token than that of the other. Of tokens that an engine does not tell, the words are compared.

Exit codes: 0; 3 if some items are errors; 4 if --min-agreement is not held."""
OPTIONS = (
    *("questions", "questions_file", "prompt", "max_new_tokens", "detail"),
    *("model", "revision", "device", "dtype"),
    *("limit", "include", "exclude", "pages"),
    *("batch_size", "threads", "read_workers", "max_memory", "memory_fraction", "cache_dir"),
)
"""Fields of a job that are options for both sides."""


def _callback(
    a: str,
    b: str,
    inputs: tuple[str, ...],
    task: str | None,
    min_agreement: tuple[str, ...],
    json_path: str | None,
    **values: Any,
) -> None:
    from vlmbatch.compare.agreement import agreement
    from vlmbatch.compare.comparison import compare
    from vlmbatch.compare.report import describe, lines
    from vlmbatch.compare.samples import sample_folder
    from vlmbatch.compare.sides import Side

    check_json_path(json_path)
    limits = parse_limits(min_agreement)
    if "-" in inputs:
        raise JobError("both sides read the INPUTs: name files or folders instead of -")
    asks = values.get("questions") or values.get("questions_file")
    common = {
        **given(values),
        "inputs": inputs or (str(sample_folder()),),
        "task": task or ("vqa" if asks else "caption"),
        "output": "-",
    }
    sides = [Side.parse(text, common) for text in (a, b)]
    sides = [Side(side.text, with_user_folders(side.job)) for side in sides]
    first, second = compare(sides[0], sides[1], _Progress())
    if not (first.answers or second.answers):
        raise NothingFound("no picture was found, or none is asked about: name another INPUT")
    found = agreement(first, second)
    shared = {name: getattr(sides[0].job, name) for name in ("task", "max_new_tokens")}
    if json_path is not None:
        write_json(json_path, describe(first, second, found, shared))
    if json_path != "-":
        for line in lines(first, second, found, shared):
            click.echo(line)
    failed = list(_failures(limits, answers=found.answer_share, tokens=found.token_share))
    for message in failed:
        click.echo(f"vlmbatch: {message} (--min-agreement)", err=True)
    if failed:
        raise click.exceptions.Exit(BELOW_LIMIT)
    if any(answer.error for said in (first, second) for answer in said.answers.values()):
        raise click.exceptions.Exit(SOME_ERRORS)


def parse_limits(texts: Iterable[str]) -> dict[str, float]:
    """Read the values of --min-agreement: a share of answers, or ``tokens=`` a share of tokens.

    Raises:
        JobError: One has another form.
    """
    limits = {}
    for text in texts:
        name, equals, number = text.rpartition("=")
        name = name if equals else "answers"
        try:
            percent = number.strip().endswith("%")
            value = float(number.strip().rstrip("%")) / (100 if percent else 1)
        except ValueError:
            value = -1.0
        if name not in ("answers", "tokens") or not 0 <= value <= 1:
            raise JobError(
                f"--min-agreement {text}: write a share from 0 to 1 or in %, such as 0.95 or "
                "tokens=99%"
            )
        limits[name] = value
    return limits


def _failures(limits: dict[str, float], **shares: float | None) -> Iterator[str]:
    for name, limit in limits.items():
        share = shares[name]
        if share is None:
            yield f"no equal {name} to count"
        elif share < limit:
            yield f"{100 * share:.2f} % of the {name} are equal, which is under {100 * limit:g} %"


class _Progress:
    """A line on a terminal that counts answers."""

    def __init__(self) -> None:
        self._count, self._shows = 0, sys.stderr.isatty()

    def __call__(self) -> None:
        """Count one more."""
        self._count += 1
        if self._shows:
            click.echo(f"{self._count} answers\r", err=True, nl=False)


def _command() -> GroupedCommand:
    command = GroupedCommand("compare", callback=_callback, help=HELP, no_args_is_help=True)
    for name in ("a", "b"):
        command.params.append(click.Argument([name], metavar=name.upper()))
    command.params.append(click.Argument(["inputs"], nargs=-1, metavar="[INPUT]..."))
    command.params.append(
        GroupedOption(
            ["--task"],
            type=click.Choice(TASKS),
            help="Task. [default: vqa with questions, else caption]",
            group="Question",
        )
    )
    job_options(OPTIONS)(command)
    command.params.append(
        GroupedOption(
            ["--min-agreement"],
            multiple=True,
            metavar="[tokens=]X",
            help="Exit with code 4 when less than this share of the answers (of the tokens) is "
            "equal: 0.95 or 95%; repeatable.",
        )
    )
    return json_option(command)


COMMAND = _command()
