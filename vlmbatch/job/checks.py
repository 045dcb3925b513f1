"""Which values, and which of them together, a job may have. What is wrong is said in one line, with
what is allowed.
"""

from __future__ import annotations

import dataclasses
import math
import re
from pathlib import Path
from typing import TYPE_CHECKING

from vlmbatch.errors import JobError
from vlmbatch.urls import can_be_written, is_url, url_name, without_credentials
from vlmbatch.values import parse_pages, parse_size

if TYPE_CHECKING:
    from vlmbatch.job import Job

MAX_SEED = 2**63 - 1
OUTPUT_SUFFIXES = (".jsonl", ".parquet", ".csv")
TABLE_SUFFIXES = (".csv", ".tsv", ".jsonl", ".parquet")
"""Manifests that have columns; a .txt manifest has lines."""

IMAGE_TOKEN = "<image>"
"""What stands for pixels in the prompts of the published checkpoints."""

PER_BY_MEDIA = {"image": ("page", "tile"), "video": ("frame", "clip", "window")}
SIDECARS_BY_MEDIA = {"image": ("txt",), "video": ("txt", "srt", "vtt")}
"""What ``per`` and ``sidecar`` may be: those of the other media are refused, and not offered by the
commands.
"""


def check_job(job: Job) -> None:
    """Checks the values of a job, each of the right type already.

    Raises:
        JobError: One is not allowed, or not beside another.
    """
    _check_ranges(job)
    _check_output(job)
    _check_questions(job)
    _check_sidecar(job)
    _check_per(job)
    _check_video(job)


def _check_ranges(job: Job) -> None:
    at_least = {
        "max_new_tokens": 1,
        "batch_size": 1,
        "read_workers": 1,
        "limit": 1,
        "every": 1,
        "num_frames": 1,
        "max_pixels": 1,
        "max_pages": 1,
        "seed": 0,
    }
    for name, lowest in at_least.items():
        value = getattr(job, name)
        if value is not None and value < lowest:
            raise JobError(f"{name} must be at least {lowest}, not {value}")
    for name in ("fps", "window"):
        value = getattr(job, name)
        if value is not None and not 0 < value < float("inf"):
            raise JobError(f"{name} must be above 0, not {value}")
    if job.seed > MAX_SEED:
        raise JobError(f"seed must be at most {MAX_SEED}")
    if not 0 <= job.temperature <= 100:
        raise JobError(f"temperature must be from 0 to 100, not {job.temperature}")
    if not 0 < job.top_p <= 1:
        raise JobError(f"top_p must be above 0 and at most 1, not {job.top_p}")
    if not 0 < job.memory_fraction <= 1:
        raise JobError(f"memory_fraction must be above 0 and at most 1, not {job.memory_fraction}")
    if not re.fullmatch(r"auto|cpu|mps|cuda(:\d+)?", job.device):
        raise JobError(f"device must be auto, cpu, cuda, cuda:N or mps, not {job.device!r}")
    if job.max_memory is not None:
        parse_size(job.max_memory)
    if job.max_file_bytes < 1:
        raise JobError(f"max_file_size must be above 0, not {job.max_file_size!r}")
    if not job.max_compression_ratio >= 1:
        raise JobError(f"max_compression_ratio must be at least 1, not {job.max_compression_ratio}")
    if len(set(job.kept_columns.values())) < len(job.keep) or "" in job.kept_columns:
        raise JobError(
            f"keep takes a column each, once, as COL or COL=NAME, not {', '.join(map(repr, job.keep))}"
        )
    if job.pages is not None:
        parse_pages(job.pages)
    if not 10 <= job.dpi <= 2400:
        raise JobError(f"dpi must be from 10 to 2400, not {job.dpi}")
    if job.max_errors is not None and not re.fullmatch(r"\d+|\d+(\.\d+)?%", job.max_errors):
        raise JobError(
            f"max_errors must be a number such as 100 or a share such as 5%, not {job.max_errors!r}"
        )


def _check_output(job: Job) -> None:
    url = job.output if job.output is not None and is_url(job.output) else None
    if url is not None and not can_be_written(url):
        raise JobError(
            f"output must be a file, or a URL of a store that can be written such as s3://, gs:// or hf://, not {without_credentials(url)}"
        )
    name = url_name(url) if url is not None else job.output
    if name is not None and name != "-" and Path(name).suffix.lower() not in OUTPUT_SUFFIXES:
        raise JobError(
            f"output must end in {', '.join(OUTPUT_SUFFIXES)} or be `-`, not {without_credentials(str(job.output))!r}"
        )
    if job.staging_dir is not None and url is None:
        raise JobError(
            "staging_dir goes with an output that is a URL: a file has its journal beside it"
        )


def _check_questions(job: Job) -> None:
    if job.task != "vqa" and (job.questions or job.questions_file):
        raise JobError(
            f"questions go with the task vqa; give {job.task} its instruction with `prompt`"
        )
    if job.task != "vqa" and job.question_column:
        raise JobError(f"question_column goes with the task vqa, not with {job.task}")
    if job.task == "vqa":
        if job.prompt is not None:
            raise JobError("vqa takes questions, not a prompt: use -q TEXT or --questions FILE")
        if job.questions and job.questions_file:
            raise JobError(
                "vqa takes questions from -q TEXT or from --questions FILE, not from both"
            )
        rows_may_ask = job.question_column is not None or any(
            text.lower().endswith(TABLE_SUFFIXES) for text in job.inputs
        )
        if not (job.questions or job.questions_file or rows_may_ask):
            raise JobError(
                "vqa needs questions: either -q TEXT (as often as you like) or --questions FILE, or a manifest with a column of questions"
            )
    for text in (*job.questions, *([job.prompt] if job.prompt is not None else [])):
        if not text.strip():
            raise JobError("an empty question or prompt")
        if IMAGE_TOKEN in text:
            raise JobError(
                f"a question or prompt may not hold {IMAGE_TOKEN}, which stands for pixels: the picture comes before it by itself"
            )
        try:
            text.encode()
        except (
            UnicodeEncodeError
        ) as error:  # bytes on the command line that are no characters in the locale's encoding
            raise JobError(f"a question or prompt is not valid text: {text!r}") from error


def _check_sidecar(job: Job) -> None:
    if job.sidecar_dir is not None and job.sidecar is None:
        raise JobError("sidecar_dir goes with sidecar: say which kind of files")
    if job.sidecar is not None and job.sidecar not in SIDECARS_BY_MEDIA[job.media]:
        raise JobError(f"sidecar {job.sidecar} goes with videos; a picture has a txt")
    if job.sidecar is not None and job.output_path == "-":
        raise JobError(
            "sidecars are written from OUTPUT, which `-` does not keep: give a file with -o"
        )


def _check_per(job: Job) -> None:
    allowed = PER_BY_MEDIA[job.media]
    if job.per not in allowed:
        raise JobError(f"per must be one of {', '.join(allowed)} for {job.media}s, not {job.per!r}")
    if job.per == "tile" and job.task != "ocr":
        raise JobError(
            f"per tile goes with the task ocr: {job.task} is about the picture as a whole"
        )


def ways_of_sampling(job: Job) -> list[str]:
    """The options of a job that choose frames: at most one in a job that is allowed."""
    return [
        name
        for name in ("fps", "every", "num_frames", "at", "keyframes", "scenes")
        if getattr(job, name) not in (None, (), False)
    ]


def _check_video(job: Job) -> None:
    ways = ways_of_sampling(job)
    if job.media != "video":
        for field in dataclasses.fields(job):
            if field.metadata.get("group") == "Video" and getattr(job, field.name) != field.default:
                raise JobError(
                    f"{field.name} goes with videos; use `vlmbatch video`, or media: video in a job file"
                )
        return
    if job.pages is not None:
        raise JobError(
            "pages goes with pictures and documents; choose frames of a video with fps, every, num_frames or at"
        )
    if len(ways) > 1:
        raise JobError(f"{' and '.join(ways)} are different ways of choosing frames: give one")
    for name in ("start", "end"):
        value = getattr(job, name)
        if value is not None and value < 0:
            raise JobError(f"{name} must not be below 0, not {value}")
    if any(time < 0 for time in job.at):
        raise JobError("the times of `at` must not be below 0")
    if not all(math.isfinite(time) for time in (*job.at, job.start or 0, job.end or 0)):
        raise JobError("start, end and at are times in seconds, not nan or inf")
    if job.window is not None and job.window < 0.01:
        raise JobError(f"window must be at least 0.01 seconds, not {job.window}")
    if job.start is not None and job.end is not None and job.end <= job.start:
        raise JobError(f"end ({job.end}) must come after start ({job.start})")
    if job.window is not None and job.per != "window":
        raise JobError("window goes with --per window")
    if job.scenes and job.per == "window":
        raise JobError(
            "scenes goes with --per frame or --per clip: a window is cut by time, not by scenes"
        )
    if job.skip_similar is not None and job.per != "frame":
        raise JobError(
            "skip_similar goes with --per frame: the frames of a clip or window share one prompt"
        )
    if job.skip_similar is not None and job.shuffle:
        raise JobError("skip_similar compares frames in their order: leave out shuffle")
    if job.skip_similar is not None and not 0 <= job.skip_similar <= 1:
        raise JobError(f"skip_similar must be from 0 to 1, not {job.skip_similar}")
