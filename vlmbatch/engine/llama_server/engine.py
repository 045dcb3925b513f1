"""The engine: a worker thread for each of the server's slots.

A worker asks the questions of a request one after the other in its slot, where llama.cpp keeps the
picture and what else they share: it is encoded once.
"""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Literal

from vlmbatch.core import Completion, Conversation, Question, Request, Timing
from vlmbatch.engine.base import EngineStats
from vlmbatch.engine.busy import BusyShares
from vlmbatch.engine.llama_server.answer import Answer, Vocabulary
from vlmbatch.engine.llama_server.client import DEAD
from vlmbatch.engine.llama_server.process import ServerProcess
from vlmbatch.engine.llama_server.prompts import Payload, Prompts
from vlmbatch.engine.options import check_questions
from vlmbatch.engine.queue import RequestQueue
from vlmbatch.errors import EngineError, ItemError

logger = logging.getLogger(__name__)

Layout = Literal["grid", "one_tile"]
"""Way in which a server cuts pictures: into tiles, or not at all."""
LOOK_SECONDS = 0.1
"""Time between two looks at whether the run has ended."""


class LlamaServerEngine:
    """Answer requests with llama.cpp's server. See ``Engine`` for the contract."""

    name = "llama-server"

    def __init__(
        self,
        start: Callable[[Layout], ServerProcess],
        prompts: Prompts,
        vocabulary: Vocabulary,
        *,
        layout: Layout,
        takes_clips: bool,
        slots: int,
        model: str,
        revision: str,
        device: str,
        dtype: str,
    ) -> None:
        """Start the server.

        Args:
            start: Starts a server of a layout.
            prompts: Prepares the requests.
            vocabulary: The model's tokens.
            layout: The layout that the run begins with; a server of the other one is started when
                it is needed.
            takes_clips: Whether the model takes clips beside pictures.
            slots: Sequences that a server decodes together.
            model: Name of the model.
            revision: Its revision.
            device: The device that computes; empty where that is not known.
            dtype: Number format of the weights.

        Raises:
            ModelLoadError: The server does not start.
        """
        self.model, self.revision, self.device, self.dtype = model, revision, device, dtype
        self.takes_clips = takes_clips
        self.stats = EngineStats()
        self._start, self._prompts, self._vocabulary, self._slots = (
            start,
            prompts,
            vocabulary,
            slots,
        )
        self._guard = threading.Lock()
        self._shares = BusyShares(self.stats)
        self._servers: dict[Layout, ServerProcess] = {layout: start(layout)}
        self._is_closed = self._is_warned = False

    @property
    def pids(self) -> list[int]:
        """Process ids of the servers that run."""
        return [pid for server in self._servers.values() if (pid := server.pid) is not None]

    def prepare(self, conversation: Conversation, questions: Sequence[Question]) -> Request:
        """See ``Engine``."""
        check_questions(questions)
        return self._prompts.prepare(conversation, questions)

    def run(self, source: RequestQueue) -> Iterator[Completion]:
        """See ``Engine``. The questions of a request are answered one after the other."""
        results: queue.SimpleQueue[Completion | BaseException | None] = queue.SimpleQueue()
        ended = threading.Event()
        workers = [
            threading.Thread(
                target=self._work, args=(source, results, ended, slot), name=f"slot {slot}"
            )
            for slot in range(self._slots)
        ]
        for worker in workers:
            worker.start()
        left = len(workers)
        try:
            while left:
                found = results.get()
                if found is None:
                    left -= 1
                elif isinstance(found, BaseException):
                    raise found
                elif not source.stopped:
                    yield found
        finally:
            ended.set()
            for worker in workers:
                worker.join()

    def close(self) -> None:
        """See ``Engine``."""
        self._is_closed = True
        with self._guard:
            for server in self._servers.values():
                server.close()

    def _work(
        self,
        source: RequestQueue,
        results: queue.SimpleQueue[Completion | BaseException | None],
        ended: threading.Event,
        slot: int,
    ) -> None:
        """Answer requests in a slot until there are no more."""

        def goes_on() -> bool:
            return not (source.stopped or ended.is_set())

        try:
            while goes_on() and not source.ended:
                request = source.get(timeout=LOOK_SECONDS)
                if request is None:
                    continue
                wait = max(0.0, time.perf_counter() - request.queued_at)
                for number in range(len(request.questions)):
                    if not goes_on():
                        break
                    results.put(self._answer(request, number, slot, wait, goes_on))
        except BaseException as error:  # raised in the thread of ``run``
            results.put(error)
        finally:
            results.put(None)

    def _answer(
        self, request: Request, number: int, slot: int, wait: float, goes_on: Callable[[], bool]
    ) -> Completion:
        """Answer one question, on a new server if the first one ends meanwhile.

        Raises:
            EngineError: The server ended once too often.
        """
        answer = Answer(request, number, self._vocabulary, goes_on)
        key = object()
        self._shares.begin(key)
        done: Completion | None = None
        try:
            while done is None:
                server = self._server(request.payload)
                generation = server.generation
                try:
                    done = answer.ask(server.client, slot)
                except ItemError as error:
                    done = Completion(request, number, error=error)
                except (OSError, *DEAD) as error:
                    logger.warning(
                        "llama-server ended (%s): starting it again; its log is %s",
                        error or type(error).__name__,
                        server.log,
                    )
                    server.recover(generation)
        finally:
            share = self._shares.end(key)
        self._book(done, answer, share, wait)
        return done

    def _server(self, payload: Payload) -> ServerProcess:
        """Return the server of a payload's layout."""
        layout: Layout = "grid" if payload.is_grid else "one_tile"
        with self._guard:
            if self._is_closed:
                raise EngineError("the engine is closed")
            if not payload.pictures:  # text alone: any server will do
                return next(iter(self._servers.values()))
            if layout not in self._servers:
                self._servers[layout] = self._start(layout)
            return self._servers[layout]

    def _book(self, done: Completion, answer: Answer, share: float, wait: float) -> None:
        """Note the times of an answer, and check that the prompt was ours."""
        timings = answer.timings
        prefill, decode = (timings.get(name, 0) / 1000 for name in ("prompt_ms", "predicted_ms"))
        done.timing = Timing(wait, None, prefill, decode, share)
        payload: Payload = done.request.payload
        with self._guard:
            stats = self.stats
            stats.prefill_seconds += prefill
            stats.decode_seconds += decode
            stats.prefill_tokens += int(timings.get("prompt_n", 0))
            stats.decode_tokens += int(timings.get("predicted_n", 0))
            stats.prefill_calls += 1
            if done.question == 0 and done.error is None:
                stats.tiles += payload.tiles
            expected = len(payload.prompts[done.question].ids)
            if answer.prompt_tokens not in (None, expected) and not self._is_warned:
                self._is_warned = True
                logger.warning(
                    "llama.cpp splits a prompt into %s tokens, the checkpoint's tokenizer into %d: "
                    "%r; answers to such texts may differ from those of --engine torch",
                    answer.prompt_tokens,
                    expected,
                    done.request.questions[done.question].text,
                )
