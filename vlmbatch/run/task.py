"""An item in a run: its questions, its loaded facts, and the state of its rows.

Each type is filled once, by one thread: the reader makes a ``Task``, a worker ``Loaded``, the
engine's thread joins completions to a ``Result``, and the writer keeps ``Progress``.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence

from vlmbatch.core import Completion, Item, Pixels, Record, Timing
from vlmbatch.errors import ItemError, ReadError


@dataclasses.dataclass(eq=False)
class Original:
    """An item whose answers later, similar frames get too.

    Attributes:
        id: Its id.
        asked: Its questions.
        pending: Those of them that this run answers; the rest is in OUTPUT already.
        records: Its rows of this run, by question.
        waiting: Results that wait for one of them, by question.
    """

    id: str
    asked: frozenset[str]
    pending: frozenset[str]
    records: dict[str, Record] = dataclasses.field(default_factory=dict)
    waiting: dict[str, list[Result]] = dataclasses.field(default_factory=dict)

    def answered(self, record: Record) -> Iterator[Result]:
        """Add one of its rows, and yield the results that waited for it."""
        self.records[record.prompt] = record
        yield from self.waiting.pop(record.prompt, ())


@dataclasses.dataclass(frozen=True, eq=False)
class Task:
    """An item and the questions about it.

    Attributes:
        item: The item.
        asked: (number among the item's questions, question) of the unfinished questions.
        order: Number of its first row among this run's rows, which identifies a task.
        original: The ``Original`` of the item, or of the one that it is similar to.
    """

    item: Item
    asked: tuple[tuple[int, str], ...]
    order: int
    original: Original | None = None

    @property
    def is_similar(self) -> bool:
        """True if its answers are those of another item."""
        return self.original is not None and self.original.id != self.item.id

    def without_pixels(self) -> Task:
        """Return the same task without the decoded frame or file bytes that its item may hold."""
        item = dataclasses.replace(self.item, load=_already_loaded, digest=None)
        return dataclasses.replace(self, item=item)


@dataclasses.dataclass(frozen=True)
class Loaded:
    """Facts about a loaded and prepared item.

    Attributes:
        size: Width and height in pixels; None if nothing could be loaded.
        tiles: Tiles to encode; None where the engine cannot tell.
        native_tiles: Tiles to encode at native detail; None where that is not known.
        read_seconds, prepare_seconds: Duration of loading and preparing.
        content: Digest of the file's content; empty where it is not known.
    """

    size: tuple[int, int] | None = None
    tiles: int | None = 0
    native_tiles: int | None = None
    read_seconds: float = 0.0
    prepare_seconds: float = 0.0
    content: str = ""


def content_of(item: Item) -> str:
    """Return the digest of an item's file; empty where that cannot be read."""
    try:
        return item.digest() if item.digest is not None else ""
    except ItemError:
        return ""


@dataclasses.dataclass(frozen=True)
class Result:
    """End of one question: a completion, an error, or neither if the item is similar to another."""

    task: Task
    position: int
    loaded: Loaded = Loaded()
    completion: Completion | None = None
    error: Exception | None = None

    @property
    def question(self) -> str:
        """The text of the question."""
        return self.task.asked[self.position][1]


@dataclasses.dataclass
class Progress:
    """State of the rows of a task.

    Attributes:
        missing: Number of rows that are not written yet.
        failed: Whether one of its rows is an error.
        new_tokens: Tokens of its answers.
    """

    missing: int
    failed: bool = False
    new_tokens: int = 0


@dataclasses.dataclass(eq=False)
class Ticket:
    """The tag of a request, shared by all requests of an item.

    Attributes:
        task: The task.
        loaded: Facts about the loaded item.
        parts: Number of requests; each question has an answer to each.
    """

    task: Task
    loaded: Loaded
    parts: int
    _answers: dict[int, dict[int, Completion]] = dataclasses.field(default_factory=dict)

    def join(self, part: int, completion: Completion) -> Result | None:
        """Add the answer about a part of the item; return the result after the last one."""
        question = completion.question
        answers = self._answers.setdefault(question, {})
        answers[part] = completion
        if len(answers) < self.parts:
            return None
        del self._answers[question]
        whole = (
            completion
            if self.parts == 1
            else join_completions([answers[number] for number in range(self.parts)])
        )
        return Result(self.task, question, self.loaded, whole)


def join_completions(parts: Sequence[Completion]) -> Completion:
    """Join the completions about the parts of an item: texts one below the other, an error if there
    is one.

    Tokens and shares of the busy time are added up. The parts go through the phases side by side,
    so the longest phase counts, and the shortest wait. ``finish_reason`` is ``length`` if any part
    was cut off; ``mean_logprob`` is the mean over all tokens.

    Args:
        parts: In reading order, at least one.
    """
    tokens = _sum(part.new_tokens for part in parts)
    logprobs = [
        part.mean_logprob * part.new_tokens
        for part in parts
        if part.mean_logprob is not None and part.new_tokens is not None
    ]
    error = next((part.error for part in parts if part.error is not None), None)
    is_cut_off = any(part.finish_reason == "length" for part in parts)
    texts = (part.text.strip() for part in parts if part.text)
    return Completion(
        parts[0].request,
        parts[0].question,
        text=None if error else "\n".join(text for text in texts if text),
        error=error,
        prompt_tokens=_sum(part.prompt_tokens for part in parts),
        new_tokens=tokens,
        finish_reason=None if error else "length" if is_cut_off else "stop",
        mean_logprob=sum(logprobs) / tokens if logprobs and tokens and not error else None,
        batch_size=max((part.batch_size or 0 for part in parts), default=0),
        timing=_join_timings([part.timing for part in parts]),
    )


def _join_timings(timings: Sequence[Timing]) -> Timing:
    joined: dict[str, float | None] = {}
    for field in dataclasses.fields(Timing):
        values = [getattr(timing, field.name) for timing in timings]
        known = [value for value in values if value is not None]
        if field.name == "compute_seconds":
            joined[field.name] = sum(known) if known else None
        elif field.name == "wait_seconds":
            joined[field.name] = min(known, default=None)
        else:
            joined[field.name] = max(known, default=None)
    return Timing(**joined)


def _sum(counts: Iterator[int | None]) -> int | None:
    found = [count for count in counts if count is not None]
    return sum(found) if found else None


def _already_loaded() -> Pixels:
    """Replacement for ``load`` of an item whose pixels are no longer needed."""
    raise ReadError("its pixels were loaded before")
