"""``run``: a job from a YAML file."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import click

from vlmbatch.cli.options import GroupedCommand, GroupedOption, job_options, parse_settings
from vlmbatch.cli.work import add_reporting
from vlmbatch.errors import JobError
from vlmbatch.job import Job, job_key


def read_job_file(name: str, settings: dict[str, Any]) -> Job:
    """A job from a YAML file, some keys replaced.

    Args:
        name: The file, or ``-`` for stdin. Paths in it count from the current folder.
        settings: What replaces or adds keys.

    Raises:
        JobError: It cannot be read, is not a mapping, or holds a bad key or value; the message names the file.
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
    try:
        return Job.from_dict({**values, **settings})
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
            raise JobError(f"{name}, line {key.start_mark.line + 1}: the key {key.value!r} is there already")
        seen.add(written)


def _callback(pipeline: str, settings: tuple[str, ...], dry_run: bool, verbose: int, quiet: bool, **values: Any) -> None:
    from vlmbatch.cli.execute import execute
    from vlmbatch.cli.options import given

    execute(read_job_file(pipeline, {**parse_settings(settings), **given(values)}), dry_run=dry_run, verbose=verbose, quiet=quiet)


_command = GroupedCommand(
    "run",
    callback=_callback,
    no_args_is_help=True,
    help="A job from a YAML file: its keys are the options of the other commands, `--dry-run` prints one. "
    "Paths count from the current folder; `pipelines/` has examples.",
)
_command.params += [
    click.Argument(["pipeline"], metavar="PIPELINE.yaml"),
    GroupedOption(["--set", "settings"], multiple=True, metavar="KEY=VALUE", help="Replace a key of the file; may be given several times.", group=""),
]
job_options(["output", "model", "limit", "overwrite", "retry_errors", "progress", "log_format"])(_command)
add_reporting(_command)

COMMANDS = {"run": _command}
