"""Answers in pieces, as server-sent events."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from typing import Any

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from vlmbatch.core import Completion
from vlmbatch.serve.answers import ReplyMaker, check_answered, logprobs_of, to_json
from vlmbatch.serve.dispatcher import Ticket
from vlmbatch.serve.errors import ApiError, api_error

KEEP_ALIVE = b": keep-alive\n\n"
"""A comment, which clients pass over."""


class AnswerStream:
    """Pieces of text, from the engine's thread to the event loop."""

    def __init__(self, loop: asyncio.AbstractEventLoop, count: int) -> None:
        """Expect the pieces of ``count`` answers."""
        self.count = count
        self._loop = loop
        self._pieces: asyncio.Queue[tuple[int, str] | None] = asyncio.Queue()

    def put(self, number: int, text: str) -> None:
        """Add a piece of an answer; on any thread."""
        self._loop.call_soon_threadsafe(self._pieces.put_nowait, (number, text))

    def end(self) -> None:
        """State that no more pieces come; on any thread."""
        with contextlib.suppress(RuntimeError):  # the loop has ended
            self._loop.call_soon_threadsafe(self._pieces.put_nowait, None)

    async def get(self, seconds: float) -> tuple[int, str] | None:
        """Return the next piece, or None after the last.

        Raises:
            TimeoutError: There is none within this time.
        """
        return await asyncio.wait_for(self._pieces.get(), seconds)


class StreamReply(Response):
    """A response of events. The ticket is cancelled when the client goes away."""

    def __init__(
        self,
        stream: AnswerStream,
        ticket: Ticket,
        gone: asyncio.Task[None],
        maker: ReplyMaker,
        *,
        wants_usage: bool,
        keep_alive_seconds: float,
        timeout_seconds: float,
        on_done: Callable[[list[Completion]], None],
        on_gone: Callable[[], None],
    ) -> None:
        """Take what the answer comes from.

        Args:
            stream: The pieces of text.
            ticket: The request.
            gone: Done when the client has gone away.
            maker: Makes the chunks.
            wants_usage: Whether the last chunk is the usage.
            keep_alive_seconds: Silence after which a comment is sent.
            timeout_seconds: Time after which the request is given up.
            on_done: Called with the completions at the end.
            on_gone: Called if the client went away before the end.
        """
        super().__init__(headers={"cache-control": "no-store", "x-accel-buffering": "no"})
        del self.headers["content-length"]
        self.headers["content-type"] = "text/event-stream; charset=utf-8"
        self._pieces, self._ticket, self._gone, self._maker = stream, ticket, gone, maker
        self._wants_usage, self._silence = wants_usage, keep_alive_seconds
        self._timeout = timeout_seconds
        self._on_done, self._on_gone = on_done, on_gone
        ticket.done.add_done_callback(lambda _: stream.end())

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the events until the answer or the connection ends."""
        await send(
            {
                "type": "http.response.start",
                "status": self.status_code,
                "headers": self.raw_headers,
            }
        )
        sending = asyncio.create_task(self._send(send))
        try:
            await asyncio.wait({sending, self._gone}, return_when=asyncio.FIRST_COMPLETED)
            if not sending.done():
                self._on_gone()
                return
            with contextlib.suppress(OSError):  # it went away while the last event was sent
                sending.result()
        finally:
            self._ticket.cancel()
            for task in (sending, self._gone):
                task.cancel()

    async def _send(self, send: Send) -> None:
        async for event in self._events():
            await send({"type": "http.response.body", "body": event, "more_body": True})
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _events(self) -> AsyncIterator[bytes]:
        try:
            for number in range(self._pieces.count):
                yield self._chunk(number, {"role": "assistant", "content": ""})
            async for event in self._contents():
                yield event
            completions = self._ticket.done.result()
            check_answered(completions)
        except Exception as error:
            yield _event(api_error(error).body())
            return
        for number, completion in enumerate(completions):
            if (logprobs := logprobs_of(completion)) is not None:
                yield self._chunk(number, {}, logprobs=logprobs)
            yield self._chunk(number, {}, finish_reason=completion.finish_reason)
        if self._wants_usage:
            yield _event(self._maker.usage(completions))
        self._on_done(completions)
        yield b"data: [DONE]\n\n"

    async def _contents(self) -> AsyncIterator[bytes]:
        """Yield the pieces of text, and comments in between."""
        loop = asyncio.get_running_loop()
        end = loop.time() + self._timeout
        while True:
            left = end - loop.time()
            if left <= 0:
                self._ticket.cancel()
                raise ApiError(504, "not answered in time (--timeout)", code="timeout")
            try:
                piece = await self._pieces.get(min(self._silence, left))
            except TimeoutError:
                yield KEEP_ALIVE
                continue
            if piece is None:
                return
            number, text = piece
            yield self._chunk(number, {"content": text})

    def _chunk(self, number: int, delta: dict[str, Any], **rest: Any) -> bytes:
        chunk = self._maker.piece(number, delta, **rest)
        return _event({**chunk, "usage": None} if self._wants_usage else chunk)


def _event(value: dict[str, Any]) -> bytes:
    return b"data: " + to_json(value) + b"\n\n"
