"""``finetune``: options to a FinetuneJob, and the job to a training."""

from __future__ import annotations

import dataclasses
import logging
from typing import Any

import click

from vlmbatch.cli.logs import set_up_logging
from vlmbatch.cli.options import GroupedCommand, given, job_options
from vlmbatch.cli.signals import catch_signals
from vlmbatch.cli.work import add_reporting
from vlmbatch.finetune.job import FinetuneJob

HELP = """Teach a model your answers.

DATA is a .jsonl, .parquet or .csv file with a row for each answer: `image` or `video` (a path, relative to the file), `prompt` and `answer`; or `messages`, a
chat of one turn; or an OUTPUT of vlmbatch in which you corrected `text`. OUT is a checkpoint like any other: give it as --model.

The same command again goes on after a kill. Several GPUs: torchrun --nproc-per-node 4 -m vlmbatch finetune DATA ..."""

report = logging.getLogger("vlmbatch.report")


def _run(data: str, dry_run: bool, verbose: int, quiet: bool, **values: Any) -> None:
    if values["read_workers"] == "auto":
        values["read_workers"] = None
    job = FinetuneJob(data=data, **given(values))
    set_up_logging(job.log_format, verbose=verbose, quiet=quiet, bar=False)
    from vlmbatch.finetune.extras import require

    if dry_run:
        _print_job(job)
        return
    require(optimizer=job.optimizer)
    from vlmbatch.finetune.run import Finetuning

    training = Finetuning(job)
    catch_signals(training)
    outcome = training.start()
    if outcome.interrupted:
        raise click.exceptions.Exit(130)
    _report(job, outcome.state)


def _print_job(job: FinetuneJob) -> None:
    """Prints the resolved job as YAML, with what the rows are as comments; bad rows are listed as
    before a training.
    """
    import yaml

    from vlmbatch.checkpoint import find_checkpoint
    from vlmbatch.finetune.plan import make_plan

    plan = make_plan(job, find_checkpoint(job.model, job.revision), None)
    click.echo(
        f"# {len(plan.rows)} rows to train on, {len(plan.held_out)} held out; the longest has {plan.longest} tokens"
    )
    click.echo(
        yaml.safe_dump(
            {**job.to_dict(), "output": job.output_path},
            sort_keys=False,
            allow_unicode=True,
            width=120,
        ),
        nl=False,
    )


def _report(job: FinetuneJob, state: dict[str, Any]) -> None:
    """The closing lines."""
    result = state.get("result", {})
    if "last_eval_loss" in result:
        loss, right = (
            (result[f"first_{name}"], result[f"last_{name}"])
            for name in ("eval_loss", "eval_answer_accuracy")
        )
        report.info(
            "held out: loss %.4f -> %.4f, answers right %.1f%% -> %.1f%%",
            *loss,
            *(100 * share for share in right),
        )
    if state.get("status") == "finished":
        report.info(
            "%s is ready: vlmbatch caption INPUT --model %s", job.output_path, job.output_path
        )
    elif state.get("status") == "trained":
        report.info(
            "%s/adapter is ready; `vlmbatch models merge %s/adapter -o FOLDER` makes a checkpoint of it",
            job.output_path,
            job.output_path,
        )


_command = GroupedCommand("finetune", callback=_run, help=HELP, no_args_is_help=True)
_command.params.append(click.Argument(["data"], metavar="DATA"))
job_options(
    [field.name for field in dataclasses.fields(FinetuneJob) if field.name != "data"],
    of=FinetuneJob,
)(_command)
add_reporting(_command)

COMMANDS = {"finetune": _command}
