"""The subject of a benchmark: a checkpoint in the engine on a device, and running work on it."""

from __future__ import annotations

import dataclasses
import functools
import time
from collections.abc import Sequence

import psutil
import torch

from vlmbatch.checkpoint import Checkpoint
from vlmbatch.core import Conversation, Picture, Pixels, Question, Request
from vlmbatch.engine import EngineStats, RequestQueue, open_engine
from vlmbatch.engine.threads import use_threads
from vlmbatch.engine.timing import again, closed_queue, difference, with_payload
from vlmbatch.engine.torch.device import find_device, find_dtype, synchronize, use_device
from vlmbatch.engine.torch.engine import TorchEngine
from vlmbatch.engine.torch.shape import ModelShape
from vlmbatch.errors import GenerateError
from vlmbatch.job import Detail, EngineOptions
from vlmbatch.prepare import Preparer

Key = tuple[int, int]
"""Number of a request and of its question."""


@dataclasses.dataclass
class Outcome:
    """The outcome of a run.

    Attributes:
        seconds: From the first request's arrival to the last answer.
        answers: The tokens of each answer.
        batch_size: Largest number of sequences decoded together.
        stats: The engine's counts in this run.
    """

    seconds: float = 0.0
    answers: dict[Key, tuple[int, ...]] = dataclasses.field(default_factory=dict)
    batch_size: int = 0
    stats: EngineStats = dataclasses.field(default_factory=EngineStats)

    @property
    def new_tokens(self) -> int:
        """Total tokens of all answers."""
        return sum(map(len, self.answers.values()))


class Subject:
    """A checkpoint on a device. The engine is opened on first use.

    Answers run to their limits, so that the work does not depend on the weights.

    Attributes:
        name: The shape of random weights, or a model.
        checkpoint: The checkpoint.
        shape: Its sizes.
        device: The device that computes.
        dtype: The dtype that it computes in.
        threads: Number of threads that compute on a CPU; torch uses them from now on.
        quantize: Quantization of the language model's matrices, as in ``Job``.
        preparer: Returns the preparer for a detail.
    """

    def __init__(self, options: EngineOptions, checkpoint: Checkpoint, name: str) -> None:
        """Find device and dtype; load nothing.

        Args:
            options: Device, dtype and memory.
            checkpoint: The checkpoint; ``options.model`` is ignored.
            name: Its name.

        Raises:
            DeviceError: The device or dtype is not available.
            ModelLoadError: The checkpoint is of another kind.
        """
        self.name = name
        self.checkpoint = checkpoint
        self.shape = ModelShape.from_checkpoint(checkpoint)
        self.device = find_device(options.device)
        use_device(self.device)
        self.dtype = find_dtype(options.dtype, self.device, self.shape.parameters)
        self.threads = use_threads(options)
        self.quantize = options.quantize
        self.options = dataclasses.replace(options, model=str(checkpoint.folder), revision=None)
        self.preparer = functools.cache(self._preparer)

    @functools.cached_property
    def engine(self) -> TorchEngine:
        """The engine.

        Raises:
            EngineError: It cannot be opened.
        """
        engine = open_engine(self.options)
        assert isinstance(engine, TorchEngine)
        if engine.native is not None:
            engine.native.wait()  # as in a run that is not the first one on this machine
        return engine

    def _preparer(self, detail: Detail) -> Preparer:
        folder = self.options.cache_folder
        found = Preparer.from_checkpoint(self.checkpoint, detail, folder)
        if self.device.type == "cpu":
            return found
        return found.leaving_pictures(self.engine.uncut_bytes)  # as in a run on this device

    def conversations(self, pictures: Sequence[Picture]) -> list[Conversation]:
        """Make one conversation per picture."""
        return [
            Conversation.about("image", Pixels([picture]), str(number))
            for number, picture in enumerate(pictures)
        ]

    def requests(
        self, pictures: Sequence[Picture], questions: Sequence[str], detail: Detail
    ) -> list[Request]:
        """Make one request per picture, with all questions."""
        asked = [Question(text) for text in questions]
        prepare = self.preparer(detail).prepare
        return [prepare(about, asked) for about in self.conversations(pictures)]

    def run(
        self,
        requests: Sequence[Request],
        max_new_tokens: int,
        *,
        limits: Sequence[int] | None = None,
    ) -> Outcome:
        """Queue all requests and wait for the answers.

        Args:
            requests: The work. It can be used again.
            max_new_tokens: Length of every answer.
            limits: Length of each request's answers, if they differ.

        Raises:
            GenerateError: A request was answered with an error.
            EngineError: The engine cannot go on.
        """
        engine = self.engine
        before = dataclasses.replace(engine.stats)
        outcome = Outcome()
        lengths = limits or [max_new_tokens] * len(requests)
        asked = [again(*work) for work in zip(requests, lengths, range(len(requests)), strict=True)]
        synchronize(self.device)
        started = time.perf_counter()
        failure: Exception | None = None
        for done in engine.run(closed_queue(asked)):
            failure = failure or done.error
            outcome.answers[done.request.tag, done.question] = tuple(done.token_ids)
            outcome.batch_size = max(outcome.batch_size, done.batch_size or 0)
            outcome.seconds = time.perf_counter() - started
        if failure is not None:
            raise GenerateError(str(failure)) from failure
        outcome.stats = difference(before, engine.stats)
        return outcome

    def first_token_seconds(self, request: Request, rounds: int) -> list[float]:
        """Measure the seconds from a request's arrival to its first token on an idle engine, after
        one warm-up round.

        Args:
            request: A request with one question.
            rounds: Number of measurements.

        Raises:
            GenerateError: The request was answered with an error.
            EngineError: The engine cannot go on.
        """
        # Without keys an engine cannot recognize the tiles.
        plain = again(with_payload(request, tile_keys=()), 1)
        found: list[float] = []
        queue = RequestQueue(1, 1 << 62)
        queue.put(again(plain, 1))
        arrived = time.perf_counter()
        for done in self.engine.run(queue):
            found.append(time.perf_counter() - arrived)
            if done.error is not None:
                queue.stop()
                raise GenerateError(str(done.error)) from done.error
            if len(found) > rounds:
                queue.close()
            else:
                arrived = time.perf_counter()
                queue.put(again(plain, 1))
        return found[1:]

    def close(self) -> None:
        """Free the engine's memory."""
        if "engine" in self.__dict__:
            self.engine.close()


def used_bytes(device: torch.device) -> int:
    """Memory of this process on a device; on a CPU all of its resident memory."""
    if device.type == "cuda":
        return torch.cuda.memory_allocated(device)
    if device.type == "mps":
        return torch.mps.driver_allocated_memory()
    return int(psutil.Process().memory_info().rss)
