"""The types that pass between stages, and the stage that fills each.

Readers and samplers make an ``Item``. A run loads it, makes a ``Conversation`` about its ``Pixels``
and asks ``Question``s. An engine's ``prepare`` turns these into a ``Request``; its ``run`` answers
with one ``Completion`` a question. The run joins item and completion into a ``Record``, and a
writer stores it.
"""

from __future__ import annotations

import dataclasses
import datetime
import hashlib
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, Union

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from PIL import Image

UInt8Array = npt.NDArray[np.uint8]
Picture: TypeAlias = Union[UInt8Array, "Image.Image"]
"""RGB: an array, uint8, (H, W, 3), or a Pillow image as the decoder made it, which saves copies."""
Media = Literal["image", "frame", "clip", "tile"]
PartKind = Literal["text", "picture", "clip", "tile"]
Role = Literal["system", "user", "assistant"]
Status = Literal["ok", "error", "similar"]
FinishReason = Literal["stop", "length", "cancelled"]


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
    """One image, frame or clip to ask about. A reader makes it; ``load`` makes its pixels on a
    worker thread, at the last moment.

    Attributes:
        id: Stable across runs: the path relative to its INPUT with ``/`` as separator,
            ``clip.mp4#t=12.000`` for a frame.
        source: Origin of the bytes, as a user would type it.
        place: Number of its source in input order (a listed file, a table row, an archive entry),
            and its number within that source; both from 0. A shard keeps the places of the whole
            job; row indices are settled from them when rows are published.
        media: ``image``, ``frame`` (one frame of a video), ``clip`` (several in one prompt) or
            ``tile``.
        load: Return the pixels. Raises an ``ItemError`` (ReadError, DecodeError) and nothing else.
        time_seconds: Presentation time of a frame, or start of a clip; None for an image.
        end_seconds: Time of the next sampled frame or the video's end, or the end of a clip; None
            for an image.
        fingerprint: File size and mtime; it changes when the file does. Empty when there is no
            file.
        questions: Questions about this item in place of the job's; empty for the job's.
        extra: Values copied into its rows, by column of OUTPUT.
        held_bytes: File bytes that ``load`` keeps because they cannot be read again cheaply.
        similar_to: Id of the similar frame whose answers this one gets; None for an item that is
            asked about.
        digest: Return a digest of the file's content; raises as ``load`` does.
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
    digest: Callable[[], str] | None = None


@dataclasses.dataclass(frozen=True, slots=True)
class Part:
    """A piece of a turn: text or pixels.

    Attributes:
        kind: ``text``; ``picture``; ``clip`` (frames with timestamps in one prompt); ``tile`` (a
            picture that is one tile already and is never resized).
        text: The text of a ``text``.
        pixels: The pixels of the other kinds: one frame, or several for a clip. None once an engine
            has prepared them.
        detail: Detail of a picture, where it is not the engine's: ``full`` or ``low``.
    """

    kind: PartKind
    text: str = ""
    pixels: Pixels | None = None
    detail: Literal["full", "low"] | None = None


@dataclasses.dataclass(frozen=True, slots=True)
class Turn:
    """One turn of a conversation.

    Attributes:
        role: ``system``, ``user`` or ``assistant``.
        parts: Text and pixels, in order.
    """

    role: Role
    parts: tuple[Part, ...]


@dataclasses.dataclass(frozen=True, slots=True)
class Conversation:
    """The part of a chat that all questions of a request share. The shortest one is a picture.

    Attributes:
        turns: The turns so far. A question continues the last turn if it is the user's, and opens a
            new user turn otherwise. Without turns the question stands alone.
        key: Part of the sampling seed, beside the question's own: the id of the item.
    """

    turns: tuple[Turn, ...] = ()
    key: str = ""

    @classmethod
    def about(cls, media: Media, pixels: Pixels, key: str = "") -> Conversation:
        """Make a conversation about a picture, a frame, a clip or a tile."""
        kind: PartKind = media if media in ("clip", "tile") else "picture"
        return cls((Turn("user", (Part(kind, pixels=pixels),)),), key)

    def media(self) -> list[Part]:
        """Return the parts that are not text, in order."""
        return [part for turn in self.turns for part in turn.parts if part.kind != "text"]

    def without_pixels(self) -> Conversation:
        """Return the same conversation without pixels."""
        turns = (
            Turn(turn.role, tuple(dataclasses.replace(part, pixels=None) for part in turn.parts))
            for turn in self.turns
        )
        return Conversation(tuple(turns), self.key)


@dataclasses.dataclass(frozen=True, slots=True)
class Question:
    """A text that continues a conversation, and its generation options.

    Attributes:
        text: The question.
        max_new_tokens: Longest answer, in tokens.
        temperature: 0 takes the most likely token; above 0 it divides the logits.
        top_p: Sample from the smallest set of most likely tokens that together have at least this
            probability (nucleus sampling, arXiv:1904.09751).
        seed: Sampling seed. ``draw_seed`` mixes in the conversation's key and the text, so that the
            questions of a job draw differently.
        stop: Strings that end the answer and are not part of it; they may span tokens.
        logprobs: Number of most likely tokens to report beside each token of the answer, 0 for that
            token alone; None reports nothing.
        ignore_eos: Continue after the end-of-sequence token, for benchmarks of equal lengths.
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


def draw_seed(seed: int, key: str, text: str) -> int:
    """Derive the sampling seed of a question, 63 bits: the same in every engine, run and batch.

    Args:
        seed: The question's ``seed``.
        key: The conversation's ``key``.
        text: The question's text.
    """
    # Ids of files may hold undecodable bytes.
    data = "\0".join((str(seed), key, text)).encode("utf-8", "surrogatepass")
    return int.from_bytes(hashlib.blake2b(data, digest_size=8).digest(), "big") >> 1


class Request:
    """A conversation and its questions, as an engine's ``prepare`` returns them.

    Attributes:
        conversation: The conversation; its pixels are dropped once the payload holds them.
        questions: The questions.
        payload: The engine's own form of them, opaque to everyone else.
        payload_bytes: Size of the payload; it bounds a queue.
        tiles: Tiles to encode; None where the engine cannot tell.
        native_tiles: Tiles to encode at native detail; None where that is not known.
        tag: A value of the caller's, returned with every completion.
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
        """Cancel a question, or all. Callable from any thread; each cancelled question still gets
        its completion.

        Args:
            question: Number of the question, from 0; None for all.
        """
        self._cancelled |= {question} if question is not None else set(range(len(self.questions)))

    def is_cancelled(self, question: int) -> bool:
        """True if a question was cancelled."""
        return question in self._cancelled

    @property
    def has_cancelled(self) -> bool:
        """True if any question was cancelled."""
        return bool(self._cancelled)


@dataclasses.dataclass(slots=True)
class Timing:
    """Wall seconds of the phases that an answer took part in, and its share of the engine's busy
    time. None: the engine cannot tell.

    Attributes:
        wait_seconds: From entering the queue to the first computation.
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
        logprob: Its log-probability under the model, before temperature.
        top: The most likely tokens at its position, each with its log-probability.
    """

    token: str
    logprob: float
    top: tuple[tuple[str, float], ...] = ()


@dataclasses.dataclass(slots=True)
class Completion:
    """The answer to one question of a request, or its error: exactly one a question.

    Attributes:
        request: The request.
        question: Number of the question, from 0.
        text: The answer, partial if it was cancelled; None if there is an error.
        error: Reason for the missing answer.
        prompt_tokens: Tokens of the prompt; None, as below, where the engine cannot tell.
        cached_tokens: Tokens of the prompt that were kept from an earlier request.
        image_tokens: Tokens of the prompt that stand for pictures.
        new_tokens: Tokens of the answer, the stop token counted.
        finish_reason: ``stop`` (end of sequence, or a stop string), ``length`` (``max_new_tokens``,
            or the context is full) or ``cancelled``.
        mean_logprob: Mean log-probability of the answer's tokens under the model, before
            temperature.
        batch_size: Largest batch that it was decoded in.
        timing: Seconds of its phases.
        token_ids: The tokens of the answer; empty where the engine cannot tell.
        logprobs: One entry a token, if the question asks for them.
    """

    request: Request
    question: int
    text: str | None = None
    error: Exception | None = None
    prompt_tokens: int | None = 0
    cached_tokens: int | None = 0
    image_tokens: int | None = 0
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
    """Return the time as records have it: UTC, ``2026-01-31T12:00:00.000Z``."""
    now = datetime.datetime.now(datetime.UTC).isoformat(timespec="milliseconds")
    return now.replace("+00:00", "Z")
