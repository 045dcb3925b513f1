"""Answers in pieces, as server-sent events."""

from __future__ import annotations

import asyncio
import collections
import contextlib
import functools
from collections.abc import Callable
from typing import Any

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from vlmbatch.core import Completion
from vlmbatch.serve.answers import ReplyMaker, check_answered, logprobs_of, to_json
from vlmbatch.serve.errors import ApiError, api_error
from vlmbatch.serve.ticket import Ticket

KEEP_ALIVE = b": keep-alive\n\n"
"""A comment, which clients pass over."""


class LoopCalls:
    """Calls from other threads to an event loop. Calls that come together wake the loop once: a
    wake-up for every token of every stream would hold up the engine's thread.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        """Take the loop."""
        self._loop = loop
        self._calls: collections.deque[Callable[[], None]] = collections.deque()
        self._is_woken = False

    def send(self, call: Callable[[], None]) -> None:
        """Have the loop call something; on any thread."""
        self._calls.append(call)
        if not self._is_woken:
            self._is_woken = True
            with contextlib.suppress(RuntimeError):  # the loop has ended
                self._loop.call_soon_threadsafe(self._deliver)

    def _deliver(self) -> None:
        self._is_woken = False  # first: what comes from now on wakes the loop again
        while self._calls:
            self._calls.popleft()()


class AnswerStream:
    """Pieces of text, from the engine's thread to the event loop.

    Attributes:
        count: Number of answers.
        is_over: Whether the pieces that were got are all.
    """

    def __init__(self, calls: LoopCalls, count: int) -> None:
        """Expect the pieces of ``count`` answers."""
        self.count = count
        self.is_over = False
        self._calls = calls
        self._pieces: list[tuple[int, str] | None] = []
        self._is_filled = asyncio.Event()

    def put(self, number: int, text: str) -> None:
        """Add a piece of an answer; on any thread."""
        self._calls.send(functools.partial(self._add, (number, text)))

    def end(self) -> None:
        """State that no more pieces come; on any thread."""
        self._calls.send(functools.partial(self._add, None))

    async def get(self, seconds: float) -> list[tuple[int, str]]:
        """Wait for pieces, and return all that are there.

        Raises:
            TimeoutError: There are none within this time.
        """
        if not self._pieces:
            async with asyncio.timeout(seconds):
                await self._is_filled.wait()
        found, self._pieces = self._pieces, []
        self._is_filled.clear()
        self.is_over = None in found
        return [piece for piece in found if piece is not None]

    def _add(self, piece: tuple[int, str] | None) -> None:
        self._pieces.append(piece)
        self._is_filled.set()


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
        on_failed: Callable[[ApiError], None],
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
            on_failed: Called with the error that ends the answer.
        """
        super().__init__(headers={"cache-control": "no-store", "x-accel-buffering": "no"})
        del self.headers["content-length"]
        self.headers["content-type"] = "text/event-stream; charset=utf-8"
        self._pieces, self._ticket, self._gone, self._maker = stream, ticket, gone, maker
        self._wants_usage, self._silence = wants_usage, keep_alive_seconds
        self._timeout = timeout_seconds
        self._on_done, self._on_gone, self._on_failed = on_done, on_gone, on_failed
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
        """Send the events. Those that are there at the same time go in one write."""
        loop = asyncio.get_running_loop()
        end = loop.time() + self._timeout
        numbers = range(self._pieces.count)
        data = b"".join(self._chunk(n, {"role": "assistant", "content": ""}) for n in numbers)
        is_last = False
        while True:
            await send({"type": "http.response.body", "body": data, "more_body": not is_last})
            if is_last:
                return
            data, is_last = await self._next(end - loop.time())

    async def _next(self, seconds: float) -> tuple[bytes, bool]:
        """Wait for the next events.

        Args:
            seconds: Time that is left for the answer.

        Returns:
            The events, and whether they are the last; after a silence a comment.
        """
        try:
            if seconds <= 0:
                self._ticket.cancel()
                raise ApiError(504, "not answered in time (--timeout)", code="timeout")
            try:
                pieces = await self._pieces.get(min(self._silence, seconds))
            except TimeoutError:
                return KEEP_ALIVE, False
            events = [self._chunk(number, {"content": text}) for number, text in pieces]
            if self._pieces.is_over:
                events += self._ending()
            return b"".join(events), self._pieces.is_over
        except Exception as error:
            found = api_error(error)
            self._on_failed(found)
            return _event(found.body()), True

    def _ending(self) -> list[bytes]:
        """Return the events after the last text.

        Raises:
            Exception: The request failed.
        """
        completions = self._ticket.done.result()
        check_answered(completions)
        events = []
        for number, completion in enumerate(completions):
            if (logprobs := logprobs_of(completion)) is not None:
                events.append(self._chunk(number, {}, logprobs=logprobs))
            events.append(self._chunk(number, {}, finish_reason=completion.finish_reason))
        if self._wants_usage:
            events.append(_event(self._maker.usage(completions)))
        self._on_done(completions)
        return [*events, b"data: [DONE]\n\n"]

    def _chunk(self, number: int, delta: dict[str, Any], **rest: Any) -> bytes:
        chunk = self._maker.piece(number, delta, **rest)
        return _event({**chunk, "usage": None} if self._wants_usage else chunk)


def _event(value: dict[str, Any]) -> bytes:
    return b"data: " + to_json(value) + b"\n\n"
