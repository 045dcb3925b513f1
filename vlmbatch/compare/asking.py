"""Ask one side: read the items, and answer the questions about them with its engine."""

from __future__ import annotations

import contextlib
import dataclasses
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil

from vlmbatch.compare.answers import Answer, Figures
from vlmbatch.core import Completion, Conversation, Item
from vlmbatch.engine import Engine, EnginePlan, RequestQueue
from vlmbatch.engine.options import make_question
from vlmbatch.errors import DecodeError, ItemError, PrepareError, one_line
from vlmbatch.job import Job
from vlmbatch.processor import processor_share
from vlmbatch.questions import read_questions
from vlmbatch.read import open_reader
from vlmbatch.tasks import parse_answer

CHOICES = 5
"""Most likely tokens to ask for beside each token: they show how near a tie was."""
MOST_READERS, WAITING = 8, 16
"""Threads that read and prepare; requests that may wait."""


def ask(job: Job, plan: EnginePlan, tell: Callable[[Answer], None]) -> Figures:
    """Open the engine and answer all questions.

    Args:
        job: Items, questions and engine.
        plan: The engine.
        tell: Called with each answer, on the thread of the caller.

    Raises:
        VlmbatchError: The engine cannot be opened or go on, or an INPUT cannot be read.
    """
    begun = time.perf_counter()
    engine = plan.open()
    loaded = time.perf_counter()
    try:
        for answer in _answers(job, engine):
            tell(answer)
        ended = time.perf_counter()
        is_here = job.endpoint is None
        return Figures(
            engine=engine.name,
            model=engine.model,
            revision=engine.revision,
            device=engine.device,
            dtype=engine.dtype,
            load_seconds=loaded - begun,
            seconds=ended - loaded,
            memory_bytes=_peak_bytes() if is_here else None,
            device_bytes=engine.stats.peak_device_bytes,
        )
    finally:
        engine.close()


def _answers(job: Job, engine: Engine) -> Iterator[Answer]:
    requests = RequestQueue(WAITING)
    readers = Readers(job, engine, requests)
    try:
        readers.start()
        for done in engine.run(requests):
            yield from readers.take_errors()
            yield _answer(job, done)
        readers.check()
        yield from readers.take_errors()
    finally:
        requests.stop()
        readers.join()


class Readers:
    """The threads that load items and prepare requests."""

    def __init__(self, job: Job, engine: Engine, requests: RequestQueue) -> None:
        """Find the items.

        Args:
            job: Items and questions.
            engine: Prepares the requests.
            requests: Takes them; closed after the last one.
        """
        self._job, self._engine, self._requests = job, engine, requests
        self._questions = read_questions(job)
        self._items = self._limited()
        self._guard = threading.Lock()
        self._errors: list[Answer] = []
        self._failure: BaseException | None = None
        count = job.read_workers or min(MOST_READERS, max(2, processor_share().threads))
        self._threads = [
            threading.Thread(target=self._work, name=f"reader {number}") for number in range(count)
        ]
        self._at_work = count

    def start(self) -> None:
        """Start to read."""
        for thread in self._threads:
            thread.start()

    def join(self) -> None:
        """Wait for the threads to end."""
        for thread in self._threads:
            if thread.ident is not None:
                thread.join()

    def take_errors(self) -> list[Answer]:
        """Return the items that could not be read or prepared since the last call."""
        with self._guard:
            found, self._errors = self._errors, []
        return found

    def check(self) -> None:
        """Raise what ended the reading too early."""
        if self._failure is not None:
            raise self._failure

    def _limited(self) -> Iterator[Item]:
        for number, item in enumerate(open_reader(self._job)):
            if number == self._job.limit:
                return
            yield item

    def _work(self) -> None:
        try:
            while not self._requests.stopped:
                with self._guard:
                    item = next(self._items, None)
                    asked = () if item is None else self._questions.of(item)
                if item is None:
                    break
                if asked:
                    self._prepare(item, asked)
        except BaseException as error:
            self._failure = self._failure or error
            self._requests.stop()
        finally:
            with self._guard:
                self._at_work -= 1
                if not self._at_work:
                    self._requests.close()

    def _prepare(self, item: Item, asked: tuple[str, ...]) -> None:
        kind: type[ItemError] = DecodeError
        questions = [
            dataclasses.replace(make_question(text, self._job), logprobs=CHOICES) for text in asked
        ]
        try:
            conversation = Conversation.about(item.media, item.load(), item.id)
            kind = PrepareError
            request = self._engine.prepare(conversation, questions)
        except Exception as error:  # of this item alone, as in a run
            known = error if isinstance(error, ItemError) else kind(one_line(error))
            said = f"{type(known).__name__}: {one_line(known)}"
            with self._guard:
                self._errors += [Answer(item.place, item.id, text, error=said) for text in asked]
            return
        request.tag = (item.place, item.id)
        self._requests.put(request)


def _answer(job: Job, done: Completion) -> Answer:
    place, item_id = done.request.tag
    question = done.request.questions[done.question].text
    if done.error is not None:
        said = f"{type(done.error).__name__}: {one_line(done.error)}"
        return Answer(place, item_id, question, error=said)
    return Answer(
        place,
        item_id,
        question,
        parse_answer(job.task, done.text or ""),
        None,
        done.new_tokens,
        done.mean_logprob,
        tuple(done.token_ids),
        tuple(done.logprobs),
    )


def _peak_bytes() -> int:
    """Return the peak resident memory of this process and of those that work for it; where the
    system does not tell, the present one.
    """
    own = psutil.Process()
    total = 0
    for process in (own, *own.children(recursive=True)):
        with contextlib.suppress(psutil.Error, OSError):
            total += _peak_of(process)
    return total


def _peak_of(process: psutil.Process) -> int:
    try:
        status = Path(f"/proc/{process.pid}/status").read_text(encoding="ascii")
    except OSError:  # not Linux
        return int(process.memory_info().rss)
    found = [line.split()[1] for line in status.splitlines() if line.startswith("VmHWM:")]
    return 1024 * int(found[0]) if found else 0
