"""Chat requests to tickets: what the HTTP server and ``batch`` have in common."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from vlmbatch.engine import Engine
from vlmbatch.serve.dispatcher import Dispatcher, OpenEngine
from vlmbatch.serve.protocol import ChatRequest, read_chat_request
from vlmbatch.serve.settings import AnsweringOptions
from vlmbatch.serve.ticket import Ticket


class ChatService:
    """An open engine that answers chat requests.

    Attributes:
        engine: The engine.
        dispatcher: Feeds it.
    """

    def __init__(
        self,
        engine: Engine | OpenEngine,
        options: AnsweringOptions,
        max_waiting: int | None = None,
    ) -> None:
        """Start to answer.

        Args:
            engine: The engine, or a function that opens it; ``close`` closes it.
            options: Limits, and the defaults of generation.
            max_waiting: Most requests that may wait.

        Raises:
            VlmbatchError: The engine cannot be opened.
        """
        self._options = options
        self.dispatcher = Dispatcher(engine, workers=options.read_workers, max_waiting=max_waiting)
        self.engine = self.dispatcher.engine

    def read(self, values: Any) -> ChatRequest:
        """Understand a chat request.

        Raises:
            ApiError: It has another form, asks for what there is not, or is over a limit.
        """
        return read_chat_request(values, self._options, [self.engine.model])

    def submit(
        self, chat: ChatRequest, on_text: Callable[[int, str], None] | None = None
    ) -> Ticket:
        """Begin to answer; see ``Dispatcher.submit`` for what it raises.

        Args:
            chat: The request.
            on_text: Gets the number of an answer and the next piece of its text, on the engine's
                thread.
        """
        questions = chat.questions if on_text is None else chat.streaming(on_text)
        return self.dispatcher.submit(chat.conversation, questions, fetch=chat.fetch)

    def close(self, drain_seconds: float | None = 0.0) -> None:
        """Wait for open requests at most so long, then end, and close the engine."""
        self.dispatcher.close(drain_seconds)
        self.engine.close()
