"""The threads of a run: started, watched and ended in order. What they do is the pipeline's
business.

Any exception in one of them stops the stages, and is the run's failure; what is finished by then is
still written.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Sequence
from typing import Protocol

logger = logging.getLogger(__name__)

READER, WRITER, STOPPER = "reader", "writer", "stopper"

READER_GRACE_SECONDS = 2.0
"""Seconds that a run that is ending waits for its reader, which may wait for a line on stdin that
never comes.
"""


class Queue(Protocol):
    """A queue between two stages."""

    def close(self) -> None:
        """Says that nothing more will come."""

    def stop(self) -> None:
        """Drops what is left and wakes everybody."""


class StageThreads:
    """The threads of a run, and how it came to its end.

    Args:
        todo: What is read.
        requests: What is prepared.
        results: What is to be written.

    Attributes:
        failure: The first exception; None while there was none.
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
        """Whether the run has neither failed nor been interrupted."""
        return self.failure is None and not self.interrupted

    def start(self, name: str, work: Callable[[], None]) -> threading.Thread:
        """Starts a thread whose exceptions end the run."""

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
        """Starts what stops the stages for ``stop``, which may run in a signal handler and must not
        wait for a lock.
        """

        def stop_when_wanted() -> None:
            self._stop_wanted.wait()
            if not self.ending:
                self._stop_stages()

        self.start(STOPPER, stop_when_wanted)

    def start_preparers(self, count: int, work: Callable[[], None]) -> None:
        """Starts threads that make requests, which are closed when the last of them has ended."""
        preparers = [self.start(f"prepare-{number}", work) for number in range(count)]

        def close_requests() -> None:
            _join(preparers)
            self._requests.close()

        self.start("closer", close_requests)

    def stop(self) -> None:
        """Ends the run soon. May be called from a signal handler."""
        self.interrupted = True
        self._stop_wanted.set()

    def fail(self, error: BaseException) -> None:
        """Notes the first failure and stops every stage; the writer still takes what is finished,
        unless it is what failed.
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
        """Waits for the stages one after the other, the writer last; says whether the run came to
        its end by itself.
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


def _join(threads: Sequence[threading.Thread]) -> None:
    for thread in threads:
        thread.join()
