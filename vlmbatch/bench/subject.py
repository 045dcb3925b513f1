"""What is measured: a checkpoint in the engine on a device, and how work is put through it."""

from __future__ import annotations

import dataclasses
import functools
import time
from collections.abc import Callable, Sequence

import psutil
import torch

from vlmbatch.bench.checkpoint import EndlessCheckpoint
from vlmbatch.core import Conversation, Picture, Pixels, Request
from vlmbatch.engine import Engine, EngineStats, RequestQueue, open_engine
from vlmbatch.engine.torch.device import find_device, find_dtype, synchronize
from vlmbatch.engine.torch.engine import TorchEngine
from vlmbatch.engine.torch.shape import ModelShape
from vlmbatch.errors import GenerateError
from vlmbatch.job import Detail, Job
from vlmbatch.prepare import Preparer

Key = tuple[int, int]
"""Number of a request and of its question."""


@dataclasses.dataclass
class Outcome:
    """What a run gave.

    Attributes:
        seconds: From the first request's arrival to the last answer.
        answers: The tokens of each answer, a character a token.
        batch_size: The most sequences that were decoded together.
        stats: What the engine counted meanwhile.
    """

    seconds: float = 0.0
    answers: dict[Key, str] = dataclasses.field(default_factory=dict)
    batch_size: int = 0
    stats: EngineStats = dataclasses.field(default_factory=EngineStats)

    @property
    def new_tokens(self) -> int:
        """Tokens of all answers."""
        return sum(map(len, self.answers.values()))


def as_text(ids: Sequence[int]) -> str:
    """Token ids as a string, a character a token; it takes the tokenizer's place, so that answers
    can be compared and counted.
    """
    return "".join(map(chr, ids))


class Subject:
    """A checkpoint on a device. The engine is opened when it is needed first.

    Attributes:
        checkpoint: The checkpoint.
        shape: Its sizes.
        device: Where it computes.
        dtype: In which number format.
        quantize: How the language model's matrices are kept, as ``Job`` has it.
        baseline_bytes: Memory in use before the engine was opened.
    """

    def __init__(self, job: Job, checkpoint: EndlessCheckpoint) -> None:
        """Finds device and number format; loads nothing.

        Raises:
            DeviceError: The device or number format is not there.
            ModelLoadError: The checkpoint is of another kind.
        """
        self.checkpoint = checkpoint
        self.shape = ModelShape.from_checkpoint(checkpoint)
        self.device = find_device(job.device)
        self.dtype = find_dtype(job.dtype, self.device, self.shape.parameters)
        self.quantize = job.quantize
        self.baseline_bytes = 0
        self._job = job
        self._preparers: dict[Detail, Preparer] = {}

    @functools.cached_property
    def engine(self) -> TorchEngine:
        """The engine.

        Raises:
            EngineError: It cannot be opened.
        """
        self.baseline_bytes = used_bytes(self.device)
        engine: Engine = open_engine(
            self._job, self.checkpoint, self.preparer("full").prepare, as_text
        )
        assert isinstance(engine, TorchEngine)
        return engine

    def preparer(self, detail: Detail) -> Preparer:
        """What makes requests at a detail."""
        if detail not in self._preparers:
            self._preparers[detail] = Preparer.from_checkpoint(self.checkpoint, detail)
        return self._preparers[detail]

    def requests(
        self, pictures: Sequence[Picture], questions: Sequence[str], detail: Detail
    ) -> list[Request]:
        """A request a picture, with all questions."""
        prepare = self.preparer(detail).prepare
        return [
            prepare(Conversation("image", Pixels([picture]), str(number)), questions)
            for number, picture in enumerate(pictures)
        ]

    def run(
        self,
        requests: Sequence[Request],
        max_new_tokens: int,
        *,
        limits: Sequence[int] | None = None,
    ) -> Outcome:
        """Puts all requests into the queue and waits for the answers.

        Args:
            requests: The work. It can be used again.
            max_new_tokens: Length of every answer.
            limits: Length of each request's answer, where they differ; each request has one
                question then. The engine does not know them, as it does not know where an end token
                will come: it is told when an answer is over.

        Raises:
            GenerateError: A request was answered with an error.
            EngineError: The engine cannot go on.
        """
        engine = self._limited(max_new_tokens)
        before = dataclasses.replace(engine.stats)
        outcome = Outcome()
        queue = RequestQueue(len(requests) + 1, 1 << 62)
        synchronize(self.device)
        started = time.perf_counter()
        for number, request in enumerate(requests):
            fresh = dataclasses.replace(request, tag=number, cancelled=False, on_text=None)
            if limits is not None:
                fresh.on_text = _listen(fresh, outcome, started, limits[number])
            queue.put(fresh)
        queue.close()
        failure: Exception | None = None
        for done in engine.run(queue):
            failure = failure or done.error
            outcome.answers[done.request.tag, done.question] = (done.text or "")[
                : limits[done.request.tag] if limits else None
            ]
            outcome.batch_size = max(outcome.batch_size, done.batch_size)
            outcome.seconds = time.perf_counter() - started
        if failure is not None:
            raise GenerateError(str(failure)) from failure
        outcome.stats = _difference(before, engine.stats)
        outcome.batch_size = outcome.batch_size or engine.stats.max_sequences
        return outcome

    def first_token_seconds(self, request: Request, rounds: int) -> list[float]:
        """Seconds from a request's arrival to its first token, each time with nothing else to do;
        one round more is done before the first that counts.

        Args:
            request: With one question.
            rounds: How many times.

        Raises:
            GenerateError: The request was answered with an error.
            EngineError: The engine cannot go on.
        """
        found: list[float] = []
        queue = RequestQueue(1, 1 << 62)

        def put() -> None:
            arrived = time.perf_counter()
            fresh = dataclasses.replace(
                request, tile_keys=(), cancelled=False
            )  # without keys an engine cannot know the tiles again
            fresh.on_text = lambda question, piece: found.append(time.perf_counter() - arrived)
            queue.put(fresh)

        put()
        for done in self._limited(1).run(queue):
            if done.error is not None:
                queue.stop()
                raise GenerateError(str(done.error)) from done.error
            put() if len(found) <= rounds else queue.close()
        return found[1:]

    def _limited(self, max_new_tokens: int) -> TorchEngine:
        """The engine, with this length of answers from now on."""
        self.engine.options = dataclasses.replace(
            self.engine.options, max_new_tokens=max_new_tokens
        )
        return self.engine

    def close(self) -> None:
        """Gives the engine's memory back."""
        if "engine" in self.__dict__:
            self.engine.close()


def _listen(
    request: Request, outcome: Outcome, started: float, limit: int
) -> Callable[[int, str], None]:
    """What hears the tokens of a request, and ends its answer at the limit."""

    def on_text(question: int, piece: str) -> None:
        if request.cancelled:
            return  # a token that was under way when the answer was over
        key = (int(request.tag), question)
        outcome.answers[key] = outcome.answers.get(key, "") + piece
        if len(outcome.answers[key]) >= limit:
            request.cancelled = True
            outcome.seconds = time.perf_counter() - started

    return on_text


def _difference(before: EngineStats, after: EngineStats) -> EngineStats:
    """What was added to the counts and times between two states of the same statistics; the rest as
    it is now.
    """
    found = dataclasses.replace(after)
    for field in dataclasses.fields(EngineStats):
        value = getattr(after, field.name)
        if isinstance(value, int | float) and not field.name.startswith(("max_", "peak_")):
            setattr(found, field.name, value - getattr(before, field.name))
    return found


def used_bytes(device: torch.device) -> int:
    """Memory that this process has on a device now; on a CPU all of its resident memory."""
    if device.type == "cuda":
        return torch.cuda.memory_allocated(device)
    if device.type == "mps":
        return torch.mps.driver_allocated_memory()
    return int(psutil.Process().memory_info().rss)
