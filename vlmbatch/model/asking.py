"""Questions about many pictures: lazily in, rows out as they finish."""

from __future__ import annotations

import concurrent.futures
import dataclasses
import datetime
import queue
import time
import uuid
from collections.abc import Iterable, Iterator

from vlmbatch.core import (
    Completion,
    Conversation,
    Item,
    Record,
    Request,
    picture_size,
)
from vlmbatch.errors import DecodeError, EngineError, ItemError, one_line
from vlmbatch.model.options import Answering
from vlmbatch.run.order import InputOrder
from vlmbatch.run.record import RecordMaker
from vlmbatch.run.task import Loaded, Result, Task
from vlmbatch.serve.dispatcher import ClosedError, Dispatcher
from vlmbatch.serve.ticket import Ticket
from vlmbatch.tasks import Task as TaskName

PICTURES_AHEAD = 64
"""Pictures on their way at a time."""


class Asking:
    """One call of ``Model.ask``."""

    def __init__(
        self, dispatcher: Dispatcher, task: TaskName, questions: tuple[str, ...], how: Answering
    ) -> None:
        """Take what is asked about every picture."""
        self._dispatcher, self._texts = dispatcher, questions
        self._how = how
        self._order = InputOrder()
        now = datetime.datetime.now(datetime.UTC)
        run_id = f"{now:%Y%m%dT%H%M%S}-{uuid.uuid4().hex[:6]}"
        engine = dispatcher.engine
        self._maker = RecordMaker(task, engine.model, engine.revision, {}, run_id, self._order)
        self._open: set[_Picture] = set()
        self._done: queue.SimpleQueue[_Picture] = queue.SimpleQueue()

    def records(self, items: Iterable[Item]) -> Iterator[Record]:
        """Yield the rows of each picture when all of its questions are answered.

        Raises:
            EngineError: The engine cannot go on, or was closed.
        """
        try:
            for item in items:
                self._submit(item)
                while len(self._open) >= PICTURES_AHEAD or not self._done.empty():
                    yield from self._finished()
            while self._open:
                yield from self._finished()
        finally:  # also of a caller that has seen enough
            for picture in self._open:
                picture.ticket.cancel()

    def _submit(self, item: Item) -> None:
        self._order.add(item.place)
        texts = item.questions or self._texts
        picture = _Picture(Task(item, tuple(enumerate(texts)), 0))
        questions = [self._how.question(text) for text in texts]
        try:
            picture.ticket = self._dispatcher.submit(picture.load, questions)
        except ClosedError as error:
            raise EngineError("the model was closed: open another Model") from error
        self._open.add(picture)
        picture.ticket.ready.add_done_callback(picture.note_ready)
        picture.ticket.done.add_done_callback(lambda _: self._done.put(picture))

    def _finished(self) -> Iterator[Record]:
        """Wait for a picture, and yield its rows."""
        picture = self._done.get()
        self._open.discard(picture)
        found = picture.completions()
        for number in range(len(picture.task.asked)):
            result = (
                Result(picture.task, number, picture.loaded, error=found)
                if isinstance(found, ItemError)
                else Result(picture.task, number, picture.loaded, found[number])
            )
            yield self._maker.record(result, self._dispatcher.engine)


class _Picture:
    """A picture on its way."""

    ticket: Ticket

    def __init__(self, task: Task) -> None:
        self.task, self.loaded = task, Loaded()
        self._loaded_at = 0.0

    def load(self) -> Conversation:
        """Load its pixels, on a worker thread."""
        item = self.task.item
        begun = time.perf_counter()
        try:
            pixels = item.load()
        except ItemError:
            raise
        except Exception as error:
            raise DecodeError(f"{type(error).__name__}: {one_line(error)}") from error
        finally:
            self._loaded_at = time.perf_counter()
            self.loaded = Loaded(read_seconds=self._loaded_at - begun)
            self.task = self.task.without_pixels()
        self.loaded = dataclasses.replace(self.loaded, size=picture_size(pixels.frames[0]))
        return Conversation.about(item.media, pixels, item.id)

    def note_ready(self, ready: concurrent.futures.Future[Request]) -> None:
        """Note what preparing took."""
        if ready.cancelled() or ready.exception() is not None:
            return
        request = ready.result()
        self.loaded = dataclasses.replace(
            self.loaded,
            tiles=request.tiles,
            native_tiles=request.native_tiles,
            prepare_seconds=time.perf_counter() - self._loaded_at,
        )

    def completions(self) -> list[Completion] | ItemError:
        """Its answers, or the reason why there are none."""
        try:
            return self.ticket.done.result()
        except ItemError as error:
            return error
        except concurrent.futures.CancelledError as error:
            raise EngineError("the model was closed: open another Model") from error
