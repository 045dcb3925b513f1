"""Answer requests of many threads with one engine.

    caller -> fetching threads -> preparing threads -> queue -> engine thread -> tickets

``Dispatcher.submit`` takes a request from any thread and returns a ``Ticket`` at once. Worker
threads load the pixels and call ``Engine.prepare``. One thread opens the engine, is inside
``Engine.run`` as long as the dispatcher lives, and resolves the tickets.

    dispatcher = Dispatcher(engine)
    ticket = dispatcher.submit(conversation, [Question("What is this?")])
    (completion,) = ticket.done.result()
    dispatcher.close()
"""

from __future__ import annotations

import concurrent.futures
import functools
import logging
import threading
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

from vlmbatch.core import Conversation, Question, Request
from vlmbatch.engine import Engine, RequestQueue
from vlmbatch.errors import EngineError, ItemError, PrepareError, VlmbatchError, one_line
from vlmbatch.processor import processor_share
from vlmbatch.run.threads import DaemonThreads, lower_priority
from vlmbatch.serve.ticket import Ticket, resolve

logger = logging.getLogger(__name__)

MAX_PREPARING = 8
"""Most threads that decode and prepare, unless more are asked for."""

MAX_FETCHING = 32
"""Threads that may wait for the network at a time."""

REQUESTS_IN_HAND = 4
"""Waiting requests from which on the engine is the bottleneck."""

QUEUE_REQUESTS = 1 << 20
"""Bound of the queue by number; its bytes and ``max_waiting`` are the bounds that matter."""

END_SECONDS = 30.0
"""Time that the engine has to end after it was told to stop: one step."""

Load: TypeAlias = Callable[[], Conversation]
OpenEngine: TypeAlias = Callable[[], Engine]


class QueueFullError(VlmbatchError):
    """So many requests wait already that no more are taken."""


class ClosedError(VlmbatchError):
    """The dispatcher takes no more requests, because it is being closed."""


class Dispatcher:
    """Feeds an engine from any number of threads. See the module.

    Attributes:
        engine: The engine.
        failure: The error that ended the engine's thread; None while it is well.
        died: Set when the engine has ended by an error.
    """

    def __init__(
        self,
        engine: Engine | OpenEngine,
        *,
        workers: int | None = None,
        max_waiting: int | None = None,
    ) -> None:
        """Open the engine, and start the threads.

        Args:
            engine: A function that opens the engine, on the thread that will run it; or an open
                engine. Nobody else runs it. It is closed by its owner.
            workers: Threads that decode and prepare; by the number of cores if None.
            max_waiting: Most requests that may wait for the engine; None for no limit.

        Raises:
            VlmbatchError: The engine cannot be opened.
        """
        # The current CUDA device belongs to a thread, and so does an OpenMP team: with the idle
        # team of another thread that opened the model, OpenMP counts more threads than cores and
        # hardly spins, which took a tenth of the throughput.
        opened: concurrent.futures.Future[Engine] = concurrent.futures.Future()
        open_engine = engine if callable(engine) else lambda: engine
        run = functools.partial(self._open_and_run, open_engine, opened)
        self._thread = threading.Thread(target=run, name="engine", daemon=True)
        self._queue = _Feed(QUEUE_REQUESTS, self._take)
        self.failure: BaseException | None = None
        self.died = threading.Event()
        self._max_waiting = max_waiting
        self._guard = threading.Lock()
        self._idle = threading.Condition(self._guard)
        self._waiting: set[Ticket] = set()
        self._running: set[Ticket] = set()
        self._is_closed = False
        self._lowered = threading.local()
        self._thread.start()
        self.engine = opened.result()
        count = workers or min(MAX_PREPARING, max(2, processor_share().threads))
        self._preparers = concurrent.futures.ThreadPoolExecutor(count, "prepare")
        self._fetchers = DaemonThreads(MAX_FETCHING, "fetch")

    @property
    def num_waiting(self) -> int:
        """Requests that the engine has not taken yet."""
        return len(self._waiting)

    @property
    def num_running(self) -> int:
        """Requests that the engine has taken and not answered yet."""
        return len(self._running)

    @property
    def num_sequences(self) -> int:
        """Questions of the running requests."""
        with self._guard:
            return sum(len(ticket.questions) for ticket in self._running)

    def submit(
        self,
        conversation: Conversation | Load,
        questions: Sequence[Question],
        *,
        fetch: Callable[[], None] | None = None,
    ) -> Ticket:
        """Take a request; returns at once.

        Args:
            conversation: The conversation, or a function that makes it: it decodes the pixels, on a
                worker thread.
            questions: The questions. Their ``on_text`` is called on the engine's thread, and must
                be quick.
            fetch: Called before ``conversation`` on another thread, which may wait for the network
                without holding up the work of others.

        Raises:
            QueueFullError: ``max_waiting`` requests are waiting.
            ClosedError: The dispatcher is closed.
            EngineError: The engine has ended by an error.
        """
        ticket = Ticket(questions, self._forget)
        with self._guard:
            if self.failure is not None:
                raise _end_of(self.failure)
            if self._is_closed:
                raise ClosedError("no more requests are taken")
            if self._max_waiting is not None and len(self._waiting) >= self._max_waiting:
                raise QueueFullError(f"{len(self._waiting)} requests are waiting")
            self._waiting.add(ticket)
        load = conversation if callable(conversation) else lambda: conversation
        try:
            if fetch is None:
                self._preparers.submit(self._prepare, ticket, load)
            else:
                self._fetchers.submit(functools.partial(self._fetch, ticket, fetch, load))
        except RuntimeError as error:  # the pools were shut down meanwhile
            ticket.fail(EngineError("the engine ended"))
            self._forget(ticket)
            raise ClosedError("no more requests are taken") from error
        return ticket

    def drain(self, seconds: float | None = None) -> bool:
        """Take no more requests, and wait for those that were taken.

        Returns:
            Whether all of them were answered within this time; None waits as long as it takes.
        """
        with self._idle:
            self._is_closed = True
            return self._idle.wait_for(
                lambda: not (self._waiting or self._running) or self.failure is not None, seconds
            )

    def close(self, drain_seconds: float | None = 0.0) -> None:
        """Wait for open requests, cancel those that are left, and end the threads. May be called
        again. The engine stays open.

        Args:
            drain_seconds: Time that open requests have to be answered; None for no limit.
        """
        self.drain(drain_seconds)
        with self._guard:
            left = [*self._waiting, *self._running]
        for ticket in left:
            ticket.cancel()
        self._queue.stop()
        self._preparers.shutdown(wait=False, cancel_futures=True)
        self._fetchers.close()
        if threading.current_thread() is not self._thread:
            self._thread.join(END_SECONDS)

    def _fetch(self, ticket: Ticket, fetch: Callable[[], None], load: Load) -> None:
        if not ticket.is_cancelled and self._guarded(ticket, fetch) is not _FAILED:
            try:
                self._preparers.submit(self._prepare, ticket, load)
            except RuntimeError:
                self._fail(ticket, EngineError("the engine ended"))

    def _prepare(self, ticket: Ticket, load: Load) -> None:
        """Make a request and queue it, on a worker thread."""
        if ticket.is_cancelled:
            return
        request = self._guarded(ticket, lambda: self.engine.prepare(load(), ticket.questions))
        if request is _FAILED or ticket.is_cancelled:
            return
        request.tag, ticket.request = ticket, request
        resolve(ticket.ready, request)
        if len(self._queue) >= REQUESTS_IN_HAND:
            self._lower_priority()
        if not self._queue.put(request):
            self._fail(ticket, EngineError("the engine ended"))
        elif ticket.is_cancelled:  # before it was in the queue, where ``_forget`` looks
            self._forget(ticket)

    def _lower_priority(self) -> None:
        """Let an engine on the same processor go before this worker thread, as in a run."""
        if self.engine.device == "cpu" and not hasattr(self._lowered, "is_done"):
            self._lowered.is_done = True
            lower_priority()

    def _guarded(self, ticket: Ticket, call: Callable[[], Any]) -> Any:
        """Call. Whatever goes wrong is the end of this ticket alone."""
        try:
            return call()
        except ItemError as error:
            self._fail(ticket, error)
        except Exception as error:
            logger.debug("unexpected error", exc_info=True)
            translated = PrepareError(f"{type(error).__name__}: {one_line(error)}")
            translated.__cause__ = error
            self._fail(ticket, translated)
        return _FAILED

    def _open_and_run(
        self, open_engine: OpenEngine, opened: concurrent.futures.Future[Engine]
    ) -> None:
        """Open the engine and drive it until the queue is stopped; the engine's thread."""
        try:
            engine = open_engine()
        except BaseException as error:
            opened.set_exception(error)
            return
        opened.set_result(engine)
        self._run(engine)

    def _run(self, engine: Engine) -> None:
        failure: BaseException | None = None
        try:
            for completion in engine.run(self._queue):
                ticket: Ticket = completion.request.tag
                if ticket.complete(completion):
                    completion.request.tag = None  # a circle would keep the tiles in memory
                    self._remove(ticket)
            if not self._queue.ended:
                failure = EngineError("the engine ended before its requests did")
        except BaseException as error:
            failure = error
        if failure is None:
            return
        if not isinstance(failure, EngineError):
            logger.error("unexpected error of the engine, please report it", exc_info=failure)
        with self._guard:
            self.failure = failure
            left = [*self._waiting, *self._running]
        self._queue.stop()
        self.died.set()
        for ticket in left:
            self._fail(ticket, _end_of(failure))

    def _take(self, request: Request) -> None:
        """Note that the engine has taken a request."""
        ticket: Ticket = request.tag
        with self._guard:
            if ticket in self._waiting:
                self._waiting.remove(ticket)
                self._running.add(ticket)

    def _forget(self, ticket: Ticket) -> None:
        """Free the place of a cancelled ticket, wherever it is."""
        if (request := ticket.request) is not None:
            request.cancel()
            if self._queue.remove(request):
                request.tag = ticket.request = None
        self._remove(ticket)

    def _fail(self, ticket: Ticket, error: BaseException) -> None:
        ticket.fail(error)
        self._remove(ticket)

    def _remove(self, ticket: Ticket) -> None:
        with self._idle:
            self._waiting.discard(ticket)
            self._running.discard(ticket)
            self._idle.notify_all()


_FAILED = object()


class _Feed(RequestQueue):
    """The queue before the engine; tells when a request leaves it."""

    def __init__(self, capacity: int, on_taken: Callable[[Request], None]) -> None:
        super().__init__(capacity)
        self._on_taken = on_taken

    def get(self, *, wait: bool = True, timeout: float | None = None) -> Request | None:
        """See ``Channel``."""
        request = super().get(wait=wait, timeout=timeout)
        if request is not None:
            self._on_taken(request)
        return request


def _end_of(failure: BaseException) -> EngineError:
    """Return a new error for each ticket, as each is raised on a thread of its own."""
    error = EngineError(f"the engine has ended: {one_line(failure)}")
    error.__cause__ = failure
    return error
