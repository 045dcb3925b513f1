"""The job: one frozen object that the commands and the YAML files both build.

Every option is a field of one group (inputs, video, questions, model, generation, resources,
output, reporting), with its default and help text stated only there, and the group checks its
values. ``Job`` inherits from all groups, so a function that reads one group takes a Job. Rules
between groups are checked here.
"""

from __future__ import annotations

import dataclasses
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from vlmbatch import tasks
from vlmbatch.errors import JobError
from vlmbatch.job.constraint import CONSTRAINED_ENGINES, ConstraintOptions, split_choices
from vlmbatch.job.engine import EngineOptions
from vlmbatch.job.file import COMMAND_KEYS, read_job_values
from vlmbatch.job.generation import MAX_NEW_TOKENS
from vlmbatch.job.inputs import DEFAULT_DPI, InputOptions
from vlmbatch.job.keys import by_field, checks_names, job_key
from vlmbatch.job.output import OutputOptions
from vlmbatch.job.paths import expand_homes
from vlmbatch.job.questions import DEFAULT_PER, QuestionOptions, named_questions
from vlmbatch.job.reporting import ReportingOptions
from vlmbatch.job.video import DEFAULT_SKIP_SIMILAR, VideoOptions
from vlmbatch.urls import is_url, url_name, without_credentials
from vlmbatch.values import check_types, parse_seconds


# dataclasses collects the fields of the last base first: inputs come first, reporting last.
@checks_names
@dataclasses.dataclass(frozen=True, kw_only=True)
class Job(
    ReportingOptions,
    VideoOptions,
    OutputOptions,
    EngineOptions,
    ConstraintOptions,
    QuestionOptions,
    InputOptions,
):
    """A job: inputs, questions, model and output. Checked when it is made.

        Job(inputs=["photos", "more/last.jpg"], task="vqa", questions="What is it?", model="demo")

    Lists may be lists, tuples or a single entry; paths may be ``pathlib.Path``. ``from_yaml`` reads
    a job file.

    Raises:
        JobError: There is no option of this name (the nearest is named), or a value is not allowed;
            the message says which are.
    """

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            object.__setattr__(self, field.name, _as_given(field.name, value))
        expand_homes(self)
        if self.per is None:
            object.__setattr__(self, "per", DEFAULT_PER.get(str(self.media), "page"))
        if self.max_new_tokens is None:
            object.__setattr__(self, "max_new_tokens", MAX_NEW_TOKENS.get(str(self.task), 64))
        check_types(self)
        self.check_inputs()
        self.check_engine()
        self.check_output(self.media)
        self.check_questions(self.media, self.inputs)
        self.check_constraint()
        self._check_media()

    def _check_media(self) -> None:
        """Check the rules between the groups."""
        if self.constraint_option is not None:
            self._check_engines(self.constraint_option)
        if self.media != "video":
            for field in dataclasses.fields(VideoOptions):
                if getattr(self, field.name) != field.default:
                    raise JobError(
                        f"{field.name} goes with videos; use `vlmbatch video`, "
                        "or media: video in a job file"
                    )
            return
        self.check_video()
        if self.window is not None and self.per != "window":
            raise JobError("window goes with --per window")
        if self.scenes and self.per == "window":
            raise JobError(
                "scenes goes with --per frame or --per clip: a window is cut by time, not by scenes"
            )
        if self.skip_similar is not None and self.per != "frame":
            raise JobError(
                "skip_similar goes with --per frame: the frames of a clip or window share one "
                "prompt"
            )
        if self.skip_similar is not None and self.shuffle:
            raise JobError("skip_similar compares frames in their order: leave out shuffle")

    def _check_engines(self, name: str) -> None:
        """Check that the engines honour a constraint."""
        for engine in self.engines:
            if engine not in CONSTRAINED_ENGINES:
                raise JobError(
                    f"engine {engine} has no --{name}; use --engine "
                    + " or ".join(CONSTRAINED_ENGINES)
                )
        if self.per == "tile":
            raise JobError(f"{name} constrains one answer; --per tile joins several to one")

    @property
    def is_clip(self) -> bool:
        """True if several frames share one prompt."""
        return self.media == "video" and self.per != "frame"

    @property
    def instruction(self) -> str | None:
        """Prompt of every item if there are no questions; None for vqa."""
        return self.prompt or tasks.default_prompt(self.task, clip=self.is_clip)

    @property
    def output_path(self) -> str:
        """OUTPUT as given, or ``INPUTNAME.TASK.jsonl`` in the current folder."""
        if self.output is not None:
            return self.output
        return f"{_input_name(self.inputs[0] if self.inputs else '-')}.{self.task}.jsonl"

    def identity(self) -> dict[str, Any]:
        """Settings that an answer depends on: output made with others is not continued.

        Generation settings are grouped by task, so that several tasks share one OUTPUT. The engine
        that runs adds its name and the revision.
        """
        found: dict[str, Any] = {"model": self.model, "detail": self.detail}
        if self.quantize != "none":
            found["quantize"] = self.quantize
        settings = self.generation_identity() | self.constraint_identity()
        found["tasks"] = {self.task: settings}
        for name in ("path_column", "id_column"):
            if getattr(self, name) is not None:
                found[name] = getattr(self, name)
        if self.keep:
            found["keep"] = list(self.keep)
        if self.media == "video":
            found["fps"] = self.sampling_fps
            found |= {
                name: getattr(self, name) for name in ("every", "num_frames", "start", "end", "per")
            }
            found["at"] = list(self.at)
            found |= {name: getattr(self, name) for name in ("keyframes", "scenes", "skip_similar")}
            if self.scene_threshold is not None:
                found["scene_threshold"] = self.scene_threshold
            if self.stream is not None:
                found["stream"] = self.stream
            if self.per == "window":
                found["window"] = self.window_seconds
        else:
            if self.pages is not None:
                found["pages"] = self.pages.replace(" ", "")
            if self.dpi != DEFAULT_DPI:
                found["dpi"] = self.dpi
            if self.per == "tile":
                found["per"] = self.per
        return found

    def to_dict(self, *, credentials: bool = True) -> dict[str, Any]:
        """Return every setting that applies, in order, as YAML and JSON values.

        Args:
            credentials: Whether URLs keep passwords and signatures; False for files beside OUTPUT.
        """
        values: dict[str, Any] = {}
        for field in dataclasses.fields(self):
            if self.media != "video" and field.metadata.get("group") == "Video":
                continue
            value = getattr(self, field.name)
            values[field.name] = list(value) if isinstance(value, tuple) else value
        if not credentials:
            values["inputs"] = [without_credentials(text) for text in self.inputs]
            values["output"] = self.output and without_credentials(self.output)
        return values

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Job:
        """Build a job from a mapping, such as a YAML file's.

        Raises:
            JobError: An unknown key (the nearest known one is named) or a value that is not
                allowed.
        """
        given = by_field(values, cls)
        return cls(**{key: _plain_value(key, value) for key, value in given.items()})

    @classmethod
    def from_yaml(cls, path: str | os.PathLike[str], **settings: Any) -> Job:
        """Read a job file, as ``vlmbatch run`` does. Paths in it are relative to the current
        folder.

            job = vlmbatch.Job.from_yaml("nightly.yaml", limit=10)

        Args:
            path: The file. Keys for the command line alone (``dry_run``, ``estimate``, ``verbose``,
                ``quiet``) are left out.
            **settings: Keys to replace or add.

        Raises:
            JobError: It cannot be read, is a server's, or has a bad key or value; the message names
                the file.
        """
        name = os.fspath(path)
        values = read_job_values(path)
        if "serve" in values:
            raise JobError(f"{name} is the file of a server, not of a job: use `vlmbatch run`")
        given = {job_key(str(key)): value for key, value in values.items()} | settings
        try:
            return cls.from_dict({key: given[key] for key in given if key not in COMMAND_KEYS})
        except JobError as error:
            raise JobError(f"{name}: {error}") from error


_TUPLES = {
    field.name for field in dataclasses.fields(Job) if field.default == () or field.name == "inputs"
}
_TEXTS = ("max_errors", "max_memory", "max_file_size", "pages")


def _as_given(key: str, value: Any) -> Any:
    """A value as Python programs may write it: a path, a list, or one entry of a list."""
    if isinstance(value, os.PathLike):
        value = os.fspath(value)
    if key == "choices":
        return split_choices(value)
    if key == "questions":
        value = named_questions(value)
    if key in _TUPLES and isinstance(value, str):
        return (value,)
    if key in _TUPLES and isinstance(value, list | tuple):
        return tuple(
            os.fspath(entry) if isinstance(entry, os.PathLike) else entry for entry in value
        )
    return value


def _plain_value(key: str, value: Any) -> Any:
    """Convert a value of YAML or the command line to the field's type."""
    if isinstance(value, Sequence) and not isinstance(value, str | bytes):
        value = tuple(value)
    elif key in _TUPLES and value is not None and key not in ("choices", "questions"):
        value = (value,)
    elif value in ("auto", None) and key in ("batch_size", "threads", "read_workers"):
        value = None
    elif key in _TEXTS and isinstance(value, int) and not isinstance(value, bool):
        value = str(value)
    elif key == "progress" and isinstance(value, bool):
        value = "on" if value else "off"  # YAML reads on and off as booleans
    elif key in ("start", "end", "window") and isinstance(value, str):
        value = parse_seconds(value)
    elif key == "skip_similar" and isinstance(value, bool):
        value = DEFAULT_SKIP_SIMILAR if value else None
    elif key == "every" and isinstance(value, str):
        value = _frame_count(value)
    if key == "engine" and isinstance(value, tuple):
        value = ",".join(map(str, value))
    if key == "at" and isinstance(value, tuple):
        value = tuple(
            seconds
            for part in value
            for seconds in (
                map(parse_seconds, part.split(",")) if isinstance(part, str) else (part,)
            )
        )
    return value


def _frame_count(text: str) -> int:
    """Read the number of ``every``, which counts frames, not seconds."""
    if text.isdecimal():
        return int(text)
    seconds = re.fullmatch(r"([0-9]*\.?[0-9]+) *s(ec(onds?)?)?", text)
    if seconds and float(seconds[1]):
        raise JobError(
            f"every counts frames, not {text!r}; --fps {1 / float(seconds[1]):.6g} samples a frame "
            f"every {seconds[1]} seconds"
        )
    raise JobError(
        f"every must be a whole number of frames, not {text!r}; --fps F samples F frames a second"
    )


def _input_name(text: str) -> str:
    """Derive the name for OUTPUT from an INPUT: its file or folder, or the folder that a glob
    starts in.
    """
    if text == "-":
        return "stdin"
    if is_url(text):
        while re.search(r"[*?\[]", url_name(text)) and "/" in text.partition("://")[2]:
            text = text.rpartition("/")[0]
        return url_name(text) or "output"
    path = Path(text)
    while re.search(r"[*?\[]", str(path)):
        path = path.parent
    return path.resolve().name or "output"
