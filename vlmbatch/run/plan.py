"""The work of a job before it is done: its items, and what a run would do about them."""

from __future__ import annotations

import contextlib
import dataclasses
from typing import Any

from vlmbatch.core import Item
from vlmbatch.engine.constraints import checked_constraint
from vlmbatch.errors import OutputError
from vlmbatch.job import Job
from vlmbatch.questions import Questions, read_questions
from vlmbatch.read import open_reader
from vlmbatch.run.intake import check_inputs
from vlmbatch.sample import make_sampler
from vlmbatch.write import OutputLook, look_at_output


@dataclasses.dataclass
class Plan:
    """Numbers of items.

    Attributes:
        items: All of them.
        new: Those with a row that OUTPUT does not have.
        changed: Others whose files have changed.
        again: Others that ``--retry-errors`` or ``--redo`` asks about again.
        done: Others: nothing is asked about them.
        unasked: Those without a question, which are done too.
        other_files: Files that have the id of another one; see ``Writer.other_files``.
        refusal: Why the run would be refused; None: it would not.
    """

    items: int = 0
    new: int = 0
    changed: int = 0
    again: int = 0
    done: int = 0
    unasked: int = 0
    other_files: dict[str, Any] = dataclasses.field(default_factory=dict)
    refusal: str | None = None


def plan_items(job: Job) -> Plan:
    """Say what a run of a job would do; load no picture and no model.

    Raises:
        JobError: An INPUT or the question file is missing or invalid, or the constraint of answers
            cannot be compiled.
        NothingFound: The question file asks about other things than the items.
    """
    check_inputs(job)
    checked_constraint(job)
    plan = Plan()
    with contextlib.ExitStack() as stack:
        look: OutputLook | None = None
        try:
            look = stack.enter_context(look_at_output(job))
        except OutputError as error:
            plan.refusal = str(error)
        _count(job, plan, look)
        plan.other_files = look.other_files() if look else {}
    return plan


def count_items(job: Job) -> int:
    """Count the items of a job; load no picture and no model. Raises as ``plan_items`` does."""
    check_inputs(job)
    plan = Plan()
    _count(job, plan, None)
    return plan.items


def _count(job: Job, plan: Plan, look: OutputLook | None) -> None:
    questions = read_questions(job)
    # Frames are counted by their packets where that is possible. The state of other files is needed
    # where it is compared with OUTPUT.
    sampler = make_sampler(job) if job.media == "video" else None
    names_only = job.media == "video" or look is None
    for item in open_reader(job, sampler=sampler, names_only=names_only):
        _add(plan, item, questions, look)
        if plan.items == job.limit:
            break
    # Questions in table rows may be unknown when only counting.
    if job.question_column is None and plan.items != job.limit and not job.allow_empty:
        questions.check()


def _add(plan: Plan, item: Item, questions: Questions, look: OutputLook | None) -> None:
    plan.items += 1
    asked = questions.of(item)
    if look is None:  # questions in a table's rows are not read then
        plan.new += 1
        return
    rows = {
        look.plan(item.id, question, item.source, item.fingerprint, item.digest)
        for question in asked
    }
    plan.unasked += not asked
    if "new" in rows:
        plan.new += 1
    elif "changed" in rows:
        plan.changed += 1
    elif "again" in rows:
        plan.again += 1
    else:
        plan.done += 1
