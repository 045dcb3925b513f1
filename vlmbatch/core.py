"""The types that cross the borders between stages, and who fills them.

Readers and samplers make an ``Item``. A run loads it, makes a ``Conversation`` about its ``Pixels``
and asks ``Question``s; an engine's ``prepare`` makes these a ``Request``, its ``run`` answers with
one ``Completion`` a question. The run joins item and completion into a ``Record``, which a writer
keeps.
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
PartKind = Literal["text", "picture", "clip", "tile"]
Role = Literal["system", "user", "assistant"]
Status = Literal["ok", "error", "similar"]
FinishReason = Literal["stop", "length", "cancelled"]

_PART_OF_MEDIA: Mapping[Media, PartKind] = {
    "image": "picture",
    "frame": "picture",
    "clip": "clip",
    "tile": "tile",
}


@dataclasses.dataclass(frozen=True, slots=True)
class Pixels:
    """The pixels of an item.

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
        place: Number of its source in input order (a listed file, a row of a table, an entry of an
            archive), and its number within that source; both from 0. A shard keeps the places of
            the whole job, so that the index of a row can be settled when rows are published.
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
class Part:
    """A piece of a turn: words or pixels.

    Attributes:
        kind: ``text``; ``picture``; ``clip`` (frames with time stamps in one prompt); ``tile`` (a
            picture that is one tile already and is never resized).
        text: The words of a text.
        pixels: The pixels of the others: one frame, or several for a clip. None once an engine has
            prepared them.
    """

    kind: PartKind
    text: str = ""
    pixels: Pixels | None = None


@dataclasses.dataclass(frozen=True, slots=True)
class Turn:
    """The words and pixels of one side.

    Attributes:
        role: ``system``, ``user`` or ``assistant``.
        parts: What it says, in order.
    """

    role: Role
    parts: tuple[Part, ...]


@dataclasses.dataclass(frozen=True, slots=True)
class Conversation:
    """The part of a chat that all questions of a request share. The shortest one is a picture.

    Attributes:
        turns: The turns so far. A question continues the last turn where that is the user's, and
            opens a turn of the user's otherwise. None: the question stands alone.
        key: Part of the seed of sampling, beside the question's own: the id of the item.
    """

    turns: tuple[Turn, ...] = ()
    key: str = ""

    @classmethod
    def about(cls, media: Media, pixels: Pixels, key: str = "") -> Conversation:
        """A conversation about a picture, a frame, a clip or a tile."""
        kind = _PART_OF_MEDIA[media]
        return cls((Turn("user", (Part(kind, pixels=pixels),)),), key)

    def media(self) -> list[Part]:
        """The parts that are not text, in order."""
        return [part for turn in self.turns for part in turn.parts if part.kind != "text"]

    def without_pixels(self) -> Conversation:
        """The same conversation, its pixels dropped."""
        turns = (
            Turn(turn.role, tuple(dataclasses.replace(part, pixels=None) for part in turn.parts))
            for turn in self.turns
        )
        return Conversation(tuple(turns), self.key)


@dataclasses.dataclass(frozen=True, slots=True)
class Question:
    """A text that continues a conversation, and how it is to be answered.

    Attributes:
        text: The words.
        max_new_tokens: Longest answer, in tokens.
        temperature: 0 takes the most likely token; above 0 it divides the logits.
        top_p: Sample from the smallest set of most likely tokens that together have at least this
            probability (nucleus sampling, arXiv:1904.09751).
        seed: Seed of sampling. The key of the conversation and the text are part of what is drawn
            from, so that the questions of a job do not all draw the same.
        stop: Strings that end the answer and are no part of it; they may lie across tokens.
        logprobs: How many of the most likely tokens are reported beside each token of the answer,
            0 for that token alone; None reports nothing.
        ignore_eos: Go on behind the end of the utterance, as a benchmark of equal lengths wants.
        on_text: Called with each piece of the answer as it is decoded. An exception that it raises
            cancels this question.
    """

    text: str
    max_new_tokens: int = 64
    temperature: float = 0.0
    top_p: float = 1.0
    seed: int = 0
    stop: tuple[str, ...] = ()
    logprobs: int | None = None
    ignore_eos: bool = False
    on_text: Callable[[str], None] | None = None


class Request:
    """A conversation and its questions, made ready by an engine's ``prepare``.

    Attributes:
        conversation: The conversation; its pixels are dropped once the payload holds them.
        questions: What is asked.
        payload: What the engine made of them; no one else looks into it.
        payload_bytes: Its size, by which a queue is bounded.
        tiles: Tiles that the encoder takes; None where the engine cannot tell.
        native_tiles: Tiles that it would take with native detail; None where that is not known.
        tag: Whatever the caller wants back with every completion.
        queued_at: ``time.perf_counter()`` when a queue took it.
    """

    def __init__(
        self,
        conversation: Conversation,
        questions: Sequence[Question],
        payload: Any,
        payload_bytes: int = 0,
        *,
        tiles: int | None = None,
        native_tiles: int | None = None,
        tag: Any = None,
    ) -> None:
        self.conversation = conversation
        self.questions = tuple(questions)
        self.payload = payload
        self.payload_bytes = payload_bytes
        self.tiles = tiles
        self.native_tiles = native_tiles
        self.tag = tag
        self.queued_at = 0.0
        self._cancelled: set[int] = set()

    def cancel(self, question: int | None = None) -> None:
        """Have the engine drop a question, or all. Callable from any thread; each cancelled
        question still gets its completion.

        Args:
            question: Number of the question, from 0; None for all.
        """
        self._cancelled |= {question} if question is not None else set(range(len(self.questions)))

    def is_cancelled(self, question: int) -> bool:
        """Whether a question was cancelled."""
        return question in self._cancelled

    @property
    def has_cancelled(self) -> bool:
        """Whether any question was cancelled."""
        return bool(self._cancelled)


@dataclasses.dataclass(slots=True)
class Timing:
    """Wall seconds of the phases that an answer took part in, and its share of the engine's busy
    time. None: the engine cannot tell.

    Attributes:
        wait_seconds: From the queue's taking the request to its first computation.
        vision_seconds: Encoder calls that held a tile of the item.
        prefill_seconds: Prefill calls that held a token of the item.
        decode_seconds: From the first token to the last.
        compute_seconds: Share of the busy time, by tiles and tokens; over a run the shares add up
            to the busy time.
    """

    wait_seconds: float | None = 0.0
    vision_seconds: float | None = 0.0
    prefill_seconds: float | None = 0.0
    decode_seconds: float | None = 0.0
    compute_seconds: float | None = 0.0


@dataclasses.dataclass(frozen=True, slots=True)
class TokenLogprob:
    """A token of an answer and its log-probability.

    Attributes:
        token: Its text.
        logprob: Its log-probability under the model, whatever the temperature.
        top: The most likely tokens at its place, each with its log-probability.
    """

    token: str
    logprob: float
    top: tuple[tuple[str, float], ...] = ()


@dataclasses.dataclass(slots=True)
class Completion:
    """The answer to one question of a request, or why there is none: exactly one a question.

    Attributes:
        request: The request.
        question: Number of the question, from 0.
        text: The answer, or as much of it as there was when it was cancelled; None when there is
            an error.
        error: Why there is no answer.
        prompt_tokens: Tokens of the prompt; None, as below, where the engine cannot tell.
        new_tokens: Tokens of the answer, the stop token counted.
        finish_reason: ``stop`` (end of the utterance, or a stop string), ``length``
            (``max_new_tokens``, or the context is full) or ``cancelled``.
        mean_logprob: Mean log-probability of the answer's tokens under the model, whatever the
            temperature.
        batch_size: The most sequences that were decoded beside it, itself counted.
        timing: Where the time went.
        token_ids: The tokens of the answer; empty where the engine cannot tell.
        logprobs: A row a token, where the question wants them.
    """

    request: Request
    question: int
    text: str | None = None
    error: Exception | None = None
    prompt_tokens: int | None = 0
    new_tokens: int | None = 0
    finish_reason: FinishReason | None = None
    mean_logprob: float | None = None
    batch_size: int | None = 0
    timing: Timing = dataclasses.field(default_factory=Timing)
    token_ids: Sequence[int] = ()
    logprobs: Sequence[TokenLogprob] = ()


@dataclasses.dataclass(slots=True)
class Record:
    """A row of OUTPUT: one item and question. The keys are the same in JSONL, Parquet and CSV, in
    this order; columns of ``extra`` follow them.

    ``engine``, ``device``, ``dtype`` and ``revision`` are empty when nothing ran. Counts and
    seconds that the engine does not know are None.
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
        """The identity of a row across runs."""
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
