"""``run``: run a job from a YAML file."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

import click

from vlmbatch.cli.options import GroupedCommand, GroupedOption, job_options, parse_settings
from vlmbatch.cli.work import add_estimate, add_reporting
from vlmbatch.errors import JobError
from vlmbatch.job import Job, job_key
from vlmbatch.job.file import COMMAND_KEYS, parse_job_values, read_job_values
from vlmbatch.serve.settings import ServeJob
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


@dataclasses.dataclass(frozen=True)
class _Part:
    """Keys and values from one place.

    Attributes:
        origin: The place, for messages: the file, a ``--set``, or an option.
        values: The values by key, as they are written.
    """

    origin: str
    values: Mapping[str, Any]


_FLAGS = set(COMMAND_KEYS)


def read_job_file(
    name: str, settings: Mapping[str, Any], options: Mapping[str, Any] = MappingProxyType({})
) -> tuple[Job | ServeJob, RunFlags]:
    """Read a job and its flags from a YAML file. One with the key ``serve`` is a server.

    Args:
        name: The file, or ``-`` for stdin. Paths in it are relative to the current folder.
        settings: Keys to replace or add: those of ``--set``.
        options: The same, of options.

    Raises:
        JobError: It cannot be read, is no mapping, or has a bad key or value; the message names the
            file, the ``--set`` or the option.
    """
    values = parse_job_values(_read_stdin(), name) if name == "-" else read_job_values(name)
    is_server = "serve" in values
    try:
        parts = [_Part(name, _server_values(values) if is_server else values)]
    except JobError as error:
        raise JobError(f"{name}: {error}") from error
    parts += [_Part(f"--set {key}", {key: value}) for key, value in settings.items()]
    parts += [_Part("--" + key.replace("_", "-"), {key: value}) for key, value in options.items()]
    try:
        return _make(parts, is_server)
    except JobError as error:
        raise JobError(f"{_origin(parts, str(error), is_server)}: {error}") from error


def _make(parts: Sequence[_Part], is_server: bool) -> tuple[Job | ServeJob, RunFlags]:
    """Make a job of values; later ones replace earlier ones, however their key is written."""
    written = {job_key(str(key)): key for part in parts for key in part.values}
    found = {job_key(str(key)): value for part in parts for key, value in part.values.items()}
    flags = {key: found.pop(key) for key in _FLAGS & found.keys()}
    _check_kind(found, is_server)
    values = {written[key]: value for key, value in found.items()}
    job = ServeJob.from_dict(values) if is_server else Job.from_dict(values)
    return job, RunFlags(**{key: value for key, value in flags.items() if value is not None})


def _check_kind(values: Mapping[str, Any], is_server: bool) -> None:
    """Refuse keys of a job in a server's file, and the other way round."""
    jobs, servers = ({each.name for each in dataclasses.fields(of)} for of in (Job, ServeJob))
    for key in values:
        if is_server and key in jobs - servers:
            raise JobError(f"unknown key {key!r}: a server has no {key}; leave it out")
        if not is_server and key in servers - jobs:
            raise JobError(f"unknown key {key!r}: it goes with a server, under `serve:`")


def _origin(parts: Sequence[_Part], message: str, is_server: bool) -> str:
    """Return the place that is to blame for an error: the one that brings it, unless the error
    begins with a key that stands elsewhere.
    """
    blamed = next(
        part
        for number, part in enumerate(parts, 1)
        if number == len(parts) or _error(parts[:number], is_server) == message
    )
    key = job_key(message.split(maxsplit=1)[0])
    named = [part for part in parts if key in map(job_key, map(str, part.values))]
    return blamed.origin if not named or blamed in (parts[0], *named) else named[-1].origin


def _error(parts: Sequence[_Part], is_server: bool) -> str:
    """Return what is wrong with values; empty if nothing is."""
    try:
        _make(parts, is_server)
    except JobError as error:
        return str(error)
    return ""


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


def _read_stdin() -> str:
    """Return the job file on stdin.

    Raises:
        JobError: It cannot be read, or is not text.
    """
    try:
        return sys.stdin.read()
    except OSError as error:
        raise JobError(f"-: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise JobError(f"-: it is not {error.encoding.upper()} text") from error


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

    job, flags = read_job_file(pipeline, parse_settings(settings), given(values))
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


def _advise(flag: str) -> str:
    """Return how a key of a job file is set that has no option of its own."""
    key = job_key(flag.removeprefix("--"))
    is_key = any(key == field.name for of in (Job, ServeJob) for field in dataclasses.fields(of))
    return f"use --set {key}=VALUE" if is_key else ""


_command = GroupedCommand(
    "run",
    callback=_callback,
    no_args_is_help=True,
    help="Run a job from a YAML file, or from stdin (-). The keys are the options of the other "
    "commands; their --dry-run prints such a file. One with the key `serve` starts a server. Paths "
    "are relative to the current folder.",
)
_command.advise = _advise
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
