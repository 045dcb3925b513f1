"""The types that cross the borders between stages, and who fills them.

read/ and sample/ make an ``Item``; the pipeline loads it and makes a ``Conversation``; prepare/
makes that a ``Request``; engine/ answers with one ``Completion`` a question; the pipeline joins the
two into a ``Record``, which write/ keeps.
"""

from __future__ import annotations

import dataclasses
import datetime
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, Union

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from PIL import Image

UInt8Array = npt.NDArray[np.uint8]
Picture: TypeAlias = Union[UInt8Array, "Image.Image"]
"""RGB: an array, uint8, (H, W, 3), or a Pillow image of mode RGB as the decoder made it, which
spares two copies on the way to the tiles.
"""
Media = Literal["image", "frame", "clip", "tile"]
Status = Literal["ok", "error", "similar"]
FinishReason = Literal["stop", "length"]


@dataclasses.dataclass(frozen=True, slots=True)
class Pixels:
    """What ``Item.load`` gives.

    Attributes:
        frames: RGB pictures, upright: one for an image or frame, several for a clip.
        times_seconds: Presentation time of each frame of a clip; empty for an image.
        duration_seconds: Duration of the whole video; None for an image.
    """

    frames: Sequence[Picture]
    times_seconds: tuple[float, ...] = ()
    duration_seconds: float | None = None

    def arrays(self) -> list[UInt8Array]:
        """The frames as arrays, uint8, (H, W, 3)."""
        return [np.ascontiguousarray(frame, np.uint8) for frame in self.frames]


def picture_size(picture: Picture) -> tuple[int, int]:
    """(width, height) in pixels."""
    if isinstance(picture, np.ndarray):
        return picture.shape[1], picture.shape[0]
    return picture.size


@dataclasses.dataclass(frozen=True, slots=True)
class Item:
    """One thing to ask about. Made by a reader; its pixels are made by ``load`` on a worker thread,
    at the last moment.

    Attributes:
        id: Stable across runs: the path relative to its INPUT with ``/`` as separator,
            ``clip.mp4#t=12.000`` for a frame.
        source: Where the bytes came from, as a user would type it.
        place: Number of its source (a listed file, a row of a table, an entry of an archive) in input
            order, and its number within that source; both from 0. A shard keeps the places of the
            whole job, so that the index of a row can be settled when rows are published.
        media: ``image``, ``frame`` (one frame of a video) or ``clip`` (several in one prompt).
        load: Gives the pixels; raises an ``ItemError`` (ReadError, DecodeError) and nothing else.
        time_seconds: Presentation time of a frame, or start of a clip; None for an image.
        end_seconds: Time of the next sampled frame or the video's end, or the end of a clip; None
            for an image.
        fingerprint: Changes when the file does (size and mtime); empty when there is no file.
        questions: What is asked about this item instead of the job's questions; empty for the
            job's.
        extra: Values that are carried into its rows, by column of OUTPUT.
        held_bytes: Bytes of the file that ``load`` holds, because they cannot be read again
            cheaply.
        similar_to: Id of the frame that this one resembles and gets its answers from; None for what
            is asked about.
    """

    id: str
    source: str
    place: tuple[int, int]
    media: Media
    load: Callable[[], Pixels]
    time_seconds: float | None = None
    end_seconds: float | None = None
    fingerprint: str = ""
    questions: tuple[str, ...] = ()
    extra: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    held_bytes: int = 0
    similar_to: str | None = None


@dataclasses.dataclass(frozen=True, slots=True)
class Conversation:
    """Pixels on their way to the model, with what every question about them shares.

    Attributes:
        media: Says which prompt the pixels get: that of a picture, that of a picture of one tile
            for a ``tile`` that was cut already, or the video prompt with time stamps for a
            ``clip``.
        pixels: What was loaded.
        key: What sampling is seeded with, besides the job's seed: the item's id.
    """

    media: Media
    pixels: Pixels
    key: str = ""


@dataclasses.dataclass(slots=True, eq=False)
class Request:
    """A conversation made ready for the engine.

    Attributes:
        tiles: uint8, (n_tiles, 3, E, E).
        prefix_ids: Token ids of the chat opening and the media; every question continues them.
        questions: For each question the token ids that follow the prefix.
        seeds: For each question the seed that its sampling starts from.
        tile_keys: For each tile a digest of its pixels, by which equal tiles are known; empty where
            nobody made them.
        tag: Whatever the caller wants back with every completion.
        prepare_seconds: How long preparing took, wall time.
        queued_at: ``time.perf_counter()`` when the engine's queue took it; set by the queue.
        on_text: Called with (question number, piece of text) as text is decoded, or None.
        cancelled: Set to True to have the engine drop the request.
    """

    tiles: UInt8Array
    prefix_ids: Sequence[int]
    questions: Sequence[Sequence[int]]
    seeds: Sequence[int] = ()
    tile_keys: Sequence[bytes] = ()
    tag: Any = None
    prepare_seconds: float = 0.0
    queued_at: float = 0.0
    on_text: Callable[[int, str], None] | None = None
    cancelled: bool = False

    @property
    def prompt_tokens(self) -> int:
        """Tokens of the longest prompt among the questions."""
        return len(self.prefix_ids) + max(len(question) for question in self.questions)


@dataclasses.dataclass(slots=True)
class Timing:
    """Where an answer's time went: wall seconds of the phases it took part in, and its share of the
    engine's busy time.

    Attributes:
        wait_seconds: From the queue's taking the request to its first computation.
        vision_seconds: Encoder calls that held a tile of the item.
        prefill_seconds: Prefill calls that held a token of the item.
        decode_seconds: From the first token to the last.
        compute_seconds: Share of the busy time, by tiles and tokens; over a run the shares add up
            to the busy time.
    """

    wait_seconds: float = 0.0
    vision_seconds: float = 0.0
    prefill_seconds: float = 0.0
    decode_seconds: float = 0.0
    compute_seconds: float = 0.0


@dataclasses.dataclass(slots=True)
class Completion:
    """The answer to one question of a request, or why there is none.

    Attributes:
        request: The request.
        question: Number of the question, from 0.
        text: The answer; None when there is an error.
        error: Why there is no answer.
        prompt_tokens: Tokens of prefix and question.
        new_tokens: Tokens of the answer, the stop token counted.
        finish_reason: ``stop`` (end of utterance) or ``length`` (``max_new_tokens``).
        mean_logprob: Mean log-probability of the answer's tokens under the model, whatever the
            temperature.
        batch_size: The most sequences that were decoded beside it, itself counted.
        timing: Where the time went.
    """

    request: Request
    question: int
    text: str | None = None
    error: Exception | None = None
    prompt_tokens: int = 0
    new_tokens: int = 0
    finish_reason: FinishReason | None = None
    mean_logprob: float | None = None
    batch_size: int = 0
    timing: Timing = dataclasses.field(default_factory=Timing)


@dataclasses.dataclass(slots=True)
class Record:
    """A row of OUTPUT: one item and question. The keys are the same in JSONL, Parquet and CSV, in
    this order; columns of ``extra`` follow them.

    ``engine``, ``device``, ``dtype`` and ``revision`` are empty when nothing ran. Counts and seconds
    that the engine does not know are None.
    """

    id: str
    source: str
    index: int
    media: str
    time_seconds: float | None
    end_seconds: float | None
    width: int | None
    height: int | None
    task: str
    prompt: str
    text: str | None
    status: str
    error_type: str | None
    error: str | None
    similar_to: str | None
    finish_reason: str | None
    mean_logprob: float | None
    model: str
    revision: str
    engine: str
    device: str
    dtype: str
    tiles: int | None
    prompt_tokens: int | None
    new_tokens: int | None
    batch_size: int | None
    read_seconds: float | None
    prepare_seconds: float | None
    wait_seconds: float | None
    vision_seconds: float | None
    prefill_seconds: float | None
    decode_seconds: float | None
    compute_seconds: float | None
    run_id: str
    created_at: str
    extra: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    @property
    def key(self) -> tuple[str, str, str]:
        """What identifies a row across runs."""
        return self.id, self.task, self.prompt


RECORD_FIELDS: tuple[str, ...] = tuple(
    field.name for field in dataclasses.fields(Record) if field.name != "extra"
)
"""The keys that every row has, in order."""


def utc_now() -> str:
    """The time as a record states it: UTC, milliseconds, ``2026-01-31T12:00:00.000Z``."""
    return (
        datetime.datetime.now(datetime.UTC)
        .isoformat(timespec="milliseconds")
        .replace("+00:00", "Z")
    )
