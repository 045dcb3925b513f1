"""Effects of ``--quantize int8``: answers of the demo model about drawn scenes, logits of random
weights in a published shape, and speed.

    python -m benchmarks.quantized --scenes 300
    python -m benchmarks.quantized --shape 256m
    python -m benchmarks.quantized --shape 256m --speed
"""

from __future__ import annotations

import argparse
import functools
import time
from collections.abc import Callable

import numpy as np
import torch

from training import scenes
from vlmbatch.bench.checkpoint import cached_checkpoint
from vlmbatch.core import Conversation, Pixels, Question, Request
from vlmbatch.engine import RequestQueue, open_engine
from vlmbatch.engine.torch.cache import Cache, DecodeAttention, PrefillAttention, Segment, Slot
from vlmbatch.engine.torch.engine import TorchEngine
from vlmbatch.job import Job
from vlmbatch.tasks import DEFAULT_PROMPTS

PROMPT_TOKENS, NEW_TOKENS = 48, 48


def open_both(model: str, dtype: str) -> list[TorchEngine]:
    """Open an engine without and one with int8 weights; the one without loads first."""
    jobs = [
        Job.from_dict({"model": model, "device": "cpu", "dtype": dtype, "quantize": quantize})
        for quantize in ("none", "int8")
    ]
    engines = [open_engine(job) for job in jobs]
    return [engine for engine in engines if isinstance(engine, TorchEngine)]


def answers_about_scenes(count: int, seed: int) -> None:
    """Ask the demo model for a caption and three answers about each scene, twice."""
    rng = np.random.default_rng(seed)
    drawn = [scenes.random_scene(rng, longest=(64, 1024)) for _ in range(count)]
    asked = [
        [
            (DEFAULT_PROMPTS["caption"], s.caption),
            *[s.questions[int(i)] for i in rng.permutation(len(s.questions))[:3]],
        ]
        for s in drawn
    ]
    found = []
    for engine in open_both("demo", "float32"):
        queue = RequestQueue(count + 1, 1 << 62)
        for number, (scene, pairs) in enumerate(zip(drawn, asked, strict=True)):
            request: Request = engine.prepare(
                Conversation.about("image", Pixels([np.ascontiguousarray(scene.pixels)])),
                [Question(text) for text, _ in pairs],
            )
            request.tag = number
            queue.put(request)
        queue.close()
        found.append({(done.request.tag, done.question): done for done in engine.run(queue)})
    plain, small = found
    equal = [plain[key].text == small[key].text for key in plain]
    right = [
        np.mean([answers[i, q].text == asked[i][q][1] for i, q in answers]) for answers in found
    ]
    moved = [
        abs((plain[key].mean_logprob or 0) - (small[key].mean_logprob or 0))
        for key, same in zip(plain, equal, strict=True)
        if same
    ]
    print(
        f"{len(equal)} answers about {count} scenes: {len(equal) - sum(equal)} change "
        f"({100 * (1 - np.mean(equal)):.2f} %)"
    )
    print(
        f"right: {100 * right[0]:.2f} % before, {100 * right[1]:.2f} % with int8; mean |change "
        f"of mean_logprob| of equal answers {np.mean(moved):.5f}"
    )


@torch.inference_mode()
def logits_of_random_weights(shape: str, dtype: str, sequences: int) -> None:
    """Let the plain weights choose tokens, and compare both models on each: the most likely token,
    and the log-probability of the chosen one.
    """
    plain, small = open_both(str(cached_checkpoint(shape)), dtype)
    print("8-bit products:", plain.stats.kernels, small.stats.kernels)
    prompts = torch.randint(
        20, 400, (sequences, PROMPT_TOKENS), generator=torch.Generator().manual_seed(0)
    )
    caches = [
        Cache(engine.network.shape.text, engine.network.device, engine.network.dtype)
        for engine in (plain, small)
    ]
    logits = []
    slots = [_take(cache, sequences) for cache in caches]
    for engine, rows in zip((plain, small), slots, strict=True):
        language = engine.network.language
        prefill = PrefillAttention(
            [Segment(row, PROMPT_TOKENS) for row in rows], language.attend_prompt
        )
        hidden = language(
            language.embed(prompts.reshape(-1)),
            torch.arange(PROMPT_TOKENS).repeat(sequences),
            prefill,
        )
        prefill.finish()
        logits.append(language.logits(hidden[PROMPT_TOKENS - 1 :: PROMPT_TOKENS]))
    same, moved = [], []
    for step in range(NEW_TOKENS):
        tokens = logits[0].argmax(-1)
        same += (logits[1].argmax(-1) == tokens).tolist()
        chosen = [each.log_softmax(-1).gather(1, tokens[:, None]) for each in logits]
        moved += (chosen[0] - chosen[1]).abs().flatten().tolist()
        for place, (engine, cache) in enumerate(zip((plain, small), caches, strict=True)):
            attend = DecodeAttention(cache, slots[place])
            language = engine.network.language
            hidden = language(
                language.embed(tokens), torch.full((sequences,), PROMPT_TOKENS + step), attend
            )
            attend.finish()
            logits[place] = language.logits(hidden)
    print(
        f"{shape}, {dtype}, random weights: {100 * np.mean(same):.2f} % of {len(same)} greedy "
        f"tokens equal, mean |change of logprob| {np.mean(moved):.5f}"
    )


@torch.inference_mode()
def speed(shape: str, dtype: str) -> None:
    """Time decode steps and prefills with and without int8 weights, in turns; the minimum of each
    counts.
    """
    engines = open_both(str(cached_checkpoint(shape)), dtype)
    for sequences in (1, 4, 16, 64):
        best = _fastest(
            [functools.partial(_step, engine, *_places(engine, sequences)) for engine in engines],
            12,
        )
        print(
            f"decode, {sequences} at a time: {best[0] * 1e3:.1f} ms a step, {best[1] * 1e3:.1f} "
            f"with int8: {best[0] / best[1]:.2f} x"
        )
    best = _fastest([functools.partial(_prefill, engine) for engine in engines], 4)
    print(
        f"prefill, 1,024 tokens: {best[0]:.2f} s, {best[1]:.2f} with int8: "
        f"{best[0] / best[1]:.2f} x"
    )


def _take(cache: Cache, sequences: int) -> list[Slot]:
    rows = [cache.take(PROMPT_TOKENS + NEW_TOKENS) for _ in range(sequences)]
    return [row for row in rows if row is not None]


def _places(engine: TorchEngine, sequences: int) -> tuple[Cache, list[Slot]]:
    cache = Cache(engine.network.shape.text, engine.network.device, engine.network.dtype)
    rows = _take(cache, sequences)
    for row in rows:
        row.length = PROMPT_TOKENS
    return cache, rows


def _step(engine: TorchEngine, cache: Cache, rows: list[Slot]) -> None:
    language, positions = engine.network.language, torch.full((len(rows),), PROMPT_TOKENS)
    attend = DecodeAttention(cache, rows)
    language.logits(language(language.embed(positions), positions, attend)).argmax(-1)


def _prefill(engine: TorchEngine) -> None:
    cache, language = (
        Cache(engine.network.shape.text, engine.network.device, engine.network.dtype),
        engine.network.language,
    )
    row = cache.take(1024)
    assert row is not None
    positions = torch.arange(1024)
    language.logits(
        language(
            language.embed(positions),
            positions,
            PrefillAttention([Segment(row, 1024)], language.attend_prompt),
        )[-1:]
    )


def _fastest(calls: list[Callable[[], None]], rounds: int) -> list[float]:
    best = [float("inf")] * len(calls)
    for number in range(rounds + 1):
        for place, call in enumerate(calls):
            begun = time.perf_counter()
            call()
            if number:
                best[place] = min(best[place], time.perf_counter() - begun)
    return best


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--scenes", type=int, default=0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--shape", default=None)
    parser.add_argument("--speed", action="store_true")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--sequences", type=int, default=8)
    options = parser.parse_args()
    if options.scenes:
        answers_about_scenes(options.scenes, options.seed)
    if options.shape:
        (
            speed(options.shape, options.dtype)
            if options.speed
            else logits_of_random_weights(options.shape, options.dtype, options.sequences)
        )


if __name__ == "__main__":
    main()
