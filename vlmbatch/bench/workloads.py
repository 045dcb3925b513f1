"""Whole workloads, from prepared requests to the last answer: items a second for a folder of
photos, a video, questions, scans or thumbnails.
"""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Callable, Iterator, Sequence

from vlmbatch.bench.bench import PROMPT, Bench
from vlmbatch.bench.pictures import photo, photos, scan, small_sizes
from vlmbatch.bench.rows import Measurement, number, spread, summarize
from vlmbatch.bench.subject import Outcome
from vlmbatch.core import Picture, Request
from vlmbatch.job import Detail
from vlmbatch.wording import number_of

LENGTHS = (8, 128, 16, 96, 32, 64, 24, 48)
"""Tokens of answers of very different length, in turn."""


@dataclasses.dataclass(frozen=True)
class Work:
    """A workload.

    Attributes:
        name: Its name for ``--only``.
        what: The work, in words.
        pictures: The pictures.
        detail: Their detail.
        requests: The prepared requests, one per picture.
        max_new_tokens: Length of every answer, or of the longest.
        limits: Length of each request's answer, if they differ.
        unit: Unit of counting.
    """

    name: str
    what: str
    pictures: Sequence[Picture]
    detail: Detail
    requests: list[Request]
    max_new_tokens: int
    limits: tuple[int, ...] | None = None
    unit: str = "items/s"

    @property
    def answers(self) -> int:
        """Total number of answers."""
        return sum(len(request.questions) for request in self.requests)

    def run(self, bench: Bench) -> Outcome:
        """Do the work once."""
        return bench.subject.run(self.requests, self.max_new_tokens, limits=self.limits)


def _work(
    bench: Bench,
    name: str,
    what: str,
    pictures: Sequence[Picture],
    detail: Detail,
    max_new_tokens: int,
    questions: Sequence[str] = (PROMPT,),
) -> Work:
    """Prepare the requests of a workload, and fill their ``{count}`` and ``{tiles}`` in."""
    requests = bench.subject.requests(pictures, questions, detail)
    what = what.format(count=len(requests), tiles=_tiles(requests))
    return Work(name, what, pictures, detail, requests, max_new_tokens)


def _photos(bench: Bench) -> Work:
    what = "{count} photos at full detail ({tiles}), 48 tokens"
    return _work(bench, "photos", what, photos(bench.sizes.photos), "full", 48)


def _frames(bench: Bench) -> Work:
    pictures = photos(bench.sizes.frames, ((640, 360),))
    return _work(bench, "frames", "{count} video frames of 1 tile, 32 tokens", pictures, "low", 32)


def _questions(bench: Bench) -> Work:
    asked = [f"What is in part {part} of the picture?" for part in range(bench.sizes.questions)]
    what = f"{len(asked)} questions about a photo of {{tiles}}, 32 tokens"
    work = _work(bench, "questions", what, [photo(0, 640, 480)], "full", 32, asked)
    return dataclasses.replace(work, unit="answers/s")


def _lengths(bench: Bench) -> Work:
    count = bench.sizes.lengths
    limits = tuple(LENGTHS[place % len(LENGTHS)] for place in range(count))
    what = f"{{count}} frames of 1 tile, {min(limits)} to {max(limits)} tokens"
    work = _work(bench, "lengths", what, photos(count, ((640, 360),)), "low", max(limits))
    return dataclasses.replace(work, limits=limits)


def _scans(bench: Bench) -> Work:
    pictures = [scan(page) for page in range(bench.sizes.scans)]
    work = _work(bench, "scans", "", pictures, "full", 48)
    tiles = [key for request in work.requests for key in request.payload.tile_keys]
    different = f"{len(set(tiles))} of {len(tiles)} tiles differ"
    return dataclasses.replace(work, what=f"{len(pictures)} scans, {different}, 48 tokens")


def _small(bench: Bench) -> Work:
    sizes = small_sizes(bench.subject.shape.vision.image_size)
    what = "{count} thumbnails, native detail ({tiles}), 32 tokens"
    return _work(bench, "small", what, photos(bench.sizes.small, sizes), "native", 32)


WORKLOADS: dict[str, Callable[[Bench], Work]] = {
    "photos": _photos,
    "frames": _frames,
    "questions": _questions,
    "lengths": _lengths,
    "scans": _scans,
    "small": _small,
}
"""The workloads by name; each makes its pictures and requests when called."""


def make(bench: Bench, name: str) -> Work:
    """Prepare a workload and warm up."""
    work = WORKLOADS[name](bench)
    bench.warm(work.requests, work.max_new_tokens)
    return work


def measure(bench: Bench, work: Work) -> Iterator[Measurement]:
    """Measure one workload in items a second."""
    yield speed(work, [work.run(bench) for _ in range(bench.sizes.rounds)])


def speed(work: Work, outcomes: Sequence[Outcome]) -> Measurement:
    """Make the row of our side."""
    rates = [work.answers / outcome.seconds for outcome in outcomes]
    tokens = [outcome.new_tokens / outcome.seconds for outcome in outcomes]
    stats = outcomes[-1].stats
    details = {
        "per_second": summarize(rates),
        "new_tokens_per_second": summarize(tokens),
        "requests": len(work.requests),
        "answers": work.answers,
        "tiles": sum((request.tiles or 0) for request in work.requests),
        "prompt_tokens": sum(request.payload.prompt_tokens for request in work.requests),
        "new_tokens": outcomes[-1].new_tokens,
        "together": outcomes[-1].batch_size,
        "phase_seconds": {
            phase: getattr(stats, f"{phase}_seconds")
            for phase in ("busy", "vision", "prefill", "decode")
        },
    }
    note = " ".join(filter(None, (spread(rates), f"{number(statistics.median(tokens))} tokens/s")))
    return Measurement(work.name, work.what, statistics.median(rates), work.unit, note, details)


def _tiles(requests: Sequence[Request]) -> str:
    counts = sorted({(request.tiles or 0) for request in requests})
    if len(counts) == 1:
        return number_of(counts[0], "tile")
    return f"{counts[0]} to {counts[-1]} tiles"
