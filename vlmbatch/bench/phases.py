"""The phases of an answer, each alone: reading and preparing, the vision encoder, prefill and
decoding; time to first token, and memory.
"""

from __future__ import annotations

import functools
import statistics
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import psutil
import torch

from vlmbatch.bench import flops
from vlmbatch.bench.bench import PROMPT, Bench, timed
from vlmbatch.bench.pictures import photo, photos, write_jpeg
from vlmbatch.bench.rows import Measurement, share, spread, summarize
from vlmbatch.bench.subject import Outcome, used_bytes
from vlmbatch.core import Conversation, Question, Request
from vlmbatch.engine.timing import lengthen
from vlmbatch.engine.torch.device import empty_cache
from vlmbatch.job import Detail
from vlmbatch.prepare.compiled import shared_resizer
from vlmbatch.read.pictures.decode import load_image
from vlmbatch.wording import number_of

MAX_PIXELS = 200_000_000
SAMPLE_SECONDS = 0.005


def gemm(bench: Bench) -> Iterator[Measurement]:
    """Measure the ceiling of matrix products in the model's sizes."""
    ceiling = bench.gemm
    yield Measurement(
        "gemm",
        ceiling.what,
        ceiling.per_second / 1e9,
        "GFLOP/s",
        "the ceiling of computing",
        {"gflops": {k: v / 1e9 for k, v in ceiling.all.items()}},
    )


def copy(bench: Bench) -> Iterator[Measurement]:
    """Measure the ceiling of copies in the device's memory."""
    yield Measurement(
        "copy", bench.copy.what, bench.copy.per_second / 1e9, "GB/s", "the ceiling of moving data"
    )


def vision(bench: Bench) -> Iterator[Measurement]:
    """Measure the vision encoder on distinct tiles."""
    subject = bench.subject
    requests = subject.requests(photos(bench.sizes.tiles), [PROMPT], "low")
    bench.warm(requests, 1)
    outcomes = [subject.run(requests, 1) for _ in range(bench.sizes.rounds)]
    rates = [outcome.stats.tiles / outcome.stats.vision_seconds for outcome in outcomes]
    rate = statistics.median(rates)
    operations = flops.tile_flops(subject.shape)
    calls = outcomes[0].stats.vision_calls
    details = {
        "tiles_per_second": summarize(rates),
        "gflop_per_tile": operations / 1e9,
        "share_of_gemm": operations * rate / bench.gemm.per_second,
        "tiles": len(requests),
        "calls": calls,
    }
    what = f"{len(requests)} tiles in {number_of(calls, 'call')}"
    yield Measurement(
        "vision",
        what,
        1 / rate,
        "s a tile",
        share(operations * rate, bench.gemm.per_second, "gemm"),
        details,
    )


def prefill(bench: Bench) -> Iterator[Measurement]:
    """Measure prefill of prompts with one tile and many words; the vision part is not counted."""
    subject, sizes = bench.subject, bench.sizes
    tokens = min(sizes.prompt_tokens, subject.shape.text.context - 8)
    requests = [
        lengthen(request, tokens)
        for request in subject.requests(photos(sizes.prompts), [PROMPT], "low")
    ]
    bench.warm(requests, 1)
    outcomes = [subject.run(requests, 1) for _ in range(bench.sizes.rounds)]
    rates = [outcome.stats.prefill_tokens / outcome.stats.prefill_seconds for outcome in outcomes]
    rate = statistics.median(rates)
    operations = sum(
        flops.prompt_flops(subject.shape, request.payload.prompt_tokens) for request in requests
    ) / sum(r.payload.prompt_tokens for r in requests)
    details = {
        "tokens_per_second": summarize(rates),
        "gflop_per_token": operations / 1e9,
        "share_of_gemm": operations * rate / bench.gemm.per_second,
        "prompts": len(requests),
        "prompt_tokens": requests[0].payload.prompt_tokens,
    }
    note = share(operations * rate, bench.gemm.per_second, "gemm")
    what = f"{number_of(len(requests), 'prompt')} of {requests[0].payload.prompt_tokens} tokens"
    yield Measurement("prefill", what, rate, "tokens/s", note, details)


def decode(bench: Bench) -> Iterator[Measurement]:
    """Measure decoding alone: questions about one tile, so that all start together and nothing is
    encoded meanwhile.

    A reference continues as many prompts of as many tokens.
    """
    subject, sizes = bench.subject, bench.sizes
    weights = flops.step_weight_bytes(
        subject.shape, 1 if subject.quantize == "int8" else subject.dtype.itemsize
    )
    for count in sizes.decode_sequences:
        request = subject.requests(
            [photo(0, 640, 480)], [f"What is in part {number}?" for number in range(count)], "low"
        )
        bench.warm(request, sizes.decode_tokens)
        outcomes, theirs = [], []
        for _ in range(sizes.rounds):
            outcomes.append(subject.run(request, sizes.decode_tokens))
            if bench.reference is not None:
                theirs.append(
                    bench.reference.decode_rate(
                        count, request[0].payload.prompt_tokens, sizes.decode_tokens
                    )
                )
        rates = [outcome.stats.decode_tokens / outcome.stats.decode_seconds for outcome in outcomes]
        rate, together = statistics.median(rates), outcomes[0].batch_size
        cached = request[0].payload.prompt_tokens + sizes.decode_tokens // 2
        moved = weights * rate / together
        computed = flops.token_flops(subject.shape, cached) * rate
        details = {
            "tokens_per_second": summarize(rates),
            "sequences": count,
            "together": together,
            "prompt_tokens": request[0].payload.prompt_tokens,
            "new_tokens": sizes.decode_tokens,
            "weight_bytes_per_step": weights,
            "share_of_copy": moved / bench.copy.per_second,
            "share_of_gemm": computed / bench.gemm.per_second,
        }
        what = number_of(count, "sequence") + (
            f", {together} at a time" if together < count else ""
        )
        note = (
            share(moved, bench.copy.per_second, "copy")
            if together == 1
            else share(computed, bench.gemm.per_second, "gemm")
        )
        yield Measurement("decode", what, rate, "tokens/s", note, details)
        if theirs:
            yield _ratio("decode", f"generate, {number_of(count, 'sequence')}", rates, theirs)


def first_token(bench: Bench) -> Iterator[Measurement]:
    """Measure the time to first token of a prepared request on an idle engine."""
    subject = bench.subject
    kinds: dict[Detail, str] = {"low": "a frame of one tile", "full": "a photo at full detail"}
    for detail, name in kinds.items():
        if detail == "full" and bench.sizes.rounds == 1 and subject.device.type == "cpu":
            continue  # many tiles, several times, would be most of a quick run
        begun = time.perf_counter()
        requests = subject.requests([photo(0, 640, 480)], [PROMPT], detail)
        prepare_seconds = time.perf_counter() - begun
        seconds = subject.first_token_seconds(requests[0], max(3, bench.sizes.rounds))
        details = {
            "seconds": summarize(seconds),
            "prepare_seconds": prepare_seconds,
            "tiles": requests[0].tiles,
            "tokens": requests[0].payload.prompt_tokens,
        }
        what = (
            f"{name} ({number_of(requests[0].tiles or 0, 'tile')}, "
            f"{requests[0].payload.prompt_tokens} tokens)"
        )
        yield Measurement(
            "first-token", what, statistics.median(seconds), "s", spread(seconds), details
        )


def memory(bench: Bench) -> Iterator[Measurement]:
    """Measure the peak memory of photos at full detail, beside the budget of weights, tiles, keys
    and values.
    """
    subject, new_tokens = bench.subject, 16
    engine = subject.engine
    requests = subject.requests(photos(bench.sizes.photos), [PROMPT], "full")
    subject.run(requests[:1], 1)  # on CUDA the first encoder call measures the memory of a tile
    empty_cache(subject.device)  # memory freed by earlier rows would be part of the baseline
    baseline = used_bytes(subject.device)
    peak, outcome = peak_bytes(lambda: subject.run(requests, new_tokens), subject.device)
    figures = engine.stats.memory
    tiles = min(figures["tiles_at_once"], sum((request.tiles or 0) for request in requests))
    longest = max(request.payload.prompt_tokens for request in requests) + new_tokens
    parts = {
        "weight_bytes": figures["weight_bytes"],
        "activation_bytes": tiles * figures["tile_bytes"],
        "cache_bytes": outcome.batch_size * longest * figures["kv_bytes_per_token"],
    }
    predicted, taken = sum(parts.values()), peak - baseline + figures["weight_bytes"]
    details = {
        "peak_bytes": taken,
        "predicted_bytes": predicted,
        **parts,
        "limit_bytes": figures["limit_bytes"],
        "sequences": outcome.batch_size,
    }
    what = f"{len(requests)} photos at full detail, {outcome.batch_size} at a time"
    note = (
        f"{100 * taken / predicted:.0f} % of the {predicted / 1e6:,.0f} MB predicted; the "
        f"limit is {figures['limit_bytes'] / 1e6:,.0f} MB"
    )
    yield Measurement("memory", what, taken / 1e6, "MB", note, details)


def peak_bytes(call: Callable[[], Outcome], device: torch.device) -> tuple[int, Outcome]:
    """Peak memory during a call, in bytes: CUDA's own count, elsewhere polled every few
    milliseconds.
    """
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        outcome = call()
        return torch.cuda.max_memory_allocated(device), outcome
    highest, ended = used_bytes(device), threading.Event()

    def watch() -> None:
        nonlocal highest
        while not ended.wait(SAMPLE_SECONDS):
            highest = max(highest, used_bytes(device))

    watcher = threading.Thread(target=watch, name="memory", daemon=True)
    watcher.start()
    try:
        outcome = call()
    finally:
        ended.set()
        watcher.join()
    return max(highest, used_bytes(device)), outcome


def reading(bench: Bench) -> Iterator[Measurement]:
    """Measure reading JPEG files into requests on one thread, as a reading worker does; in turns
    with the reference's processor, if there is one.
    """
    shared_resizer(bench.subject.options.cache_folder).compile_now()
    preparer = bench.subject.preparer("full")
    with tempfile.TemporaryDirectory() as folder:
        for width, height in bench.sizes.files:
            path = write_jpeg(Path(folder) / f"{width}.jpg", width, height)

            def load_and_prepare(path: Path = path) -> Request:
                pixels = load_image(str(path), MAX_PIXELS)
                return preparer.prepare(Conversation.about("image", pixels), [Question(PROMPT)])

            tiles = load_and_prepare().tiles
            times: list[float] = []
            theirs: list[float] = []
            ends = time.perf_counter() + bench.sizes.ceiling_seconds
            while len(times) < 5 or time.perf_counter() < ends:
                times.append(timed(load_and_prepare))
                if bench.reference is not None:
                    theirs.append(timed(functools.partial(bench.reference.prepare, path)))
            rate = 1 / statistics.median(times)
            details = {
                "seconds": summarize(times),
                "file_bytes": path.stat().st_size,
                "tiles": tiles,
                "cores": psutil.cpu_count(),
            }
            what = f"JPEG of {width} x {height}, {path.stat().st_size / 1e6:.1f} MB"
            yield Measurement("reading", what, rate, "images/s", "a core", details)
            if theirs:
                yield _ratio(
                    "reading",
                    "transformers' image processor",
                    [1 / seconds for seconds in times],
                    [1 / seconds for seconds in theirs],
                )


def _ratio(name: str, over: str, ours: Sequence[float], theirs: Sequence[float]) -> Measurement:
    """Make the row of a comparison of rates measured in turns."""
    ratios = [mine / their for mine, their in zip(ours, theirs, strict=True)]
    details = {"ratio": summarize(ratios), "per_second": summarize(theirs)}
    return Measurement(
        name, f"  over {over}", statistics.median(ratios), "x", spread(ratios), details
    )


PHASES: dict[str, Callable[[Bench], Iterator[Measurement]]] = {
    "gemm": gemm,
    "copy": copy,
    "reading": reading,
    "vision": vision,
    "prefill": prefill,
    "decode": decode,
    "first-token": first_token,
    "memory": memory,
}
"""The phases by name."""
