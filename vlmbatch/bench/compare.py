"""Run the same work through the transformers engine: one request at a time, or in left-padded
batches.

Each side prepares the same conversations and questions with its own processor, outside the clock,
so only computing is compared. Sides take turns in one process.
"""

from __future__ import annotations

import dataclasses
import functools
import statistics
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
import transformers
from PIL import Image

from vlmbatch.bench import workloads
from vlmbatch.bench.bench import Bench
from vlmbatch.bench.rows import Measurement, spread, summarize
from vlmbatch.bench.subject import Outcome, Subject
from vlmbatch.bench.workloads import Work, speed
from vlmbatch.core import Conversation, Pixels, Question, Request
from vlmbatch.engine import open_engine
from vlmbatch.engine.timing import again, closed_queue
from vlmbatch.engine.torch.device import empty_cache, synchronize
from vlmbatch.engine.transformers.processing import Payload
from vlmbatch.engine.transformers.tiled import TiledProcessor
from vlmbatch.errors import GenerateError

LARGEST_BATCH = 1 << 20
"""Maximum batch size of the engine: all requests it is given at a time."""


class Reference:
    """The transformers engine on the subject's device and in its dtype.

    Attributes:
        version: transformers' version.
        device: The device that computes.
        processor: Returns the processor for a detail.
    """

    def __init__(self, subject: Subject) -> None:
        """Load the model.

        Raises:
            EngineError: It cannot be opened.
        """
        self.version = str(transformers.__version__)
        self.device = subject.device
        dtype: Any = str(subject.dtype).removeprefix("torch.")
        self._engine = open_engine(
            dataclasses.replace(
                subject.options,
                engine="transformers",
                quantize="none",
                dtype=dtype,
                batch_size=LARGEST_BATCH,
            )
        )
        self._subject = subject
        self._config = transformers.AutoConfig.from_pretrained(subject.checkpoint.folder)
        self.processor = functools.cache(
            functools.partial(TiledProcessor, subject.checkpoint, self._config)
        )

    def prepare(self, path: Path) -> int:
        """Read a picture file and prepare it at full detail; return the number of tiles."""
        with Image.open(path) as picture:
            pixels = Pixels([picture.convert("RGB")])
        return self.processor("full")(Conversation.about("image", pixels), [""]).tiles or 0

    def requests(self, work: Work) -> list[Request]:
        """Make one request per question, as plain code does; tagged like our side's answer."""
        process, found = self.processor(work.detail), []
        conversations = self._subject.conversations(work.pictures)
        for number, (about, ours) in enumerate(zip(conversations, work.requests, strict=True)):
            limit = work.limits[number] if work.limits else work.max_new_tokens
            payload = process(about, [question.text for question in ours.questions])
            for place, question in enumerate(ours.questions):
                one = Payload(payload.media, [payload.prompts[place]], payload.tiles)
                plain = Request(about.without_pixels(), [question], one, one.media_bytes)
                found.append(again(plain, limit, (number, place)))
        return found

    def run(self, requests: Sequence[Request], size: int) -> Outcome:
        """Answer all requests in batches of this size, in order.

        Raises:
            GenerateError: A request was answered with an error.
        """
        outcome = Outcome(batch_size=size)
        synchronize(self.device)
        started = time.perf_counter()
        for begin in range(0, len(requests), size):
            for done in self._engine.run(closed_queue(requests[begin : begin + size])):
                if done.error is not None:
                    raise GenerateError(str(done.error)) from done.error
                outcome.answers[done.request.tag] = tuple(done.token_ids)
        outcome.seconds = time.perf_counter() - started
        return outcome

    def fits(self, requests: Sequence[Request], size: int) -> Outcome | None:
        """Run a batch size; None if it runs out of memory."""
        before = len(self._engine.stats.oom_events)
        try:
            if self.device.type != "cpu":
                # Warm-up, which must not count as the batch's own memory.
                self.run(requests[:size], size)
            outcome = self.run(requests, size)
        finally:
            empty_cache(self.device)
        return outcome if len(self._engine.stats.oom_events) == before else None

    def decode_rate(self, sequences: int, prompt_tokens: int, new_tokens: int) -> float:
        """Decode alone, for text-only prompts; return tokens a second."""
        words = min(1000, self._subject.shape.text.vocabulary)
        ids = torch.arange(sequences * prompt_tokens).view(sequences, prompt_tokens) % words
        ids[ids == self._config.image_token_id] = 0
        payloads = [Payload({}, [{"input_ids": row[None]}], None) for row in ids]
        question = Question("")
        requests = [
            again(Request(Conversation(), [question], payload), 1 + new_tokens)
            for payload in payloads
        ]
        stats = self._engine.stats
        tokens, seconds = stats.decode_tokens, stats.decode_seconds
        self.run(requests, sequences)
        return (stats.decode_tokens - tokens) / (stats.decode_seconds - seconds)


def compare(bench: Bench, reference: Reference, work: Work) -> Iterator[Measurement]:
    """Yield our row, and one per batching of the reference: the ratio of speeds in items a second,
    and the number of answers that are equal token for token.
    """
    requests = reference.requests(work)
    # As long on average as all of them, where lengths differ.
    count = max(bench.sizes.singles, len(workloads.LENGTHS) if work.limits else 0)
    ways = {"one at a time": (requests[:count], 1)}
    tried: dict[int, Outcome] = {}
    for size in dict.fromkeys(min(size, len(requests)) for size in bench.sizes.batches):
        outcome = reference.fits(requests, size) if size > 1 else None
        if outcome is not None:
            tried[size] = outcome
    theirs: dict[str, list[Outcome]] = {way: [] for way in ways}
    if tried:
        best = min(tried, key=lambda size: tried[size].seconds)
        ways[f"batches of {best}"] = (requests, best)
        # In a comparison of one round, the first run is the measurement.
        theirs[f"batches of {best}"] = [tried[best]] if bench.sizes.rounds == 1 else []
    if not tried or reference.device.type != "cpu":
        reference.run(requests[:1], 1)
    ours: list[Outcome] = []
    for number in range(bench.sizes.rounds):
        ours.append(work.run(bench))
        for way, (asked, size) in ways.items():
            if len(theirs[way]) == number:
                theirs[way].append(reference.run(asked, size))
    yield speed(work, ours)
    for way in ways:
        yield _ratio(work, way, ours, theirs[way], {n: one.seconds for n, one in tried.items()})


def _ratio(
    work: Work,
    way: str,
    ours: Sequence[Outcome],
    theirs: Sequence[Outcome],
    tried_seconds: dict[int, float],
) -> Measurement:
    """Make the row of one batching of the reference."""
    rates = [len(outcome.answers) / outcome.seconds for outcome in theirs]
    ratios = [work.answers / mine.seconds / rate for mine, rate in zip(ours, rates, strict=True)]
    found = theirs[-1].answers
    equal = sum(ours[-1].answers[key] == answer for key, answer in found.items())
    details = {
        "ratio": summarize(ratios),
        "per_second": summarize(rates),
        "answers": len(found),
        "equal": equal,
        "tried_seconds": {str(size): seconds for size, seconds in tried_seconds.items()},
    }
    note = " ".join(filter(None, (spread(ratios), f"{equal} of {len(found)} answers equal")))
    what = f"  over generate, {way}"
    return Measurement(work.name, what, statistics.median(ratios), "x", note, details)
