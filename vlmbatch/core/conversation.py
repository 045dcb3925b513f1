"""Conversations, questions, and the requests that an engine makes of them."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Callable, Sequence
from typing import Any, Literal

from vlmbatch.core.item import Media, Pixels

PartKind = Literal["text", "picture", "clip", "tile"]
Role = Literal["system", "user", "assistant"]
ConstraintKind = Literal["schema", "regex", "choices"]


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
class Constraint:
    """A constraint on the text of an answer.

    Attributes:
        kind: ``schema`` (JSON that is valid under a JSON Schema), ``regex`` (text that a regular
            expression matches as a whole) or ``choices`` (one of several texts).
        text: The schema as JSON, the expression, or the texts as a JSON list.
    """

    kind: ConstraintKind
    text: str

    @property
    def digest(self) -> str:
        """Digest of its text, as OUTPUT's identity has it."""
        data = self.text.encode("utf-8", "surrogatepass")
        return f"sha256:{hashlib.sha256(data).hexdigest()[:16]}"


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
        constraint: What the answer must satisfy; None for any text.
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
    constraint: Constraint | None = None
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
