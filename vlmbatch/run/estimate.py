"""Estimate the duration of a job on this machine at each detail: count its items, prepare a sample
of them, and time a few tiles, prompts and decode steps. No question is answered.

The time is that of the engine's phases for all items, and of reading and preparing. It depends on
the length of the answers: the mean of earlier rows in OUTPUT if there are any, otherwise
``TYPICAL_TOKENS``. The time with every answer at its limit is given beside it.
"""

from __future__ import annotations

import contextlib
import dataclasses
import random
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from vlmbatch.checkpoint import find_checkpoint
from vlmbatch.core import Conversation, Item, Pixels, Question, Request
from vlmbatch.engine import EngineStats, open_engine
from vlmbatch.engine.constraints import checked_constraint
from vlmbatch.engine.timing import again, closed_queue, difference, lengthen, with_payload
from vlmbatch.errors import ItemError, JobError, OutputError
from vlmbatch.job import Detail, Job
from vlmbatch.prepare import Payload, Preparer
from vlmbatch.processor import processor_share
from vlmbatch.questions import Questions, read_questions
from vlmbatch.read import is_stream, open_reader
from vlmbatch.run.intake import check_inputs
from vlmbatch.run.plan import count_items, plan_items
from vlmbatch.sample import make_sampler
from vlmbatch.urls import is_url
from vlmbatch.write import read_records

if TYPE_CHECKING:
    from vlmbatch.engine.torch.engine import TorchEngine

DETAILS: tuple[Detail, ...] = ("full", "native", "low")
TYPICAL_TOKENS = {"caption": 20, "ocr": 100, "vqa": 8}
"""Tokens of an answer without earlier rows: a sentence, some lines of text, a few words."""
SHORT_TOKENS = 512
"""Maximum length of a short prompt, of which more are decoded together; see engine/torch/budget.py.
"""
SAMPLED_PICTURES, SAMPLED_FRAMES = 24, 6
TIMED_TOKENS = 2048
"""Maximum number of prompt tokens in each prefill timing."""
TIMED_STEPS = 8


@dataclasses.dataclass(frozen=True)
class DetailEstimate:
    """The estimate for one detail.

    Attributes:
        detail: The detail.
        tiles: Tiles to encode for all items, equal ones once.
        seconds: Time with answers of the expected length, model loading included.
        most_seconds: Time with every answer at its limit.
    """

    detail: Detail
    tiles: int
    seconds: float
    most_seconds: float


@dataclasses.dataclass(frozen=True)
class Estimate:
    """The estimates of a job.

    Attributes:
        items: Number of items that a run would ask about.
        done: Number of the others.
        questions: Questions about each, on average.
        new_tokens: Expected tokens of an answer.
        device, dtype: Device and dtype of the engine.
        details: One estimate for each detail.
    """

    items: int
    done: int
    questions: float
    new_tokens: float
    device: str
    dtype: str
    details: tuple[DetailEstimate, ...]


@dataclasses.dataclass(frozen=True)
class Sample:
    """Means over a sample of items at one detail.

    Attributes:
        tiles: Number of distinct tiles.
        prefix_tokens, question_tokens: Tokens of the prompts, all questions together.
        host_seconds: Time to read and prepare on one core.
    """

    tiles: float
    prefix_tokens: float
    question_tokens: float
    host_seconds: float


@dataclasses.dataclass(frozen=True)
class Speed:
    """Times of the engine for prompts of one length.

    Attributes:
        prefill_seconds: Per token.
        step_seconds: For a decode step of one sequence.
        more_seconds: For each further sequence in it.
    """

    prefill_seconds: float
    step_seconds: float
    more_seconds: float


def estimate_job(job: Job) -> Estimate:
    """Estimate the duration of a job.

    Args:
        job: The job. Its engine must be torch, and its INPUTs readable twice.

    Raises:
        JobError: It is not such a job, or a run would refuse it.
        EngineError: The model cannot be loaded.
    """
    check_inputs(job)
    checked_constraint(job)
    if job.engines[0] != "torch":
        raise JobError(f"--estimate times the engine torch, not {job.engine}")
    if any(is_url(text) or text == "-" for text in job.inputs):
        raise JobError("--estimate reads the INPUTs twice: give files, folders or archives")
    questions = read_questions(job)
    count, done = _count(job)
    if not count:
        return Estimate(0, done, 0, 0, "", "", ())
    items = _sample_items(job, count + done)
    details = DETAILS if not job.is_clip and job.per != "tile" else (job.detail,)
    samples = {detail: _prepare(job, items, questions, detail) for detail in details}
    asked = sum(len(questions.of(item)) for item in items) / len(items)
    expected = _expected_tokens(job)
    begun = time.perf_counter()
    from vlmbatch.engine.torch.engine import TorchEngine

    engine = open_engine(job)
    assert isinstance(engine, TorchEngine)
    loading = time.perf_counter() - begun
    try:
        tile_seconds = _tile_seconds(engine, job)
        found = []
        for detail, sample in samples.items():
            length = round(sample.prefix_tokens + sample.question_tokens / max(1.0, asked))
            speed = _speed(engine, length)
            times = [
                loading + _total(engine, sample, speed, tile_seconds, count, asked, tokens, length)
                for tokens in (expected, float(job.max_new_tokens))
            ]
            found.append(DetailEstimate(detail, round(sample.tiles * count), *times))
        return Estimate(count, done, asked, expected, engine.device, engine.dtype, tuple(found))
    finally:
        engine.close()


def _count(job: Job) -> tuple[int, int]:
    """Return the number of items that a run would ask about, and that of the others. Over an
    OUTPUT that would be refused, it is the number for a new one.
    """
    if job.overwrite or job.output_path == "-":
        return count_items(job), 0
    plan = plan_items(job)
    return plan.items - plan.done, plan.done


def _sample_items(job: Job, count: int) -> list[Item]:
    """Sample items that can be loaded: pictures from all over the job, but the first frames of
    videos, because later ones need decoding up to them.
    """
    reader = open_reader(job, sampler=make_sampler(job) if job.media == "video" else None)
    wanted = min(count, SAMPLED_FRAMES if job.media == "video" else SAMPLED_PICTURES)
    is_in_order = job.media == "video" or any(is_stream(text) for text in job.inputs)
    chosen = set(range(wanted) if is_in_order else random.Random(0).sample(range(count), wanted))
    numbered = zip(range(max(chosen) + 1), reader, strict=False)
    return [item for number, item in numbered if number in chosen]


def _prepare(job: Job, items: Sequence[Item], questions: Questions, detail: Detail) -> Sample:
    """Load and prepare the sample at a detail.

    Raises:
        JobError: None of the items can be prepared.
    """
    preparer = Preparer.from_checkpoint(
        find_checkpoint(job.model, job.revision), detail, job.cache_folder
    )
    keys: set[bytes] = set()
    prefix = question = prepared = 0
    begun = time.perf_counter()
    for item in items:
        asked = [Question(text) for text in questions.of(item)]
        if not asked:
            continue
        try:
            conversation = Conversation.about(item.media, item.load(), item.id)
            parts = preparer.cut(conversation) if job.per == "tile" else [conversation]
            payloads: list[Payload] = [preparer.prepare(part, asked).payload for part in parts]
        except ItemError:
            continue
        for payload in payloads:
            keys.update(payload.tile_keys)
            prefix += len(payload.prefix_ids)
            question += sum(map(len, payload.question_ids))
        prepared += 1
    if not prepared:
        raise JobError("none of the items that were tried can be read and prepared")
    seconds = time.perf_counter() - begun
    return Sample(len(keys) / prepared, prefix / prepared, question / prepared, seconds / prepared)


def _expected_tokens(job: Job) -> float:
    """Tokens of an answer: the mean of this task's rows in OUTPUT, or the typical number."""
    counts: list[int] = []
    path = Path(job.output_path)
    if job.output_path != "-" and path.is_file():
        with contextlib.suppress(OutputError):
            counts = [
                row["new_tokens"]
                for row in read_records(path, ["task", "status", "new_tokens"])
                if row["task"] == job.task and row["status"] == "ok" and row["new_tokens"]
            ]
    typical = sum(counts) / len(counts) if counts else TYPICAL_TOKENS[job.task]
    return float(min(typical, job.max_new_tokens))


def _tile_seconds(engine: TorchEngine, job: Job) -> float:
    """Seconds of a tile, in encoder calls as large as a run's."""
    preparer = Preparer.from_checkpoint(
        find_checkpoint(job.model, job.revision), "low", job.cache_folder
    )
    picture = Pixels((np.zeros((64, 64, 3), np.uint8),))
    request = preparer.prepare(Conversation.about("image", picture), [Question("?")])
    tile: Any = request.payload.tiles
    for count in (1, 2 * engine.stats.memory["tiles_at_once"]):  # warm-up: loading and allocation
        different = [
            with_payload(request, tiles=tile ^ np.uint8(number % 251 + 1), tile_keys=())
            for number in range(count)
        ]
        spent = _spent(engine, different, 1)
    return spent.vision_seconds / max(1, spent.tiles)


def _speed(engine: TorchEngine, length: int) -> Speed:
    """Time prompts of a length and decode steps after them."""
    request = lengthen(engine.prepare(Conversation(), [Question("a" * 8)]), length)
    count = max(2, min(8, TIMED_TOKENS // request.payload.prompt_tokens))
    alone = _spent(engine, [request], TIMED_STEPS + 1)
    together = _spent(engine, [request] * count, TIMED_STEPS + 1)
    step = alone.decode_seconds / alone.decode_steps
    more = (together.decode_seconds / together.decode_steps - step) / (count - 1)
    return Speed(together.prefill_seconds / together.prefill_tokens, step, max(0.0, more))


def _spent(engine: TorchEngine, requests: Sequence[Request], new_tokens: int) -> EngineStats:
    """Answer requests; return what that took."""
    before = dataclasses.replace(engine.stats)
    for done in engine.run(closed_queue([again(request, new_tokens) for request in requests])):
        if done.error is not None:
            raise done.error
    return difference(before, engine.stats)


def _total(
    engine: TorchEngine,
    sample: Sample,
    speed: Speed,
    tile_seconds: float,
    count: int,
    asked: float,
    new_tokens: float,
    length: int,
) -> float:
    """Seconds of a whole job."""
    vision = sample.tiles * tile_seconds
    prefill = (sample.prefix_tokens + sample.question_tokens) * speed.prefill_seconds
    together = _together(engine, sample, count, asked, new_tokens, length)
    step = speed.step_seconds + speed.more_seconds * (together - 1)
    decode = asked * (new_tokens - 1) * step / together
    compute = count * (vision + prefill + decode)
    host = count * sample.host_seconds / processor_share().threads
    # A CPU engine shares its cores with the readers; a GPU waits for them only if they are slower.
    return compute + host if engine.device == "cpu" else max(compute, host)


def _together(
    engine: TorchEngine, sample: Sample, count: int, asked: float, new_tokens: float, length: int
) -> float:
    """Number of sequences decoded together: limited by capacity and questions, and by the number
    alive at a time, as each encoder call starts some while each step ends some.
    """
    budget = engine.budget
    places = engine.scheduler.max_sequences
    if length > SHORT_TOKENS:
        places = min(places, budget.sequences(length + round(new_tokens)))
    started = asked * budget.tiles_at_once / max(1e-9, sample.tiles)
    return max(1.0, min(count * asked, places, max(asked, started * new_tokens)))
