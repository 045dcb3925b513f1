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
from vlmbatch.values import LIST_TYPES, parse_seconds

GROUPS = (
    "",
    "Server",
    "Limits",
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
    """A command with groups of options in its help, and with options of an optional number.

    Attributes:
        advise: Returns what to do about an option that the command does not have; empty if nothing
            is known.
    """

    advise: Callable[[str], str] | None = None

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Insert a number that was left out: click would take the INPUT that follows for it."""
        numbers = {
            flag: each.flag_value
            for each in self.params
            if isinstance(each, click.Option) and each.type is THRESHOLD
            for flag in each.opts
        }
        followed = itertools.zip_longest(args, args[1:], fillvalue="")
        args = [
            f"{text}={numbers[text]}" if text in numbers and not _is_number(after) else text
            for text, after in followed
        ]
        try:
            return super().parse_args(ctx, args)
        except click.NoSuchOption as error:
            advice = self.advise(error.option_name) if self.advise is not None else ""
            if not advice:
                raise
            text = f"No such option: {error.option_name}; {advice}"
            raise click.NoSuchOption(error.option_name, text, ctx=ctx) from error

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


class Parsed(click.ParamType):  # type: ignore[type-arg]  # generic since click 8.2
    """A value that a function parses; its ValueError is a usage error."""

    def __init__(self, name: str, parse: Callable[[str], Any], complaint: str) -> None:
        self.name = name
        self._parse, self._complaint = parse, complaint

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Parse a text."""
        if not isinstance(value, str):
            return value
        try:
            return self._parse(value)
        except ValueError:
            self.fail(f"{value!r} is {self._complaint}", param, ctx)


def _parse_times(text: str) -> tuple[float, ...]:
    times = tuple(parse_seconds(part) for part in text.split(",") if part.strip())
    if not times:
        raise ValueError("no times")
    return times


NUMBER_OR_AUTO = Parsed(
    "N|auto",
    lambda text: text if text == "auto" else int(text),
    "neither a whole number nor auto",
)
TIME = Parsed("SECONDS", parse_seconds, "not a time such as 90 or 1:30")
TIMES = Parsed("T,T,…", _parse_times, "not a list of times such as 1.5,20,1:05")
THRESHOLD = Parsed("THRESHOLD", float, "not a number")
"""Type of options whose number may be left out."""


def _is_number(text: str) -> bool:
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
                takes_list=get_origin(hint) in LIST_TYPES,
            )
        except (yaml.YAMLError, ValueError, RecursionError) as error:
            raise JobError(f"--set {setting}: not YAML") from error
    return found


def _read_setting(text: str, *, takes_text: bool, takes_list: bool) -> Any:
    """Parse a value. Where a key takes text, `*.png`, `yes` and `what: is it?` are texts."""
    import yaml

    try:
        value = yaml.safe_load(text)
    except (yaml.YAMLError, ValueError, RecursionError):
        if takes_text:
            return text
        raise
    is_quoted = isinstance(value, str) and text[0] in "'\""
    is_list = isinstance(value, list) and takes_list and text[0] == "["
    is_null = value is None and not text.startswith("#")
    return value if not takes_text or is_quoted or is_list or is_null else text


def _option(field: dataclasses.Field[Any], hint: Any, media: Kind | None) -> click.Option:
    metadata = field.metadata
    flags = metadata.get("flags", ())
    if not any(flag.startswith("--") for flag in flags):
        flags = (*flags, "--" + field.name.replace("_", "-"))
    text = metadata["help"] if isinstance(metadata["help"], str) else metadata["help"][media]
    settings = _type_settings(field, _plain(hint), media)
    if settings.get("type") is NUMBER_OR_AUTO:
        text += " [default: auto]"
    elif (
        not settings.get("is_flag")
        and field.default not in (None, (), "")
        and "[default" not in text
    ):
        text += f" [default: {field.default}]"
    return GroupedOption(
        [*flags, field.name],
        **{"metavar": metadata.get("metavar"), "default": None, **settings},
        group=metadata.get("group", ""),
        help=text,
    )


def _plain(hint: Any) -> Any:
    """Return a type without its ``| None``."""
    if get_origin(hint) in (*LIST_TYPES, Literal):
        return hint
    return next(part for part in (get_args(hint) or (hint,)) if part is not type(None))


def _type_settings(field: dataclasses.Field[Any], plain: Any, media: Kind | None) -> dict[str, Any]:
    """Return the settings of a click option that follow from the type of a field."""
    if field.name in _TYPES:
        return {"type": _TYPES[field.name]}
    if field.name == "skip_similar":
        return {"type": THRESHOLD, "is_flag": False, "flag_value": DEFAULT_SKIP_SIMILAR}
    if field.name in ("batch_size", "threads", "read_workers") and field.default is None:
        return {"type": NUMBER_OR_AUTO}
    if plain is bool:
        return {"is_flag": True}
    if get_origin(plain) is Literal:
        choices = field.metadata.get("choices", {}).get(media, get_args(plain))
        return {"type": click.Choice(choices), "metavar": None}
    if get_origin(plain) in LIST_TYPES:
        choices = get_args(get_args(plain)[0])
        return {"multiple": True, **({"type": click.Choice(choices)} if choices else {})}
    return {"type": plain}


_TYPES: dict[str, Any] = {
    "every": str,
    "choices": str,
    "at": TIMES,
    "start": TIME,
    "end": TIME,
    "window": TIME,
}
"""Types of fields that are written in a form of their own."""
