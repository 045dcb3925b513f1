"""The worker threads: load pixels and turn items into requests."""

from __future__ import annotations

import dataclasses
import functools
import logging
import threading
import time
from collections.abc import Callable
from typing import Any

from vlmbatch.core import Constraint, Conversation, Pixels, Request, picture_size
from vlmbatch.engine import Engine, RequestQueue
from vlmbatch.engine.options import make_question
from vlmbatch.engine.queue import Channel
from vlmbatch.errors import DecodeError, ItemError, PrepareError
from vlmbatch.job import Job, ResourceOptions
from vlmbatch.processor import processor_share
from vlmbatch.run.task import Loaded, Result, Task, Ticket, content_of
from vlmbatch.run.threads import lower_priority

logger = logging.getLogger(__name__)

MAX_READ_WORKERS = 8
"""Maximum number of worker threads beside an engine that computes on the same processor."""
MAX_READ_WORKERS_OF_GPU = 32
"""Maximum number of worker threads of a GPU's engine, which leaves them the processor."""

REQUESTS_IN_HAND = 4
"""Number of waiting requests from which on an engine is the bottleneck."""


def num_workers(options: ResourceOptions, *, is_clip: bool, on_cpu: bool) -> int:
    """Return the number of worker threads.

    A worker that loads a clip holds all its frames as pictures: two keep an engine busy.

    Args:
        options: The resources of the job.
        is_clip: Whether an item is a clip.
        on_cpu: Whether the engine computes on this processor.
    """
    if options.read_workers:
        return options.read_workers
    most = MAX_READ_WORKERS if on_cpu else MAX_READ_WORKERS_OF_GPU
    return 2 if is_clip else min(most, max(2, processor_share().threads))


class Preparation:
    """The work of the worker threads.

    Attributes:
        items: Items that were made ready so far.
        tiles: Their tiles.
    """

    def __init__(
        self,
        job: Job,
        constraint: Constraint | None,
        todo: Channel[Task],
        requests: RequestQueue,
        results: Channel[Result],
    ) -> None:
        """Take the queues.

        Args:
            job: The job.
            constraint: The constraint of its answers.
            todo: Gives what is to be loaded.
            requests: Takes the requests.
            results: Takes the errors of items.
        """
        self._job, self._constraint = job, constraint
        self._todo, self._requests, self._results = todo, requests, results
        self._guard = threading.Lock()
        self.items = self.tiles = 0

    def run(self, engine: Engine) -> None:
        """Load pixels and make requests until no work is left.

        On the engine's processor, a thread lowers its priority as soon as requests wait for the
        engine: from then on the engine is the bottleneck, and has what it needs to go on.
        """
        shares_processor, is_lowered = engine.device == "cpu", False
        for task in self._todo:
            if shares_processor and not is_lowered and len(self._requests) >= REQUESTS_IN_HAND:
                lower_priority()
                is_lowered = True
            loaded = Loaded()
            try:
                begun = time.perf_counter()
                try:
                    pixels: Pixels = _guarded(DecodeError, task.item.load)
                finally:
                    content = content_of(task.item)
                    loaded = Loaded(read_seconds=time.perf_counter() - begun, content=content)
                    task = task.without_pixels()
                loaded = dataclasses.replace(loaded, size=picture_size(pixels.frames[0]))
                conversation = Conversation.about(task.item.media, pixels, task.item.id)
                del pixels
                begun = time.perf_counter()
                make = functools.partial(self._make_requests, engine, task, conversation)
                del conversation
                requests: list[Request] = _guarded(PrepareError, make)
                del make
            except ItemError as error:
                for position in range(len(task.asked)):
                    self._results.put(Result(task, position, loaded, error=error))
                continue
            loaded = dataclasses.replace(
                loaded,
                tiles=_total([request.tiles for request in requests]),
                native_tiles=requests[0].native_tiles if len(requests) == 1 else None,
                prepare_seconds=time.perf_counter() - begun,
            )
            ticket = Ticket(task, loaded, len(requests))
            with self._guard:
                self.items += 1
                self.tiles += loaded.tiles or 0
            for part, request in enumerate(requests):
                request.tag = (ticket, part)
                if not self._requests.put(request):
                    return

    def _make_requests(self, engine: Any, task: Task, conversation: Conversation) -> list[Request]:
        """Make the request of an item, or one for each of its tiles."""
        questions = [
            make_question(question, self._job, constraint=self._constraint)
            for _, question in task.asked
        ]
        if self._job.per != "tile":
            return [engine.prepare(conversation, questions)]
        return [engine.prepare(tile, questions) for tile in engine.cut(conversation)]


def _guarded(kind: type[ItemError], call: Callable[[], Any]) -> Any:
    """Call; an unexpected exception becomes an error of this item, not the end of the run."""
    try:
        return call()
    except ItemError:
        raise
    except Exception as error:
        logger.debug("unexpected error", exc_info=True)
        raise kind(f"{type(error).__name__}: {' '.join(str(error).split())}") from error


def _total(counts: list[int | None]) -> int | None:
    known = [count for count in counts if count is not None]
    return sum(known) if len(known) == len(counts) else None
