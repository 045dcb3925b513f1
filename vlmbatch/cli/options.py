"""Make command-line options of the fields of ``Job``.

Name, help, default and allowed values are stated there, once.
"""

from __future__ import annotations

import dataclasses
import itertools
import os
import typing
from collections.abc import Callable, Iterable
from typing import Any, Literal, get_args, get_origin

import click

from vlmbatch.errors import JobError
from vlmbatch.job import DEFAULT_SKIP_SIMILAR, Job, Kind, job_key
from vlmbatch.urls import is_url
from vlmbatch.values import parse_seconds

GROUPS = (
    "",
    "Data",
    "Training",
    "LoRA",
    "Question",
    "Video",
    "Generation",
    "Model",
    "Items",
    "Output",
    "Resources",
    "Reporting",
)


class GroupedCommand(click.Command):
    """A command with groups of options in its help, and with options of an optional number."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Insert a number that was left out: click would take the INPUT that follows for it."""
        optional = [
            each
            for each in self.params
            if isinstance(each, click.Option) and isinstance(each.type, Threshold)
        ]
        numbers = {flag: each.flag_value for each in optional for flag in each.opts}
        followed = itertools.zip_longest(args, args[1:], fillvalue="")
        args = [
            f"{text}={numbers[text]}" if text in numbers and not _is_number(after) else text
            for text, after in followed
        ]
        return super().parse_args(ctx, args)

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write one section for each group."""
        rows: dict[str, list[tuple[str, str]]] = {}
        for parameter in self.get_params(ctx):
            record = parameter.get_help_record(ctx)
            if record is not None and isinstance(parameter, click.Option):
                rows.setdefault(getattr(parameter, "group", "Reporting"), []).append(record)
        for group in GROUPS:
            if rows.get(group):
                with formatter.section(group or "Options"):
                    formatter.write_dl(rows[group])


class GroupedOption(click.Option):
    """An option of a group."""

    def __init__(self, *arguments: Any, group: str = "Reporting", **settings: Any) -> None:
        super().__init__(*arguments, **settings)
        self.group = group


class OutputName(click.ParamType):  # type: ignore[type-arg]  # generic since click 8.2
    """An existing OUTPUT: a file, a file of which there is only the journal, or a URL."""

    name = "output"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Return the text; refuse a folder, and a path that does not exist."""
        return (
            value
            if is_url(value) or os.path.exists(f"{value}.journal")
            else click.Path(exists=True, dir_okay=False).convert(value, param, ctx)
        )


class NumberOrAuto(click.ParamType):  # type: ignore[type-arg]  # generic since click 8.2
    """A whole number or ``auto``."""

    name = "N|auto"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Convert the text of a number to int."""
        if value == "auto" or isinstance(value, int):
            return value
        try:
            return int(value)
        except ValueError:
            self.fail(f"{value!r} is neither a whole number nor auto", param, ctx)


class Times(click.ParamType):  # type: ignore[type-arg]  # generic since click 8.2
    """Seconds, or H:MM:SS, separated by commas."""

    name = "T,T,…"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Convert a text to a tuple of seconds."""
        if isinstance(value, tuple):
            return value
        try:
            times = tuple(parse_seconds(part) for part in value.split(",") if part.strip())
        except ValueError:
            times = ()
        return times or self.fail(
            f"{value!r} is not a list of times such as 1.5,20,1:05", param, ctx
        )


class Time(click.ParamType):  # type: ignore[type-arg]  # generic since click 8.2
    """Seconds, or H:MM:SS."""

    name = "SECONDS"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Convert a text to seconds."""
        if isinstance(value, float):
            return value
        try:
            return parse_seconds(value)
        except ValueError:
            self.fail(f"{value!r} is not a time such as 90 or 1:30", param, ctx)


class Threshold(click.ParamType):  # type: ignore[type-arg]  # generic since click 8.2
    """A number that may be left out."""

    name = "THRESHOLD"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Convert a text to a number."""
        return (
            float(value)
            if _is_number(value)
            else self.fail(f"{value!r} is not a number", param, ctx)
        )


def _is_number(text: Any) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def job_options(
    names: Iterable[str], media: Kind | None = None, of: type[Any] = Job
) -> Callable[[click.Command], click.Command]:
    """Return a decorator that adds an option for each of these fields to a command.

    Args:
        names: Fields of ``of``.
        media: Kind of media of the command: some fields have other values and help for each kind.
        of: The dataclass of options.
    """
    fields = {field.name: field for field in dataclasses.fields(of)}
    hints = typing.get_type_hints(of)

    def add(command: click.Command) -> click.Command:
        for name in names:
            command.params.append(_option(fields[name], hints[name], media))
        return command

    return add


def field_names(media: Kind) -> list[str]:
    """Return the fields that are options of every work command of this media."""
    skip = {"inputs", "media", "task", "questions", "questions_file"}
    other = "image" if media == "video" else "video"
    return [
        f.name
        for f in dataclasses.fields(Job)
        if f.name not in skip
        and f.metadata.get("media", f.metadata.get("group", "").lower()) != other
    ]


def given(values: dict[str, Any]) -> dict[str, Any]:
    """Return the values that the user gave."""
    return {name: value for name, value in values.items() if value is not None and value != ()}


def build_job(values: dict[str, Any]) -> Job:
    """Make a job of the values that the user gave."""
    return Job.from_dict(given(values))


def parse_settings(settings: Iterable[str]) -> dict[str, Any]:
    """Parse ``--set key=value``: as YAML, or as it stands for a key that takes text.

    Raises:
        JobError: One has another form.
    """
    import yaml

    hints = typing.get_type_hints(Job)
    found: dict[str, Any] = {}
    for setting in settings:
        key, equals, text = (part.strip() for part in setting.partition("="))
        if not equals or not key:
            raise JobError(f"--set takes key=value, not {setting!r}")
        hint = hints.get(job_key(key))
        try:
            found[key] = _read_setting(
                text,
                takes_text=hint is str or str in get_args(hint),
                takes_list=get_origin(hint) is tuple,
            )
        except yaml.YAMLError as error:
            raise JobError(f"--set {setting}: not YAML") from error
    return found


def _read_setting(text: str, *, takes_text: bool, takes_list: bool) -> Any:
    """Parse a value. Where a key takes text, `*.png`, `yes` and `what: is it?` are texts."""
    import yaml

    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError:
        if takes_text:
            return text
        raise
    is_quoted = isinstance(value, str) and text[0] in "'\""
    is_list = isinstance(value, list) and takes_list and text[0] == "["
    is_null = value is None and not text.startswith("#")
    return value if not takes_text or is_quoted or is_list or is_null else text


def _option(field: dataclasses.Field[Any], hint: Any, media: Kind | None) -> click.Option:
    metadata = field.metadata
    long = "--" + field.name.replace("_", "-")
    short = metadata.get("flags", ())
    declarations = [
        *short,
        *([] if any(flag.startswith("--") for flag in short) else [long]),
        field.name,
    ]
    text = metadata["help"] if isinstance(metadata["help"], str) else metadata["help"][media]
    settings: dict[str, Any] = {
        "group": metadata.get("group", ""),
        "default": None,
        "metavar": metadata.get("metavar"),
    }
    plain = (
        next(part for part in (get_args(hint) or (hint,)) if part is not type(None))
        if get_origin(hint) not in (tuple, Literal)
        else hint
    )
    if field.name == "at":
        settings["type"] = Times()
    elif field.name == "skip_similar":
        settings |= {"type": Threshold(), "is_flag": False, "flag_value": DEFAULT_SKIP_SIMILAR}
    elif field.name in ("start", "end", "window"):
        settings["type"] = Time()
    elif field.name in ("batch_size", "read_workers") and field.default is None:
        settings["type"] = NumberOrAuto()
        text += " [default: auto]"
    elif get_origin(plain) is Literal:
        settings["type"] = click.Choice(
            metadata["choices"][media] if media in metadata.get("choices", ()) else get_args(plain)
        )
        settings["metavar"] = None
    elif get_origin(plain) is tuple:
        settings["multiple"] = True
        if get_origin(get_args(plain)[0]) is Literal:
            settings["type"] = click.Choice(get_args(get_args(plain)[0]))
    elif plain is bool:
        return GroupedOption(
            [f"{long}", field.name], is_flag=True, default=None, help=text, group=settings["group"]
        )
    else:
        settings["type"] = plain
    if field.default not in (None, ()) and "[default" not in text:
        text += f" [default: {field.default}]"
    return GroupedOption(declarations, help=text, **settings)
