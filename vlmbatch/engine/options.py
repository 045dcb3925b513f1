"""Options of a question: taken from a job, and checked by engines."""

from __future__ import annotations

import math
from collections.abc import Sequence

from vlmbatch.core import Constraint, Question
from vlmbatch.errors import PrepareError
from vlmbatch.job import GenerationOptions


def make_question(
    text: str, options: GenerationOptions, constraint: Constraint | None = None
) -> Question:
    """Make a question with the generation options of a job."""
    return Question(
        text,
        max_new_tokens=options.max_new_tokens,
        temperature=options.temperature,
        top_p=options.top_p,
        seed=options.seed,
        constraint=constraint,
    )


def check_questions(questions: Sequence[Question], *, takes_constraints: bool = False) -> None:
    """Check that there are questions and that each is valid.

    Args:
        questions: The questions.
        takes_constraints: Whether the engine honours the constraint of a question.

    Raises:
        PrepareError: There is none, or one is not valid text or has an option out of range, or that
            the engine does not have.
    """
    if not questions:
        raise PrepareError("there is no question to ask")
    for question in questions:
        try:
            question.text.encode()
        except UnicodeEncodeError as error:
            raise PrepareError(f"a question is not valid text: {question.text!r}") from error
        if question.max_new_tokens < 1:
            raise PrepareError(f"max_new_tokens must be at least 1, not {question.max_new_tokens}")
        if not (math.isfinite(question.temperature) and question.temperature >= 0):
            raise PrepareError(f"temperature must be 0 or more, not {question.temperature}")
        if not 0 < question.top_p <= 1:
            raise PrepareError(f"top_p must be above 0 and at most 1, not {question.top_p}")
        if not all(question.stop):
            raise PrepareError("a stop string must not be empty")
        if question.logprobs is not None and question.logprobs < 0:
            raise PrepareError(f"logprobs must be 0 or more, not {question.logprobs}")
        if question.constraint is not None:
            _check_constraint(question, takes_constraints=takes_constraints)


def _check_constraint(question: Question, *, takes_constraints: bool) -> None:
    if not takes_constraints:
        assert question.constraint is not None
        raise PrepareError(f"this engine has no {question.constraint.kind}; the torch engine has")
    if question.stop or question.ignore_eos:
        raise PrepareError("a constrained answer ends where it is whole: leave out stop")
