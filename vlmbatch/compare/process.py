"""A process for each side, so that its memory is its own and goes with it.

The process finds its model at once and then waits: what is wrong with either side is known before
the first one loads its model. The messages are ``("ready", None)``, ``("answer", Answer)``,
``("end", Figures)`` and ``("error", exception)``.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
from collections.abc import Callable
from multiprocessing.connection import Connection
from types import TracebackType
from typing import Any, Self

from vlmbatch.compare.answers import Answer, SideAnswers
from vlmbatch.compare.sides import Side
from vlmbatch.errors import EngineError, VlmbatchError, one_line

GO = "go"


class SideProcess:
    """The process of a side."""

    def __init__(self, side: Side) -> None:
        """Start it."""
        self._side = side
        context = multiprocessing.get_context("spawn")
        self._connection, theirs = context.Pipe()
        self._process = context.Process(target=_work, args=(side, theirs), daemon=False)
        self._process.start()
        theirs.close()  # so that its end is seen here

    def wait(self) -> None:
        """Wait until its model is found.

        Raises:
            VlmbatchError: It cannot answer; the message begins with the side.
        """
        self._receive()

    def ask(self, progress: Callable[[], None]) -> SideAnswers:
        """Let it answer.

        Args:
            progress: Called after each answer.

        Raises:
            VlmbatchError: It cannot go on.
        """
        self._connection.send(GO)
        answers: dict[tuple[tuple[int, int], str], Answer] = {}
        while True:
            kind, value = self._receive()
            if kind == "end":
                return SideAnswers(self._side.text, value, answers)
            answers[value.key] = value
            progress()

    def _receive(self) -> tuple[str, Any]:
        try:
            kind, value = self._connection.recv()
        except (EOFError, OSError) as error:
            self._process.join()
            raise EngineError(
                f"{self._side.text}: its process ended with {_ending(self._process.exitcode)}"
            ) from error
        if kind == "error":
            raise value
        return kind, value

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._connection.close()
        if error is not None:
            self._process.terminate()
        self._process.join()


def _ending(code: int | None) -> str:
    if code is not None and code < 0:
        hint = ": it may have run out of memory" if -code == signal.SIGKILL else ""
        return f"signal {-code}{hint}"
    return f"exit code {code}"


def _work(side: Side, connection: Connection) -> None:
    """Find the model, wait, and answer."""
    # An engine ends its server when it is closed, which SIGTERM would not do by itself.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        try:
            _answer(side, connection)
        except VlmbatchError as error:
            connection.send(("error", _named(side, error)))
        except (OSError, EOFError):  # the other end is gone
            raise
        except Exception as error:
            said = f"{side.text}: unexpected {type(error).__name__}: {one_line(error)}"
            connection.send(("error", EngineError(said)))
            raise
    except (KeyboardInterrupt, BrokenPipeError, EOFError):
        os._exit(1)  # the command says what happened


def _answer(side: Side, connection: Connection) -> None:
    from vlmbatch.compare.asking import ask
    from vlmbatch.engine import plan_engine

    plan = plan_engine(side.job)
    connection.send(("ready", None))
    if connection.recv() != GO:
        return

    def tell(answer: Answer) -> None:
        connection.send(("answer", answer))

    connection.send(("end", ask(side.job, plan, tell)))


def _named(side: Side, error: VlmbatchError) -> VlmbatchError:
    """Return an error that says whose it is."""
    return type(error)(f"{side.text}: {one_line(error)}")
