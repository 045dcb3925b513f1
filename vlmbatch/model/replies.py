"""Answers of a chat: whole, or piece by piece."""

from __future__ import annotations

import concurrent.futures
import queue
from types import TracebackType
from typing import Self

from vlmbatch.core import Completion
from vlmbatch.errors import EngineError, GenerateError
from vlmbatch.serve.ticket import Ticket


class Reply(str):
    """The text of an answer, and how it came about. It is a ``str``: print it, compare it, or put
    it into the next chat's messages as ``content``.

    Attributes:
        finish_reason: ``stop`` (the model or a stop string ended it), ``length`` (max_new_tokens,
            or the context is full) or ``cancelled``.
        prompt_tokens, new_tokens: Tokens of the prompt and of the answer; None where the engine
            cannot tell.
        cached_tokens: Tokens of the prompt that were kept from an earlier answer.
        mean_logprob: Mean log-probability of the answer's tokens.
        token_ids: The tokens of the answer; empty where the engine cannot tell.
    """

    finish_reason: str | None
    prompt_tokens: int | None
    new_tokens: int | None
    cached_tokens: int | None
    mean_logprob: float | None
    token_ids: tuple[int, ...]

    @classmethod
    def of(cls, completion: Completion) -> Self:
        """Make a reply of a completion.

        Raises:
            VlmbatchError: The completion is an error.
        """
        if completion.error is not None:
            raise completion.error
        if completion.text is None:
            raise GenerateError("there is no answer")
        reply = cls(completion.text)
        reply.finish_reason = completion.finish_reason
        reply.prompt_tokens, reply.new_tokens = completion.prompt_tokens, completion.new_tokens
        reply.cached_tokens = completion.cached_tokens
        reply.mean_logprob = completion.mean_logprob
        reply.token_ids = tuple(completion.token_ids)
        return reply


class ReplyStream:
    """The pieces of an answer as the model writes them; joined they are the text of ``reply``.

        for piece in model.chat(messages, stream=True):
            print(piece, end="", flush=True)

    To stop early, ``close`` it, or leave its ``with`` block: the rest of the answer is not
    computed.
    """

    def __init__(self) -> None:
        self._events: queue.SimpleQueue[str | None] = queue.SimpleQueue()
        self._ticket: Ticket | None = None
        self._has_ended = self._is_closed = False

    def on_text(self, piece: str) -> None:
        """Take a piece; called by the engine."""
        self._events.put(piece)

    def follow(self, ticket: Ticket, model: object) -> None:
        """End with a ticket, and hold the model, which is closed when nobody does."""
        self._ticket, self._model = ticket, model
        ticket.done.add_done_callback(lambda _: self._events.put(None))

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> str:
        """Wait for the next piece.

        Raises:
            VlmbatchError: The answer ended in an error.
        """
        if not self._has_ended:
            piece = self._events.get()
            if piece is not None:
                return piece
            self._has_ended = True
            if self._ticket is not None and not self._is_closed:
                reply_of(self._ticket)
        raise StopIteration

    @property
    def reply(self) -> Reply:
        """The whole answer; waits for its end.

        Raises:
            VlmbatchError: The answer ended in an error, or was stopped.
        """
        assert self._ticket is not None  # ``Model.chat`` has called ``follow``
        return reply_of(self._ticket)

    def close(self) -> None:
        """Stop the answer; there is no ``reply`` then."""
        self._is_closed = True
        if self._ticket is not None:
            self._ticket.cancel()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


def reply_of(ticket: Ticket) -> Reply:
    """Wait for the answer to the one question of a ticket.

    Raises:
        VlmbatchError: There is none.
    """
    try:
        (completion,) = ticket.done.result()
    except concurrent.futures.CancelledError as error:
        raise EngineError("the answer was stopped, or the model closed") from error
    return Reply.of(completion)
