"""DATA to rows: pictures or videos with prompt and answer, chats, or an OUTPUT of vlmbatch whose
texts were corrected.
"""

from __future__ import annotations

import csv
import dataclasses
import hashlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from vlmbatch.core import Media
from vlmbatch.errors import JobError, OutputError
from vlmbatch.job import Job
from vlmbatch.write import read_summary
from vlmbatch.write.atomic import reason
from vlmbatch.write.parquet import require as require_pyarrow

CLIP_OPTIONS = ("fps", "every", "num_frames", "at", "start", "end", "per", "window")
PATH_KEYS = ("path", "image", "video", "url")


@dataclasses.dataclass(frozen=True, slots=True)
class Row:
    """One thing to learn.

    Attributes:
        place: Where it stands, as a user would look for it: ``line 3`` of a text file, ``row 3`` of
            a table.
        media: ``image``, ``frame`` of a video, or ``clip``.
        path: The file.
        prompt: What is asked.
        answer: What is to be answered.
        time_seconds: Time of a frame, or start of a clip or window; None for a picture, and for a
            clip of the whole video.
        error: Why it cannot be learned from, as far as the words say; empty when it can.
    """

    place: str
    media: Media
    path: str
    prompt: str
    answer: str
    time_seconds: float | None = None
    error: str = ""

    def key(self) -> str:
        """Identifies what is learned, wherever the row stands."""
        return hashlib.sha256(
            json.dumps(
                [self.media, self.path, self.prompt, self.answer, self.time_seconds]
            ).encode()
        ).hexdigest()[:24]


@dataclasses.dataclass(frozen=True)
class Data:
    """What a file holds.

    Attributes:
        rows: Its rows, in order, bad ones among them.
        video_job: How its clips are made of videos.
        detail: The detail that an OUTPUT's texts were made with; None for other files.
        left_out: Rows of an OUTPUT that have no text of their own: errors, and frames that were
            skipped as similar.
    """

    rows: list[Row]
    video_job: Job
    detail: str | None = None
    left_out: int = 0


def read_data(path: Path, video_job: Job) -> Data:
    """Reads a DATA file.

    Args:
        path: A .jsonl, .parquet or .csv file.
        video_job: How clips are made of the videos that rows name; an OUTPUT says it itself.

    Raises:
        JobError: The file cannot be read, or holds nothing to learn from.
    """
    found: list[Row] = []
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
    return Data(found, clips, made_by.get("detail"), left_out)


def _records(path: Path) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Rows as mappings, with the place of each."""
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
        with open(path, encoding="utf-8-sig", newline="") as file:
            if path.suffix.lower() == ".csv":
                for number, values in enumerate(csv.DictReader(file), 1):
                    yield f"row {number}", values
                return
            for number, line in enumerate(file, 1):
                if line.strip():
                    yield f"line {number}", _object(line, path, number)
    except UnicodeDecodeError as error:
        raise JobError(f"{path} is not UTF-8 text") from error
    except csv.Error as error:
        raise JobError(f"{path} is not a CSV file ({error})") from error
    except OSError as error:
        raise JobError(f"cannot read {path}: {reason(error)}") from error


def _object(line: str, path: Path, number: int) -> Mapping[str, Any]:
    try:
        values = json.loads(line)
    except ValueError as error:
        raise JobError(f"{path}, line {number}: not JSON ({error})") from error
    if not isinstance(values, dict):
        raise JobError(f"{path}, line {number}: not an object")
    return values


def _output_job(path: Path) -> dict[str, Any]:
    """The job that made an OUTPUT, from its summary; empty when that is not there."""
    try:
        job = (read_summary(path) or {}).get("job")
    except OutputError as error:
        raise JobError(str(error)) from error
    return job if isinstance(job, dict) else {}


def _from_output(place: str, values: Mapping[str, Any], folder: Path) -> Row:
    source = str(values["source"])
    # A source is written as the user gave it, relative to where the run was started; an OUTPUT that
    # was moved there with its pictures works too.
    path = source if Path(source).is_absolute() or Path(source).exists() else str(folder / source)
    media: Media = values.get("media") if values.get("media") in ("frame", "clip") else "image"  # type: ignore[assignment]
    time = values.get("time_seconds")
    seconds = None if media == "image" or time in (None, "") else float(str(time))
    return _row(place, media, path, values.get("prompt"), values.get("text"), seconds, "text")


def _from_values(place: str, values: Mapping[str, Any], folder: Path) -> Row:
    if values.get("messages"):
        return _from_messages(place, values, folder)
    media: Media = "clip" if values.get("video") else "image"
    path = values.get("video") or values.get("image")
    if not isinstance(path, str):
        what = (
            "no path under image or video"
            if path is None or path == ""
            else f"what stands under {'video' if media == 'clip' else 'image'} is not a path"
        )
        return Row(
            place,
            media,
            "",
            "",
            "",
            error=f"{what}; there is {', '.join(map(str, values)) or 'nothing'}",
        )
    return _row(
        place, media, str(folder / path), values.get("prompt"), values.get("answer"), None, "answer"
    )


def _from_messages(place: str, values: Mapping[str, Any], folder: Path) -> Row:
    """A chat: one turn of the user, which opens with a picture or video, and one of the assistant."""
    messages = values["messages"]
    roles = (
        [message.get("role") if isinstance(message, Mapping) else None for message in messages]
        if isinstance(messages, list)
        else []
    )
    if roles != ["user", "assistant"]:
        return Row(
            place,
            "image",
            "",
            "",
            "",
            error=f"messages are one of the user and one of the assistant, not {', '.join(map(str, roles)) or 'none'}",
        )
    asked, answered = (_parts(message.get("content")) for message in messages)
    shown = [part for part in asked if part.get("type") in ("image", "video")]
    if len(shown) != 1 or asked[0] is not shown[0]:
        return Row(
            place,
            "image",
            "",
            "",
            "",
            error=f"the user's message opens with one image or video, not {len(shown)}",
        )
    kind = str(shown[0]["type"])
    named = values.get(f"{kind}s") or values.get(kind)
    path = next(
        (shown[0][key] for key in PATH_KEYS if isinstance(shown[0].get(key), str)),
        named[0] if isinstance(named, list) else named,
    )
    media: Media = "clip" if kind == "video" else "image"
    if not isinstance(path, str):
        return Row(place, media, "", "", "", error=f"the {kind} of the user's message has no path")
    return _row(
        place,
        media,
        str(folder / path),
        _words(asked),
        _words(answered),
        None,
        "assistant's message",
    )


def _parts(content: Any) -> list[Mapping[str, Any]]:
    """The parts of a message; plain text is one part."""
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
) -> Row:
    """A row with its words checked."""
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
    # The prompt stays as it is: it is asked like that. White space around an answer would be
    # learned and never seen.
    return Row(place, media, path, words[0], words[1].strip(), time_seconds, error)
