"""A request on its way through a dispatcher."""

from __future__ import annotations

import concurrent.futures
from collections.abc import Callable, Sequence
from typing import Any

from vlmbatch.core import Completion, Question, Request


class Ticket:
    """A request on its way through a dispatcher.

    Attributes:
        questions: Its questions.
        ready: Resolves with the prepared ``Request`` once the pixels are decoded and the prompt is
            written. Raises as ``done`` does if that fails.
        done: Resolves with one ``Completion`` a question, in their order; what went wrong with a
            single question is in its ``error``. Raises ``ItemError`` if the request could not be
            prepared, ``EngineError`` if the engine ended, ``CancelledError`` after ``cancel``.
    """

    def __init__(self, questions: Sequence[Question], forget: Callable[[Ticket], None]) -> None:
        """Take the questions, and what to call when the ticket is cancelled."""
        self.questions = tuple(questions)
        self.ready: concurrent.futures.Future[Request] = concurrent.futures.Future()
        self.done: concurrent.futures.Future[list[Completion]] = concurrent.futures.Future()
        self.request: Request | None = None
        self._forget = forget
        self._completions: list[Completion | None] = [None] * len(self.questions)

    @property
    def is_cancelled(self) -> bool:
        """True after ``cancel``."""
        return self.done.cancelled()

    def cancel(self) -> None:
        """Give up all its questions, wherever they are; harmless when it is done. ``done`` is
        cancelled at once, and the engine frees its place within one step.
        """
        if self.done.cancel():
            self.ready.cancel()
            self._forget(self)

    def complete(self, completion: Completion) -> bool:
        """Take a completion; the last one resolves the ticket. Return whether it was the last. For
        the dispatcher.
        """
        self._completions[completion.question] = completion
        found = [each for each in self._completions if each is not None]
        if len(found) < len(self._completions):
            return False
        self._completions, self.request = [], None
        resolve(self.done, found)
        return True

    def fail(self, error: BaseException) -> None:
        """End it with an error. For the dispatcher."""
        for future in (self.ready, self.done):
            if not future.done():
                resolve(future, error)


def resolve(future: concurrent.futures.Future[Any], value: Any) -> None:
    """Set the result of a future, or its exception, unless it was cancelled meanwhile."""
    try:
        if isinstance(value, BaseException):
            future.set_exception(value)
        else:
            future.set_result(value)
    except concurrent.futures.InvalidStateError:
        return
