"""Start, watch and join the threads of a run. Their work is the pipeline's business.

Any exception in one of them stops the stages and fails the run; everything finished by then is
still written.
"""

from __future__ import annotations

import contextlib
import logging
import os
import queue
import sys
import threading
from collections.abc import Callable, Sequence
from typing import Protocol

logger = logging.getLogger(__name__)

READER, WRITER, STOPPER = "reader", "writer", "stopper"

READER_GRACE_SECONDS = 2.0
"""Seconds to wait for the reader at the end of a run; it may be blocked on stdin."""

READER_NICENESS = 5
"""Niceness added to worker threads beside an engine on the same processor: they weigh a third."""


class Queue(Protocol):
    """A queue between two stages."""

    def close(self) -> None:
        """Accept no more entries."""

    def stop(self) -> None:
        """Drop the remaining entries and wake all waiting threads."""


class StageThreads:
    """The threads of a run, and its end state.

    Args:
        todo: Tasks to load.
        requests: Prepared requests.
        results: Results to write.

    Attributes:
        failure: The first exception, or None.
        interrupted: Whether ``stop`` was called.
        ending: Whether everything but the writer has ended.
    """

    def __init__(self, todo: Queue, requests: Queue, results: Queue) -> None:
        self._todo, self._requests, self._results = todo, requests, results
        self._threads: list[threading.Thread] = []
        self._stop_wanted = threading.Event()
        self.failure: BaseException | None = None
        self.interrupted = False
        self.ending = False

    @property
    def is_well(self) -> bool:
        """True if the run has neither failed nor been interrupted."""
        return self.failure is None and not self.interrupted

    def start(self, name: str, work: Callable[[], None]) -> threading.Thread:
        """Start a thread whose exceptions end the run."""

        def guarded() -> None:
            try:
                work()
            except BaseException as error:
                self.fail(error)

        thread = threading.Thread(target=guarded, name=name, daemon=True)
        thread.start()
        self._threads.append(thread)
        return thread

    def start_stopper(self) -> None:
        """Start the thread that stops the stages for ``stop``, which may run in a signal handler
        and must not wait for a lock.
        """

        def stop_when_wanted() -> None:
            self._stop_wanted.wait()
            if not self.ending:
                self._stop_stages()

        self.start(STOPPER, stop_when_wanted)

    def start_preparers(self, count: int, work: Callable[[], None]) -> None:
        """Start the threads that make requests; the last one to end closes the queue."""
        preparers = [self.start(f"prepare-{number}", work) for number in range(count)]

        def close_requests() -> None:
            _join(preparers)
            self._requests.close()

        self.start("closer", close_requests)

    def stop(self) -> None:
        """End the run soon. May be called from a signal handler."""
        self.interrupted = True
        self._stop_wanted.set()

    def fail(self, error: BaseException) -> None:
        """Record the first failure and stop every stage. The writer still writes finished rows,
        unless it failed itself.
        """
        is_writer = threading.current_thread().name == WRITER
        if self.ending and not is_writer:  # the writer has the last rows still to write
            logger.debug("after the end: %s", error)
            return
        if self.failure is None:
            self.failure = error
        if is_writer:
            self._results.stop()
        self._stop_stages()

    def end(self) -> bool:
        """Join the stages one after the other, the writer last. Return True if the run came to its
        end by itself.
        """
        is_well = self.is_well
        self._todo.close() if is_well else self._todo.stop()
        for thread in self._threads:
            if thread.name == READER and not is_well:
                thread.join(READER_GRACE_SECONDS)
        _join(
            [
                thread
                for thread in self._threads
                if thread.name not in (WRITER, STOPPER) and (is_well or thread.name != READER)
            ]
        )
        self.ending = True
        self._stop_wanted.set()
        self._results.close()
        _join([thread for thread in self._threads if thread.name in (WRITER, STOPPER)])
        return is_well

    def _stop_stages(self) -> None:
        self._todo.stop()
        self._requests.stop()


class DaemonThreads:
    """Runs calls on threads that the end of the process does not wait for: a web server that never
    answers would hold it up for a minute.
    """

    def __init__(self, count: int, name: str) -> None:
        """Start at most ``count`` threads of this name, as they are needed."""
        self._todo: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._guard = threading.Lock()
        self._count, self._name, self._num_started = count, name, 0
        self._is_closed = False

    def submit(self, call: Callable[[], None]) -> None:
        """Run a call soon. It must not raise.

        Raises:
            RuntimeError: After ``close``.
        """
        with self._guard:
            if self._is_closed:
                raise RuntimeError("no more calls are taken")
            self._todo.put(call)
            if self._num_started < self._count:
                self._num_started += 1
                name = f"{self._name}_{self._num_started}"
                threading.Thread(target=self._work, name=name, daemon=True).start()

    def close(self) -> None:
        """Drop the calls that wait, and end the threads after those that they are in."""
        with self._guard:
            self._is_closed = True
            for _ in range(self._num_started):
                self._todo.put(None)

    def _work(self) -> None:
        while (call := self._todo.get()) is not None:
            if not self._is_closed:
                call()


def lower_priority() -> None:
    """Let other threads go before this one, and before those that it starts. Linux only: elsewhere
    a priority is a whole process's.
    """
    if sys.platform == "linux":
        thread = threading.get_native_id()
        with contextlib.suppress(OSError):
            niceness = os.getpriority(os.PRIO_PROCESS, thread)
            os.setpriority(os.PRIO_PROCESS, thread, niceness + READER_NICENESS)


def _join(threads: Sequence[threading.Thread]) -> None:
    for thread in threads:
        thread.join()
