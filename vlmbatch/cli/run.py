"""``run``: run a job from a YAML file."""

from __future__ import annotations

import dataclasses
import sys
from typing import Any

import click

from vlmbatch.cli.options import GroupedCommand, GroupedOption, job_options, parse_settings
from vlmbatch.cli.work import add_estimate, add_reporting
from vlmbatch.errors import JobError
from vlmbatch.job import Job, job_key
from vlmbatch.serve.settings import ServeJob
from vlmbatch.text_files import open_text
from vlmbatch.values import check_types


@dataclasses.dataclass(frozen=True, kw_only=True)
class RunFlags:
    """Keys of a job file that are no options of the job: those of ``add_reporting``."""

    dry_run: bool = False
    estimate: bool = False
    verbose: int = 0
    quiet: bool = False

    def __post_init__(self) -> None:
        if self.verbose is True:
            object.__setattr__(self, "verbose", 1)
        check_types(self)


def read_job_file(name: str, settings: dict[str, Any]) -> tuple[Job | ServeJob, RunFlags]:
    """Read a job and its flags from a YAML file. One with the key ``serve`` is a server.

    Args:
        name: The file, or ``-`` for stdin. Paths in it are relative to the current folder.
        settings: Keys to replace or add.

    Raises:
        JobError: It cannot be read, is no mapping, or has a bad key or value; the message names the
            file.
    """
    import yaml

    try:
        text = sys.stdin.read() if name == "-" else _read_text(name)
        values = yaml.safe_load(text)
        _check_keys_once(yaml.compose(text, yaml.SafeLoader), name)
    except OSError as error:
        raise JobError(f"{name}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise JobError(f"{name}: it is not {error.encoding.upper()} text") from error
    except RecursionError as error:
        raise JobError(f"{name}: not YAML: nested too deeply") from error
    except (yaml.YAMLError, ValueError) as error:
        raise JobError(f"{name}: not YAML: {' '.join(str(error).split())}") from error
    if not isinstance(values, dict):
        raise JobError(f"{name}: a job file holds keys and values, such as `task: caption`")
    is_server = "serve" in values
    try:
        values = {**(_server_values(values) if is_server else values), **settings}
    except JobError as error:
        raise JobError(f"{name}: {error}") from error
    flags = {
        key: values.pop(key)
        for key in list(values)
        if job_key(str(key)) in ("dry_run", "estimate", "verbose", "quiet")
    }
    try:
        job = ServeJob.from_dict(values) if is_server else Job.from_dict(values)
        given = {job_key(key): value for key, value in flags.items() if value is not None}
        return job, RunFlags(**given)
    except JobError as error:
        raise JobError(f"{name}: {error}") from error


def _server_values(values: dict[str, Any]) -> dict[str, Any]:
    """Return the options of a server: what stands under ``serve``, and beside it.

    Raises:
        JobError: ``serve`` holds no keys, or a key is in both places.
    """
    beside = {key: value for key, value in values.items() if key != "serve"}
    under = values["serve"] if values["serve"] is not None else {}
    if not isinstance(under, dict):
        raise JobError("serve holds keys and values, such as `port: 8000`")
    written = {job_key(str(key)) for key in beside}
    for key in under:
        if job_key(str(key)) in written:
            raise JobError(f"the key {key!r} stands under serve and beside it: give it once")
    return {**beside, **under}


def _read_text(name: str) -> str:
    with open_text(name, errors="strict") as file:
        return file.read()


def _check_keys_once(node: Any, name: str) -> None:
    """Refuse a file with the same key twice: YAML would silently take the last one.

    Args:
        node: The composed file.
        name: The file, for the message.

    Raises:
        JobError: A key is there twice; the message has its line.
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
    estimate: bool,
    verbose: int,
    quiet: bool,
    **values: Any,
) -> None:
    from vlmbatch.cli.execute import execute
    from vlmbatch.cli.options import given
    from vlmbatch.cli.serve import serve

    job, flags = read_job_file(pipeline, {**parse_settings(settings), **given(values)})
    if isinstance(job, ServeJob):
        serve(
            job,
            dry_run=dry_run or flags.dry_run,
            verbose=max(verbose, flags.verbose),
            quiet=quiet or flags.quiet,
        )
        return
    execute(
        job,
        dry_run=dry_run or flags.dry_run,
        estimate=estimate or flags.estimate,
        verbose=max(verbose, flags.verbose),
        quiet=quiet or flags.quiet,
    )


_command = GroupedCommand(
    "run",
    callback=_callback,
    no_args_is_help=True,
    help="Run a job from a YAML file, or from stdin (-). The keys are the options of the other "
    "commands; their --dry-run prints such a file. One with the key `serve` starts a server. Paths "
    "are relative to the current folder.",
)
_command.params += [
    click.Argument(["pipeline"], metavar="PIPELINE.yaml"),
    GroupedOption(
        ["--set", "settings"],
        multiple=True,
        metavar="KEY=VALUE",
        help="Replace or add a key; repeatable.",
        group="",
    ),
]
job_options(["output", "model", "limit", "overwrite", "retry_errors", "progress", "log_format"])(
    _command
)
add_estimate(_command)
add_reporting(_command)

COMMANDS = {"run": _command}
