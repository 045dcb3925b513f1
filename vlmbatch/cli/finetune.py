"""``finetune``: fine-tune a model on prompts and answers."""

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

HELP = """Fine-tune a model on your own prompts and answers.

DATA is a .jsonl, .parquet or .csv file with one row for each answer. A row has `image` or `video`
(a path relative to DATA), `prompt` and `answer`; or `messages`, a chat of one turn. An OUTPUT of
vlmbatch in which you corrected `text` is DATA too, and so is a folder with a .txt file beside each
picture, the answers to --prompt. OUT is a complete checkpoint: give it as
--model.

The same command again continues an interrupted training. Several GPUs: torchrun --nproc-per-node 4
-m vlmbatch finetune DATA ..."""

LEARNED_SHARE = 0.01
"""A loss of held-out rows that falls by less is no sign of learning."""

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
    """Print the resolved job as YAML after the number of rows; list bad rows as a training does."""
    import yaml

    from vlmbatch.checkpoint import find_checkpoint
    from vlmbatch.finetune.plan import make_plan

    plan = make_plan(job, find_checkpoint(job.model, job.revision), None)
    values = {**job.to_dict(), "output": job.output_path}
    click.echo(
        f"# {len(plan.rows)} rows to train on, {len(plan.held_out)} held out; the longest has "
        f"{plan.longest} tokens"
    )
    click.echo(yaml.safe_dump(values, sort_keys=False, allow_unicode=True, width=120), nl=False)


def _report(job: FinetuneJob, state: dict[str, Any]) -> None:
    """Say what was learned, and how to use it."""
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
        if loss[1] > loss[0] * (1 - LEARNED_SHARE):
            report.warning(
                "the loss of held-out rows hardly changed: nothing was learned that helps with "
                "them; give more rows, more --epochs or a higher --learning-rate"
            )
    if state.get("status") == "finished":
        out = job.output_path
        report.info("%s is ready: vlmbatch caption INPUT --model %s", out, out)
    elif state.get("status") == "trained":
        adapter = f"{job.output_path}/adapter"
        merge = f"`vlmbatch models merge {adapter} -o FOLDER`"
        report.info("%s is ready; %s makes a checkpoint of it", adapter, merge)


_command = GroupedCommand("finetune", callback=_run, help=HELP, no_args_is_help=True)
_command.params.append(click.Argument(["data"], metavar="DATA"))
job_options(
    [field.name for field in dataclasses.fields(FinetuneJob) if field.name != "data"],
    of=FinetuneJob,
)(_command)
add_reporting(_command)

COMMANDS = {"finetune": _command}
