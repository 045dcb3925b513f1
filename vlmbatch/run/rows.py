"""From what came of a question to its row: the join of Item, Request and Completion that the
pipeline writes.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any

from vlmbatch.core import Completion, Item, Pixels, Record, Timing, utc_now
from vlmbatch.engine import Engine
from vlmbatch.errors import ReadError
from vlmbatch.job import Job
from vlmbatch.run.order import InputOrder
from vlmbatch.tasks import parse_answer


@dataclasses.dataclass(eq=False)
class Original:
    """An item that frames after it may resemble: its answers are theirs too.

    Attributes:
        id: Its id.
        asked: What is asked about it.
        pending: What of that this run answers; the rest is in OUTPUT already.
        records: Its rows of this run, by question.
        waiting: What waits for one of them, by question.
    """

    id: str
    asked: frozenset[str]
    pending: frozenset[str]
    records: dict[str, Record] = dataclasses.field(default_factory=dict)
    waiting: dict[str, list[Result]] = dataclasses.field(default_factory=dict)

    def answered(self, record: Record) -> Iterator[Result]:
        """Takes one of its rows, and yields what has waited for it."""
        self.records[record.prompt] = record
        yield from self.waiting.pop(record.prompt, ())


@dataclasses.dataclass(eq=False)
class Task:
    """An item on its way through the stages, with what is asked about it.

    Attributes:
        item: The item.
        asked: (number among the item's questions, question) of what is not done yet.
        order: Place of its first row among this run's rows.
        missing: Rows that are not written yet.
        failed: Whether one of its rows is an error.
        held_bytes: Bytes of the file that the item holds until it is loaded.
        parts: How many requests it was made into; each question has an answer to each.
        original: Itself as others may resemble it, or the one that it resembles.
    """

    item: Item
    asked: tuple[tuple[int, str], ...]
    order: int
    missing: int
    failed: bool = False
    new_tokens: int = 0
    size: tuple[int, int] | None = None
    tiles: int = 0
    read_seconds: float = 0.0
    prepare_seconds: float = 0.0
    held_bytes: int = 0
    parts: int = 1
    _answers: dict[int, dict[int, Completion]] = dataclasses.field(default_factory=dict)
    original: Original | None = None

    @property
    def is_similar(self) -> bool:
        """Whether its answers are those of another item."""
        return self.original is not None and self.original.id != self.item.id

    def join(self, part: int, completion: Completion) -> Completion | None:
        """Takes the answer about a part of the item; gives the answer about the whole when it is
        the last one.
        """
        if self.parts == 1:
            return completion
        answers = self._answers.setdefault(completion.question, {})
        answers[part] = completion
        if len(answers) < self.parts:
            return None
        del self._answers[completion.question]
        return join_completions([answers[number] for number in range(self.parts)])


def already_loaded() -> Pixels:
    """The ``load`` of an item whose pixels nobody needs any more."""
    raise ReadError("its pixels were loaded before")


def join_completions(parts: Sequence[Completion]) -> Completion:
    """One answer of those about the parts of an item: their texts one below the other, an error
    when one of them is.

    Tokens and shares of the busy time are added up. The parts go through the phases side by side,
    so of these the longest counts, and of the waiting the shortest. ``finish_reason`` is ``length``
    when any part was cut off; ``mean_logprob`` is the mean over all tokens.

    Args:
        parts: In reading order, at least one.
    """
    tokens = sum(part.new_tokens for part in parts)
    logprobs = [
        part.mean_logprob * part.new_tokens for part in parts if part.mean_logprob is not None
    ]
    timing = Timing(
        **{
            field.name: max(getattr(part.timing, field.name) for part in parts)
            for field in dataclasses.fields(Timing)
        }
    )
    timing.wait_seconds = min(part.timing.wait_seconds for part in parts)
    timing.compute_seconds = sum(part.timing.compute_seconds for part in parts)
    error = next((part.error for part in parts if part.error is not None), None)
    reasons = {part.finish_reason for part in parts}
    return Completion(
        parts[0].request,
        parts[0].question,
        text=None
        if error
        else "\n".join(part.text.strip() for part in parts if part.text and part.text.strip()),
        error=error,
        prompt_tokens=sum(part.prompt_tokens for part in parts),
        new_tokens=tokens,
        finish_reason=None if error else "length" if "length" in reasons else "stop",
        mean_logprob=sum(logprobs) / tokens if logprobs and tokens and not error else None,
        batch_size=max(part.batch_size for part in parts),
        timing=timing,
    )


@dataclasses.dataclass
class Result:
    """One row to be written: a task's question and its completion, the task's error, or neither for
    an item that resembles another.
    """

    task: Task
    position: int
    completion: Completion | None = None
    error: Exception | None = None

    @property
    def question(self) -> str:
        """What was asked."""
        return self.task.asked[self.position][1]


class RowMaker:
    """Makes the rows of a run."""

    def __init__(self, job: Job, revision: str, run_id: str, order: InputOrder) -> None:
        """Takes what all rows of a run share."""
        self.job, self.revision, self.run_id = job, revision, run_id
        self._order = order

    def record(self, result: Result, engine: Engine | None) -> Record:
        """Joins item and completion into a row.

        Args:
            result: What was asked and what came of it.
            engine: What answered; None when nothing came that far.
        """
        task, done, item = result.task, result.completion, result.task.item
        error = result.error if done is None else done.error
        text = None if done is None or done.text is None else parse_answer(self.job.task, done.text)
        timing = done.timing if done else None
        return Record(
            id=item.id,
            source=item.source,
            index=self._order.index(item.place),
            media=item.media,
            time_seconds=item.time_seconds,
            end_seconds=item.end_seconds,
            width=task.size[0] if task.size else None,
            height=task.size[1] if task.size else None,
            task=self.job.task,
            prompt=task.asked[result.position][1],
            text=text,
            status="ok" if error is None else "error",
            error_type=type(error).__name__ if error else None,
            error=" ".join(str(error).split()) if error else None,
            similar_to=None,
            finish_reason=done.finish_reason if done else None,
            mean_logprob=done.mean_logprob if done else None,
            model=self.job.model,
            revision=self.revision,
            engine=engine.name if engine else "",
            device=engine.device if engine else "",
            dtype=engine.dtype if engine else "",
            tiles=task.tiles,
            prompt_tokens=done.prompt_tokens if done else 0,
            new_tokens=done.new_tokens if done else 0,
            batch_size=done.batch_size if done else 0,
            read_seconds=task.read_seconds,
            prepare_seconds=task.prepare_seconds,
            wait_seconds=timing.wait_seconds if timing else 0.0,
            vision_seconds=timing.vision_seconds if timing else 0.0,
            prefill_seconds=timing.prefill_seconds if timing else 0.0,
            decode_seconds=timing.decode_seconds if timing else 0.0,
            compute_seconds=timing.compute_seconds if timing else 0.0,
            run_id=self.run_id,
            created_at=utc_now(),
            extra={name: item.extra.get(name) for name in self.job.kept_columns.values()},
        )

    def similar(self, result: Result, original: Record) -> Record:
        """The row of an item that resembles another: what the other's says, with nothing spent on
        it.

        Where the other one's row is an error so is this one, and both are done again with
        ``--retry-errors``.
        """
        item = result.task.item
        spent: dict[str, Any] = dict.fromkeys(
            ("tiles", "prompt_tokens", "new_tokens", "batch_size"), 0
        )
        spent |= dict.fromkeys(
            (
                f"{phase}_seconds"
                for phase in ("read", "prepare", "wait", "vision", "prefill", "decode", "compute")
            ),
            0.0,
        )
        return dataclasses.replace(
            original,
            id=item.id,
            source=item.source,
            index=self._order.index(item.place),
            media=item.media,
            time_seconds=item.time_seconds,
            end_seconds=item.end_seconds,
            status="error" if original.status == "error" else "similar",
            similar_to=original.id,
            run_id=self.run_id,
            created_at=utc_now(),
            **spent,
        )
