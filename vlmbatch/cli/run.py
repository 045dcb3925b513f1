"""``run``: a job from a YAML file."""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path
from typing import Any

import click

from vlmbatch.cli.options import GroupedCommand, GroupedOption, job_options, parse_settings
from vlmbatch.cli.work import add_reporting
from vlmbatch.errors import JobError
from vlmbatch.job import Job, job_key
from vlmbatch.values import check_types


@dataclasses.dataclass(frozen=True, kw_only=True)
class Manner:
    """What a job file may say about one run of it, beside the job: the options of
    ``add_reporting``.
    """

    dry_run: bool = False
    verbose: int = 0
    quiet: bool = False

    def __post_init__(self) -> None:
        if self.verbose is True:
            object.__setattr__(self, "verbose", 1)
        check_types(self)


def read_job_file(name: str, settings: dict[str, Any]) -> tuple[Job, Manner]:
    """A job from a YAML file, some keys replaced, and the manner of this run.

    Args:
        name: The file, or ``-`` for stdin. Paths in it count from the current folder.
        settings: What replaces or adds keys.

    Raises:
        JobError: It cannot be read, is not a mapping, or holds a bad key or value; the message
            names the file.
    """
    import yaml

    try:
        text = sys.stdin.read() if name == "-" else Path(name).read_text(encoding="utf-8")
        values = yaml.safe_load(text)
        _check_keys_once(yaml.compose(text, yaml.SafeLoader), name)
    except OSError as error:
        raise JobError(f"{name}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise JobError(f"{name}: it is not UTF-8 text") from error
    except yaml.YAMLError as error:
        raise JobError(f"{name}: not YAML: {' '.join(str(error).split())}") from error
    if not isinstance(values, dict):
        raise JobError(f"{name}: a job file holds keys and values, such as `task: caption`")
    values = {**values, **settings}
    manner = {
        key: values.pop(key)
        for key in list(values)
        if job_key(str(key)) in ("dry_run", "verbose", "quiet")
    }
    try:
        return Job.from_dict(values), Manner(
            **{job_key(key): value for key, value in manner.items() if value is not None}
        )
    except JobError as error:
        raise JobError(f"{name}: {error}") from error


def _check_keys_once(node: Any, name: str) -> None:
    """Refuses a key that stands there twice, of which YAML would silently take the last.

    Args:
        node: The composed file, a mapping or not.
        name: The file, for the message.

    Raises:
        JobError: One does; the message says where.
    """
    seen: set[str] = set()
    for key, _ in node.value if getattr(node, "id", None) == "mapping" else ():
        written = job_key(str(key.value))
        if written in seen:
            raise JobError(
                f"{name}, line {key.start_mark.line + 1}: the key {key.value!r} is there already"
            )
        seen.add(written)


def _callback(
    pipeline: str,
    settings: tuple[str, ...],
    dry_run: bool,
    verbose: int,
    quiet: bool,
    **values: Any,
) -> None:
    from vlmbatch.cli.execute import execute
    from vlmbatch.cli.options import given

    job, manner = read_job_file(pipeline, {**parse_settings(settings), **given(values)})
    execute(
        job,
        dry_run=dry_run or manner.dry_run,
        verbose=max(verbose, manner.verbose),
        quiet=quiet or manner.quiet,
    )


_command = GroupedCommand(
    "run",
    callback=_callback,
    no_args_is_help=True,
    help="A job from a YAML file: its keys are the options of the other commands, `--dry-run` prints one. "
    "Paths count from the current folder; `pipelines/` has examples.",
)
_command.params += [
    click.Argument(["pipeline"], metavar="PIPELINE.yaml"),
    GroupedOption(
        ["--set", "settings"],
        multiple=True,
        metavar="KEY=VALUE",
        help="Replace a key of the file; may be given several times.",
        group="",
    ),
]
job_options(["output", "model", "limit", "overwrite", "retry_errors", "progress", "log_format"])(
    _command
)
add_reporting(_command)

COMMANDS = {"run": _command}
