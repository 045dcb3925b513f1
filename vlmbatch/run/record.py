"""Make rows: join item, loaded facts and completion."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from vlmbatch.core import Completion, Record, Timing, utc_now
from vlmbatch.engine import Engine
from vlmbatch.errors import GenerateError
from vlmbatch.job.questions import QUESTION_NAME
from vlmbatch.run.order import InputOrder
from vlmbatch.run.task import Result
from vlmbatch.tasks import Task, parse_answer


@dataclasses.dataclass(frozen=True)
class RecordMaker:
    """Makes the records of a run.

    Attributes:
        task: The task.
        model, revision: The model that answers, known before it is loaded.
        kept_columns: Carried columns, each with its name in OUTPUT.
        run_id: Id of the run.
        order: The items in input order, to turn a place into an index.
        names: The names of questions that have one.
    """

    task: Task
    model: str
    revision: str
    kept_columns: dict[str, str]
    run_id: str
    order: InputOrder
    names: Mapping[str, str] = dataclasses.field(default_factory=dict)

    def record(self, result: Result, engine: Engine | None) -> Record:
        """Make the row of a result.

        Args:
            result: The result of a question.
            engine: The engine that answered; None if no request reached it.
        """
        item, loaded, done = result.task.item, result.loaded, result.completion
        error = result.error if done is None else done.error
        if done is not None and done.finish_reason == "cancelled":
            error = GenerateError("it was cancelled")
        timing = Timing() if done is None else done.timing
        is_answered = done is not None and error is None and done.text is not None
        return Record(
            id=item.id,
            source=item.source,
            index=self.order.index(item.place),
            media=item.media,
            time_seconds=item.time_seconds,
            end_seconds=item.end_seconds,
            width=loaded.size[0] if loaded.size else None,
            height=loaded.size[1] if loaded.size else None,
            task=self.task,
            prompt=result.question,
            text=self._text(done) if done and is_answered else None,
            status="ok" if error is None else "error",
            error_type=type(error).__name__ if error else None,
            error=" ".join(str(error).split()) if error else None,
            similar_to=None,
            finish_reason=done.finish_reason if done and error is None else None,
            mean_logprob=done.mean_logprob if done else None,
            model=engine.model if engine else self.model,
            revision=engine.revision if engine else self.revision,
            engine=engine.name if engine else "",
            device=engine.device if engine else "",
            dtype=engine.dtype if engine else "",
            tiles=loaded.tiles,
            prompt_tokens=done.prompt_tokens if done else 0,
            new_tokens=done.new_tokens if done else 0,
            batch_size=done.batch_size if done else 0,
            read_seconds=loaded.read_seconds,
            prepare_seconds=loaded.prepare_seconds,
            wait_seconds=timing.wait_seconds,
            vision_seconds=timing.vision_seconds,
            prefill_seconds=timing.prefill_seconds,
            decode_seconds=timing.decode_seconds,
            compute_seconds=timing.compute_seconds,
            run_id=self.run_id,
            created_at=utc_now(),
            extra=self._extra(result),
        )

    def _text(self, done: Completion) -> str:
        """Return the answer: a constrained one as it was generated."""
        text = done.text or ""
        has_form = done.request.questions[done.question].constraint is not None
        return text if has_form else parse_answer(self.task, text)

    def _extra(self, result: Result) -> dict[str, Any]:
        """Return the columns that not every OUTPUT has."""
        item = result.task.item
        extra = {name: item.extra.get(name) for name in self.kept_columns.values()}
        return {**extra, **({QUESTION_NAME: self.names.get(result.question)} if self.names else {})}

    def similar(self, result: Result, original: Record) -> Record:
        """Make the row of an item similar to another, with that one's answer and no costs.

        If the other row is an error, so is this one; both are retried with ``--retry-errors``.
        """
        item = result.task.item
        counts = ("tiles", "prompt_tokens", "new_tokens", "batch_size")
        phases = ("read", "prepare", "wait", "vision", "prefill", "decode", "compute")
        nothing: dict[str, Any] = dict.fromkeys(counts, 0)
        nothing |= {f"{phase}_seconds": 0.0 for phase in phases}
        return dataclasses.replace(
            original,
            id=item.id,
            source=item.source,
            index=self.order.index(item.place),
            media=item.media,
            time_seconds=item.time_seconds,
            end_seconds=item.end_seconds,
            status="error" if original.status == "error" else "similar",
            similar_to=original.id,
            run_id=self.run_id,
            created_at=utc_now(),
            **nothing,
        )
