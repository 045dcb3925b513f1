"""Read the rows of DATA: prompts and answers, chats, or an OUTPUT with corrected texts."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from vlmbatch.core import Media
from vlmbatch.errors import JobError, OutputError
from vlmbatch.job import Job
from vlmbatch.text_files import read_rows
from vlmbatch.write import read_summary
from vlmbatch.write.atomic import reason
from vlmbatch.write.parquet import require as require_pyarrow

CLIP_OPTIONS = ("fps", "every", "num_frames", "at", "start", "end", "per", "window")
COLUMNS = frozenset(("image", "video", "prompt", "answer", "messages", "source", "text"))
"""Columns of a .csv file; they tell its delimiter."""

PATH_KEYS = ("path", "image", "video", "url")


@dataclasses.dataclass(frozen=True, slots=True)
class TrainingRow:
    """A picture or clip with a prompt and an answer.

    Attributes:
        place: Place in DATA: ``line 3`` of a text file, ``row 3`` of a table.
        media: ``image``, ``frame`` of a video, or ``clip``.
        path: Path of the file.
        prompt: The prompt.
        answer: The answer to learn.
        time_seconds: Time of a frame, or start of a clip or window; None for a picture, and for a
            clip of the whole video.
        id: Id of a row of an OUTPUT; else empty.
        error: The error of a row that is bad whatever its file contains; else empty.
    """

    place: str
    media: Media
    path: str
    prompt: str
    answer: str
    time_seconds: float | None = None
    error: str = ""
    id: str = ""

    def as_output(self) -> dict[str, Any]:
        """Return the row with the keys of an OUTPUT, whose file is found from every folder."""
        path = os.path.abspath(self.path)
        return {
            "id": self.id or path,
            "source": path,
            "media": self.media,
            "time_seconds": self.time_seconds,
            "prompt": self.prompt,
            "text": self.answer,
            "status": "ok",
        }

    def key(self) -> str:
        """Return a digest of the row without its place."""
        return hashlib.sha256(
            json.dumps(
                [self.media, self.path, self.prompt, self.answer, self.time_seconds]
            ).encode()
        ).hexdigest()[:24]


@dataclasses.dataclass(frozen=True)
class TrainingData:
    """Rows of a file.

    Attributes:
        rows: The rows in order, with the bad ones.
        video_job: Options that make clips of its videos.
        detail: Detail of the run that made an OUTPUT; None for other files.
        left_out: Number of rows of an OUTPUT without a text of their own: errors, and frames that
            were skipped as similar.
    """

    rows: list[TrainingRow]
    video_job: Job
    detail: str | None = None
    left_out: int = 0


def read_data(path: Path, video_job: Job) -> TrainingData:
    """Read a DATA file.

    Args:
        path: A .jsonl, .parquet or .csv file.
        video_job: Options that make clips of videos; an OUTPUT has its own.

    Raises:
        JobError: The file cannot be read, or has no row to train on.
    """
    found: list[TrainingRow] = []
    is_output, left_out = False, 0
    for place, values in _records(path):
        if {"source", "status", "text", "prompt"} <= values.keys():
            is_output = True
            if values["status"] != "ok":
                left_out += 1
                continue
            found.append(_from_output(place, values, path.parent))
        else:
            found.append(_from_values(place, values, path.parent))
    if not found:
        raise JobError(
            f"{path}: there is no row in it"
            + (f" with status ok ({left_out} others)" if left_out else "")
        )
    made_by = _output_job(path) if is_output else {}
    clips = video_job
    if made_by.get("per") in ("frame", "clip", "window"):
        clips = Job.from_dict(
            {
                "inputs": video_job.inputs,
                "media": "video",
                **{name: made_by[name] for name in CLIP_OPTIONS if name in made_by},
            }
        )
    return TrainingData(found, clips, made_by.get("detail"), left_out)


def _records(path: Path) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Yield rows as mappings, with the place of each."""
    try:
        if path.suffix.lower() == ".parquet":
            arrow = require_pyarrow()
            with open(path, "rb") as file:
                try:
                    for number, values in enumerate(arrow.parquet.read_table(file).to_pylist(), 1):
                        yield f"row {number}", values
                except arrow.ArrowException as error:
                    raise JobError(
                        f"{path} is not a Parquet file ({' '.join(str(error).split())[:200]})"
                    ) from error
            return
        for number, row in read_rows(str(path), COLUMNS):
            yield f"line {number}", row
    except JobError:
        raise
    except ValueError as error:
        raise JobError(f"{path}: {error}") from error
    except OSError as error:
        raise JobError(f"cannot read {path}: {reason(error)}") from error


def _output_job(path: Path) -> dict[str, Any]:
    """Read the job of an OUTPUT from its summary; empty if there is none."""
    try:
        job = (read_summary(path) or {}).get("job")
    except OutputError as error:
        raise JobError(str(error)) from error
    return job if isinstance(job, dict) else {}


def _from_output(place: str, values: Mapping[str, Any], folder: Path) -> TrainingRow:
    media: Media = values["media"] if values.get("media") in ("frame", "clip") else "image"
    source, time = values["source"], values.get("time_seconds")
    if not isinstance(source, str) or not source:
        return _bad_row(place, media, "source is not a path")
    try:
        seconds = None if media == "image" or time in (None, "") else float(str(time))
    except ValueError:
        return _bad_row(place, media, f"time_seconds is not a number: {time!r}")
    # A source is relative to the folder in which the run was started. If it is not found there, the
    # OUTPUT may have been moved together with its pictures.
    path = source if _is_known(source) else str(folder / source)
    row = _row(place, media, path, values.get("prompt"), values.get("text"), seconds, "text")
    return dataclasses.replace(row, id=str(values.get("id") or ""))


def _is_known(path: str) -> bool:
    """Return whether a path is absolute or exists; False for one that no file can have."""
    try:
        return Path(path).is_absolute() or Path(path).exists()
    except (OSError, ValueError):
        return False


def _from_values(place: str, values: Mapping[str, Any], folder: Path) -> TrainingRow:
    if values.get("messages"):
        return _from_messages(place, values, folder)
    media: Media = "clip" if values.get("video") else "image"
    path = values.get("video") or values.get("image")
    if not isinstance(path, str) or not path:
        what = (
            "no path under image or video"
            if path is None or path == ""
            else f"the value of {'video' if media == 'clip' else 'image'} is not a path"
        )
        names = ", ".join(map(str, values)) or "nothing"
        return _bad_row(place, media, f"{what}; there is {names}")
    return _row(
        place, media, str(folder / path), values.get("prompt"), values.get("answer"), None, "answer"
    )


def _from_messages(place: str, values: Mapping[str, Any], folder: Path) -> TrainingRow:
    """Read a chat: a turn of the user that begins with a picture or video, and an answer."""
    messages = values["messages"]
    roles = (
        [message.get("role") if isinstance(message, Mapping) else None for message in messages]
        if isinstance(messages, list)
        else []
    )
    if roles != ["user", "assistant"]:
        found = ", ".join(map(str, roles)) or "none"
        return _bad_row(
            place, "image", f"messages are one of the user and one of the assistant, not {found}"
        )
    asked, answered = (_parts(message.get("content")) for message in messages)
    shown = [part for part in asked if part.get("type") in ("image", "video")]
    if len(shown) != 1 or asked[0] is not shown[0]:
        return _bad_row(
            place,
            "image",
            f"the user's message opens with one image or video, not {len(shown)}",
        )
    kind = str(shown[0]["type"])
    named = values.get(f"{kind}s") or values.get(kind)
    path = next(
        (shown[0][key] for key in PATH_KEYS if isinstance(shown[0].get(key), str)),
        named[0] if isinstance(named, list) else named,
    )
    media: Media = "clip" if kind == "video" else "image"
    if not isinstance(path, str):
        return _bad_row(place, media, f"the {kind} of the user's message has no path")
    return _row(
        place,
        media,
        str(folder / path),
        _words(asked),
        _words(answered),
        None,
        "assistant's message",
    )


def _bad_row(place: str, media: Media, error: str) -> TrainingRow:
    return TrainingRow(place, media, "", "", "", error=error)


def _parts(content: Any) -> list[Mapping[str, Any]]:
    """Return the parts of a message; plain text is one part."""
    if isinstance(content, str):
        return [{"type": "text", "text": content}]
    return (
        [part for part in content if isinstance(part, Mapping)]
        if isinstance(content, list) and content
        else [{}]
    )


def _words(parts: list[Mapping[str, Any]]) -> str:
    return "".join(str(part.get("text") or "") for part in parts if part.get("type") == "text")


def _row(
    place: str,
    media: Media,
    path: str,
    prompt: Any,
    answer: Any,
    time_seconds: float | None,
    answer_key: str,
) -> TrainingRow:
    """Make a row with its words checked."""
    error = ""
    for name, text in (("prompt", prompt), (answer_key, answer)):
        if not isinstance(text, str) or not text.strip():
            error = error or (
                f"no {name}"
                if text is None
                else f"an empty {name}"
                if isinstance(text, str)
                else f"{name} is not text"
            )
    words = ["" if not isinstance(text, str) else text for text in (prompt, answer)]
    # The prompt is asked as it is. White space around an answer would be learned for nothing.
    return TrainingRow(place, media, path, words[0], words[1].strip(), time_seconds, error)
