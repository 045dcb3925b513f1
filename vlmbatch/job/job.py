"""The job: what the user asked for. One frozen object that the commands and the YAML files both
build.

Every option is one field of ``Job``: its default and its help are stated here and nowhere else;
which values it may have, its type and job_checks.py say. The command line makes its options from
these fields, a YAML file uses their names as keys.
"""

from __future__ import annotations

import dataclasses
import difflib
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from vlmbatch import tasks
from vlmbatch.errors import JobError
from vlmbatch.job.checks import PER_BY_MEDIA, SIDECARS_BY_MEDIA, check_job, ways_of_sampling
from vlmbatch.urls import is_url, url_name, without_credentials
from vlmbatch.values import check_types, parse_seconds, parse_size

Kind = Literal["image", "video"]
Per = Literal["frame", "clip", "window", "page", "tile"]
Detail = Literal["full", "native", "low"]

DEFAULT_FPS = 1.0
DEFAULT_DPI = 150
DEFAULT_PER: dict[str, Per] = {"image": "page", "video": "frame"}
DEFAULT_SKIP_SIMILAR = 0.05
"""A field of 1/256 of the frame that changes by 13 of 255 levels: above what compression does to a
still picture, below a line of text that is replaced.
"""


def option(default: Any, text: str | Mapping[str, str], **metadata: Any) -> Any:
    """A field with its help, or a help for each media; ``metadata`` may hold metavar, flags (short
    ones), group, media where only one knows it, and choices, where each media has its own."""
    return dataclasses.field(default=default, metadata={"help": text, **metadata})


_option = option


@dataclasses.dataclass(frozen=True, kw_only=True)
class Job:
    """What to ask about what, with which model, and where the answers go. Validated when it is
    made.

    Raises:
        JobError: A value is not allowed; the message says which are.
    """

    inputs: tuple[str, ...] = ()
    media: Kind = "image"
    task: tasks.Task = "caption"

    output: str | None = _option(
        None,
        "Where the records go: .jsonl, .parquet or .csv, also a URL (s3://, gs://, hf:// …); `-` is JSONL on stdout. [default: INPUTNAME.TASK.jsonl here]",
        flags=("-o",),
        metavar="PATH",
    )
    model: str = _option(
        "HuggingFaceTB/SmolVLM2-500M-Video-Instruct",
        "Hub id, local folder, or `demo`.",
        metavar="MODEL",
        group="Model",
    )
    revision: str | None = _option(
        None,
        "Branch, tag or commit of a hub id; folders and `demo` have none.",
        metavar="REV",
        group="Model",
    )
    device: str = _option(
        "auto", "auto, cpu, cuda, cuda:N or mps.", metavar="DEVICE", group="Model"
    )
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = _option(
        "auto",
        "Number format of the weights; auto picks the fastest that the device computes in.",
        group="Model",
    )
    quantize: Literal["none", "int8"] = _option(
        "none",
        "int8: the language model's matrices as 8-bit whole numbers, a quarter of float32's memory; some answers change. Decoding reads all of them for every "
        "token, so it is faster in float32 on CPUs with VNNI or AMX; elsewhere it saves memory only. The vision encoder stays as it is.",
        group="Model",
    )
    prompt: str | None = _option(
        None, "The instruction, instead of the task's own.", metavar="TEXT", group="Question"
    )
    questions: tuple[str, ...] = _option(
        (),
        "A question about each item; may be given several times.",
        flags=("-q", "--question"),
        metavar="TEXT",
        group="Question",
    )
    questions_file: str | None = _option(
        None,
        "Questions from a file: .txt one a line, .jsonl or .csv with rows of id and question.",
        flags=("--questions",),
        metavar="FILE",
        group="Question",
    )
    max_new_tokens: int = _option(64, "Longest answer, in tokens.", metavar="N", group="Generation")
    temperature: float = _option(0.0, "0 is greedy.", metavar="T", group="Generation")
    top_p: float = _option(
        1.0,
        "With a temperature: sample from the most likely tokens that together have this probability.",
        metavar="P",
        group="Generation",
    )
    seed: int = _option(0, "Seed of sampling and of --shuffle.", metavar="N", group="Generation")
    detail: Detail = _option(
        "full",
        "full: as the checkpoint does it; native: small images are not enlarged; low: one tile.",
        group="Generation",
    )
    max_memory: str | None = _option(
        None,
        "Memory that weights and batches may take, such as 6GiB.",
        metavar="SIZE",
        group="Resources",
    )
    memory_fraction: float = _option(
        0.8, "Share of the free memory that may be taken.", metavar="F", group="Resources"
    )
    batch_size: int | None = _option(
        None,
        "Sequences decoded together; auto: what the memory has room for.",
        metavar="N|auto",
        group="Resources",
    )
    read_workers: int | None = _option(
        None,
        "Threads that read and prepare; auto: by the number of cores.",
        metavar="N|auto",
        group="Resources",
    )
    limit: int | None = _option(None, "Stop after this many items.", metavar="N", group="Items")
    shuffle: bool = _option(
        False, "Take the items in random order (the output stays in input order).", group="Items"
    )
    include: tuple[str, ...] = _option(
        (),
        "Only items whose path matches; may be given several times.",
        metavar="GLOB",
        group="Items",
    )
    exclude: tuple[str, ...] = _option(
        (),
        "No items whose path matches; may be given several times.",
        metavar="GLOB",
        group="Items",
    )
    path_column: str | None = _option(
        None,
        "Column of a manifest with the path, URL or bytes. [default: by its name, such as path, file, image, url]",
        metavar="COL",
        group="Items",
    )
    id_column: str | None = _option(
        None,
        "Column of a manifest with the id. [default: id, if there is one]",
        metavar="COL",
        group="Items",
    )
    question_column: str | None = _option(
        None,
        "Column with a row's own question or questions, asked instead of the job's. [default: question or prompt, if there is one]",
        metavar="COL",
        group="Question",
    )
    keep: tuple[str, ...] = _option(
        (),
        "Carry a column of a manifest, or a key of the .json beside an entry of an archive, into OUTPUT; COL=NAME renames it; may be given several times.",
        metavar="COL",
        group="Items",
    )
    max_pixels: int = _option(
        200_000_000,
        "Pictures with more pixels are an error row, unread.",
        metavar="N",
        group="Items",
    )
    max_file_size: str = _option(
        "1GiB",
        "Files, and what archives unpack to, of more bytes are an error row, unread.",
        metavar="SIZE",
        group="Items",
    )
    max_compression_ratio: float = _option(
        200.0,
        "Entries of archives that unpack to more than N times their size (and some megabytes) are an error row, unread.",
        metavar="N",
        group="Items",
    )
    pages: str | None = _option(
        None,
        "Pages of a document or frames of an animation: 1, 1-3, 2,5- or all. [default: all of a PDF, the first of a picture file]",
        metavar="PAGES",
        group="Items",
        media="image",
    )
    max_pages: int = _option(
        10_000,
        "Files with more pages are an error row, where --pages looks for them.",
        metavar="N",
        group="Items",
        media="image",
    )
    dpi: int = _option(
        DEFAULT_DPI,
        "Resolution that PDF pages are drawn in.",
        metavar="N",
        group="Items",
        media="image",
    )
    allow_private_urls: bool = _option(
        False,
        "Fetch from private and other non-public addresses too, and through the system's proxy.",
        group="Items",
    )
    staging_dir: str | None = _option(
        None,
        "Where the rows of an OUTPUT that is a URL are kept until they are uploaded. [default: in the user's cache folder]",
        metavar="DIR",
        group="Output",
    )
    overwrite: bool = _option(
        False,
        "Start OUTPUT anew, whatever it holds; replace sidecars of others, too.",
        group="Output",
    )
    sidecar: Literal["txt", "srt", "vtt"] | None = _option(
        None,
        {
            "image": "Also a text file for each picture, beside it: photo.jpg has photo.txt. Files of others stay.",
            "video": "Also a file of texts or subtitles for each video, beside it: clip.mp4 has clip.srt. Files of others stay.",
        },
        choices=SIDECARS_BY_MEDIA,
        group="Output",
    )
    sidecar_dir: str | None = _option(
        None,
        "Sidecars go here, in the same tree as the ids, instead of beside the sources.",
        metavar="DIR",
        group="Output",
    )
    retry_errors: bool = _option(
        False, "Do the error rows of an earlier run again.", group="Output"
    )
    max_errors: str | None = _option(
        None,
        "Stop with exit code 4 when more items than N, or P% of those done (judged from 20 on, and at the end), are errors.",
        metavar="N|P%",
        group="Output",
    )

    fps: float | None = _option(
        None,
        "Frames on screen at 0, 1/F, 2/F … seconds. [default: 1, unless another way of sampling is given]",
        metavar="F",
        group="Video",
    )
    every: int | None = _option(None, "Every N-th frame.", metavar="N", group="Video")
    num_frames: int | None = _option(
        None, "At most N frames, evenly spread.", metavar="N", group="Video"
    )
    at: tuple[float, ...] = _option(
        (), "The frames on screen at these seconds.", metavar="T,T,…", group="Video"
    )
    keyframes: bool = _option(
        False, "The frames where decoding can start; only these are decoded.", group="Video"
    )
    scenes: bool = _option(
        False, "The middle frame of each scene (PySceneDetect: the extra `scenes`).", group="Video"
    )
    start: float | None = _option(
        None, "Leave out what is before this second.", metavar="SECONDS", group="Video"
    )
    end: float | None = _option(
        None, "Leave out what is from this second on.", metavar="SECONDS", group="Video"
    )
    per: Per = _option(
        None,
        {
            "image": "page asks about the picture as a whole, tile about one tile after the other, and joins the answers to one record. [default: page]",
            "video": "A record per frame, per clip (the whole video in one prompt) or per window of --window seconds. [default: frame]",
        },
        choices=PER_BY_MEDIA,
        group="Question",
    )
    skip_similar: float | None = _option(
        None,
        f"Do not ask about a frame that differs from the last one asked about by at most THRESHOLD anywhere (0 to 1, {DEFAULT_SKIP_SIMILAR} unless given); "
        "its row gets that frame's answer.",
        metavar="[THRESHOLD]",
        group="Video",
    )
    window: float | None = _option(
        None,
        "Length of a window with --per window. [default: 30]",
        metavar="SECONDS",
        group="Video",
    )

    progress: Literal["auto", "on", "off"] = _option(
        "auto", "The progress bar; auto: on a terminal.", group="Reporting"
    )
    log_format: Literal["text", "json"] = _option(
        "text", "Form of the log lines on stderr.", group="Reporting"
    )

    def __post_init__(self) -> None:
        if self.per is None:
            object.__setattr__(self, "per", DEFAULT_PER.get(self.media, "page"))
        check_types(self)
        check_job(self)

    @property
    def is_clip(self) -> bool:
        """Whether several frames share one prompt."""
        return self.media == "video" and self.per != "frame"

    @property
    def window_seconds(self) -> float:
        """Length of a window."""
        return 30.0 if self.window is None else self.window

    @property
    def sampling_fps(self) -> float | None:
        """Frames a second to sample, the default resolved; None when frames are chosen in another
        way.
        """
        if self.media != "video" or any(way != "fps" for way in ways_of_sampling(self)):
            return None
        return DEFAULT_FPS if self.fps is None else self.fps

    @property
    def instruction(self) -> str | None:
        """What every item is asked when there are no questions; None for vqa."""
        return self.prompt or tasks.default_prompt(self.task, clip=self.is_clip)

    @property
    def output_path(self) -> str:
        """OUTPUT as given, or ``INPUTNAME.TASK.jsonl`` in the current folder."""
        if self.output is not None:
            return self.output
        return f"{_input_name(self.inputs[0] if self.inputs else '-')}.{self.task}.jsonl"

    @property
    def max_memory_bytes(self) -> int | None:
        """``max_memory`` in bytes."""
        return None if self.max_memory is None else parse_size(self.max_memory)

    @property
    def max_file_bytes(self) -> int:
        """``max_file_size`` in bytes."""
        return parse_size(self.max_file_size)

    @property
    def kept_columns(self) -> dict[str, str]:
        """Columns that are carried into OUTPUT, each with its name there."""
        pairs = (text.partition("=") for text in self.keep)
        return {column.strip(): name.strip() or column.strip() for column, _, name in pairs}

    def error_limit(self, done: int, *, is_all: bool = False) -> float:
        """How many error items are tolerated once ``done`` items are done, more to come unless
        ``is_all``, when only a percentage is judged.

        While more come a percentage is judged from 20 items on, so that one early error does not
        end a run.
        """
        if self.max_errors is None:
            return float("inf")
        if self.max_errors.endswith("%"):
            return (
                float("inf")
                if done < 20 and not is_all
                else float(self.max_errors[:-1]) / 100 * done
            )
        return float("inf") if is_all else float(self.max_errors)

    def identity(self) -> dict[str, Any]:
        """The settings that an answer depends on: output made with others is not continued."""
        names = ["model", "detail", "max_new_tokens", "temperature"]
        if self.temperature > 0:
            names += ["top_p", "seed"]
        found = {name: getattr(self, name) for name in names}
        if self.quantize != "none":
            found["quantize"] = self.quantize
        if self.keep:
            found["keep"] = list(self.keep)
        if self.media == "video":
            found |= {
                "fps": self.sampling_fps,
                **{
                    name: getattr(self, name)
                    for name in ("every", "num_frames", "start", "end", "per")
                },
            }
            found["at"] = list(self.at)
            found |= {name: getattr(self, name) for name in ("keyframes", "scenes", "skip_similar")}
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
        """Every setting that applies, in order, as YAML and JSON can hold it.

        Args:
            credentials: Whether URLs keep passwords and signatures; what is kept beside OUTPUT does
                without.
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
        """Builds a job from a mapping, such as a YAML file holds.

        Raises:
            JobError: An unknown key (the nearest known one is named) or a value that is not
                allowed.
        """
        known = {field.name for field in dataclasses.fields(cls)}
        resolved: dict[str, Any] = {}
        for raw, value in values.items():
            key = job_key(str(raw))
            if key not in known:
                near = difflib.get_close_matches(key, [*known, *ALIASES], 1, cutoff=0.5)
                hint = f"; did you mean {near[0]!r}?" if near else ""
                raise JobError(f"unknown key {raw!r}{hint}")
            if isinstance(value, list | tuple):
                value = tuple(value)
            elif key in _TUPLES and value is not None:
                value = (value,)
            elif value in ("auto", None) and key in ("batch_size", "read_workers"):
                value = None
            elif (
                key in ("max_errors", "max_memory", "max_file_size", "pages")
                and isinstance(value, int)
                and not isinstance(value, bool)
            ):
                value = str(value)
            elif key == "progress" and isinstance(value, bool):
                value = "on" if value else "off"  # YAML reads on and off as booleans
            elif key in ("start", "end", "window") and isinstance(value, str):
                value = parse_seconds(value)
            elif key == "skip_similar" and isinstance(value, bool):
                value = DEFAULT_SKIP_SIMILAR if value else None
            if key == "at" and isinstance(value, tuple):
                value = tuple(
                    seconds
                    for part in value
                    for seconds in (
                        map(parse_seconds, part.split(",")) if isinstance(part, str) else (part,)
                    )
                )
            resolved[key] = value
        return cls(**resolved)


ALIASES = {"input": "inputs", "question": "questions"}
_TUPLES = {
    field.name for field in dataclasses.fields(Job) if field.default == () or field.name == "inputs"
}


def job_key(text: str) -> str:
    """The field that a key of a job file means."""
    return ALIASES.get(text, text).replace("-", "_")


def _input_name(text: str) -> str:
    """The name that an OUTPUT gets from its INPUT: of the file or folder, or of the folder that a
    glob starts in.
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
