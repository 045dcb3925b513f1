"""The engine: one event loop on a thread of its own, and a task for each request at the endpoint.

queue -> tasks, at most ``in_flight`` -> ``ConcurrencyLimit``, lower while it is busy -> results
"""

from __future__ import annotations

import asyncio
import queue
import threading
import time
from collections.abc import Callable, Coroutine, Iterator, Sequence
from typing import Any

from vlmbatch.core import Completion, Conversation, Question, Request
from vlmbatch.engine.base import EngineStats
from vlmbatch.engine.busy import BusyShares
from vlmbatch.engine.openai.answer import Answer
from vlmbatch.engine.openai.client import EndpointClient
from vlmbatch.engine.openai.concurrency import ConcurrencyLimit
from vlmbatch.engine.openai.dialect import Dialect
from vlmbatch.engine.openai.messages import Messages
from vlmbatch.engine.openai.retries import RETRY_LIMITS, RetryingClient, RetryLimits
from vlmbatch.engine.options import check_questions
from vlmbatch.engine.queue import RequestQueue
from vlmbatch.errors import EngineError, ItemError, PrepareError

LOOK_SECONDS = 0.1
"""Time between two looks at whether an answer is still wanted."""
MAX_TEMPERATURE = 2.0
"""Highest temperature of OpenAI's API."""

Results = queue.SimpleQueue["Completion | BaseException | None"]


class EndpointEngine:
    """Answer requests with a server of OpenAI's chat API. See ``Engine`` for the contract."""

    name = "openai"
    revision = ""
    dtype = ""

    def __init__(
        self,
        connect: Callable[[], EndpointClient],
        messages: Messages,
        *,
        model: str,
        endpoint: str,
        in_flight: int,
        limits: RetryLimits = RETRY_LIMITS,
    ) -> None:
        """Set up; connect to nothing.

        Args:
            connect: Makes a client of the endpoint, inside an event loop.
            messages: Prepares the requests.
            model: Name of the model.
            endpoint: The endpoint's URL, as records state it in ``device``.
            in_flight: Most requests at a time.
            limits: How long the endpoint is waited for.
        """
        self.model, self.device = model, endpoint
        self.stats = EngineStats()
        self._connect, self._messages = connect, messages
        self._in_flight, self._limits = in_flight, limits
        self._dialect = Dialect()
        self._shares = BusyShares(self.stats)
        self._is_closed = False

    def prepare(self, conversation: Conversation, questions: Sequence[Question]) -> Request:
        """See ``Engine``."""
        check_questions(questions)
        for question in questions:
            if question.temperature > MAX_TEMPERATURE:
                raise PrepareError(
                    f"temperature of an endpoint is at most {MAX_TEMPERATURE:g}, not "
                    f"{question.temperature:g}"
                )
        return self._messages.prepare(conversation, questions)

    def run(self, source: RequestQueue) -> Iterator[Completion]:
        """See ``Engine``. The questions of a request are asked one after the other."""
        if self._is_closed:
            raise EngineError("the engine is closed")
        results: Results = queue.SimpleQueue()
        ended = threading.Event()
        worker = threading.Thread(
            target=self._drive, args=(source, results, ended), name="endpoint", daemon=True
        )
        worker.start()
        try:
            while (found := results.get()) is not None:
                if isinstance(found, BaseException):
                    raise found
                if not source.stopped:
                    yield found
        finally:
            ended.set()
            worker.join()

    def close(self) -> None:
        """See ``Engine``."""
        self._is_closed = True

    def _drive(self, source: RequestQueue, results: Results, ended: threading.Event) -> None:
        """Answer until the queue has ended; the thread of the event loop."""

        def goes_on() -> bool:
            return not (source.stopped or ended.is_set())

        try:
            asyncio.run(self._answer_all(source, results, goes_on))
        except BaseException as error:  # raised in the thread of ``run``
            results.put(error)
        finally:
            results.put(None)

    async def _answer_all(
        self, source: RequestQueue, results: Results, goes_on: Callable[[], bool]
    ) -> None:
        """Take requests while fewer than ``in_flight`` are open, so that the queue fills up behind
        a slow endpoint.
        """
        loop = asyncio.get_running_loop()
        concurrency = ConcurrencyLimit(self._in_flight)
        client = self._connect()
        retrying = RetryingClient(client, concurrency, self.model, self._dialect, self._limits)
        open_tasks: set[asyncio.Task[None]] = set()
        try:
            while goes_on() and not (source.ended and not open_tasks):
                request = None
                if len(open_tasks) < self._in_flight and not source.ended:
                    request = await loop.run_in_executor(None, _next, source)
                elif open_tasks:
                    await asyncio.wait(
                        open_tasks, timeout=LOOK_SECONDS, return_when=asyncio.FIRST_COMPLETED
                    )
                if request is not None:
                    coroutine = self._answer_request(request, retrying, results, goes_on)
                    open_tasks.add(loop.create_task(coroutine))
                for task in [task for task in open_tasks if task.done()]:
                    open_tasks.remove(task)
                    task.result()
        finally:
            for task in open_tasks:
                task.cancel()
            await asyncio.gather(*open_tasks, return_exceptions=True)
            await client.close()

    async def _answer_request(
        self,
        request: Request,
        retrying: RetryingClient,
        results: Results,
        goes_on: Callable[[], bool],
    ) -> None:
        """Ask the questions of a request."""
        wait = max(0.0, time.perf_counter() - request.queued_at)
        for number in range(len(request.questions)):
            answer = Answer(request, number)
            key = object()
            self._shares.begin(key)
            try:
                done = await self._answer(answer, retrying, goes_on)
            finally:
                share = self._shares.end(key)
            done.timing = answer.timing(wait, share)
            self._book(done, answer)
            if not goes_on():
                return
            results.put(done)

    async def _answer(
        self, answer: Answer, retrying: RetryingClient, goes_on: Callable[[], bool]
    ) -> Completion:
        """Ask one question, unless it is cancelled, or the run stops.

        Raises:
            EngineError: The endpoint is gone.
        """

        def is_wanted() -> bool:
            return goes_on() and not answer.request.is_cancelled(answer.number)

        try:
            if await _while_wanted(retrying.ask(answer), is_wanted):
                return answer.completion()
        except ItemError as error:
            return Completion(
                answer.request,
                answer.number,
                error=error,
                prompt_tokens=None,
                cached_tokens=None,
                image_tokens=None,
                new_tokens=None,
                batch_size=None,
            )
        return answer.completion("cancelled")

    def _book(self, done: Completion, answer: Answer) -> None:
        stats, timing = self.stats, done.timing
        stats.prefill_tokens += done.prompt_tokens or 0
        stats.decode_tokens += done.new_tokens or 0
        stats.prefill_calls += done.error is None
        stats.vision_seconds += timing.vision_seconds or 0.0
        stats.prefill_seconds += timing.prefill_seconds or 0.0
        stats.decode_seconds += timing.decode_seconds or 0.0


def _next(source: RequestQueue) -> Request | None:
    return source.get(timeout=LOOK_SECONDS)


async def _while_wanted(
    coroutine: Coroutine[Any, Any, None], is_wanted: Callable[[], bool]
) -> bool:
    """Run it, and cancel it as soon as it is not wanted: that closes its connection. Return whether
    it ended by itself.
    """
    if not is_wanted():
        coroutine.close()
        return False
    task = asyncio.ensure_future(coroutine)
    try:
        while not task.done():
            await asyncio.wait({task}, timeout=LOOK_SECONDS)
            if not task.done() and not is_wanted():
                return False
        task.result()
        return True
    finally:
        # It may have failed in the moment in which this is cancelled: its error is taken, too.
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
