"""The same requests to two engines, and how far their tokens agree."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from tests.engine.reference import answers
from vlmbatch.core import Conversation, Pixels, Question, Request
from vlmbatch.engine import Engine
from vlmbatch.job import EngineOptions


def options(folder: Path, name: str = "onnx", **more: Any) -> EngineOptions:
    return EngineOptions(**{"model": str(folder), "engine": name, "device": "cpu"} | more)


def picture(seed: int, width: int = 70, height: int = 50) -> Pixels:
    rng = np.random.default_rng(seed)
    return Pixels([rng.integers(0, 256, (height, width, 3), np.uint8)])


def clip(seed: int) -> Pixels:
    rng = np.random.default_rng(seed)
    frames = [rng.integers(0, 256, (40, 60, 3), np.uint8) for _ in range(seed % 3 + 2)]
    return Pixels(frames, times_seconds=[float(n) for n in range(len(frames))])


def requests(engine: Engine, clips: bool = True) -> list[Request]:
    """Pictures, clips and text of unequal lengths, with one to three questions."""
    found = []
    for seed in range(12):
        is_clip = clips and seed % 3 == 2
        pixels = clip(seed) if is_clip else picture(seed, 20 + 13 * seed, 90 - 6 * seed)
        about = Conversation.about("clip" if is_clip else "image", pixels, str(seed))
        asked = [
            Question(f"What is {number} {'here ' * seed}?", max_new_tokens=5 + 4 * number + seed)
            for number in range(seed % 3 + 1)
        ]
        found.append(engine.prepare(Conversation(key="t") if seed == 7 else about, asked))
    return found


def agreement(one: Engine, other: Engine, clips: bool = True) -> float:
    """Share of tokens that two engines have in common, up to the first difference."""
    mine, theirs = answers(one, requests(one, clips)), answers(other, requests(other, clips))
    equal = total = 0
    for key, tokens in theirs.items():
        same = [a == b for a, b in zip(mine[key], tokens, strict=False)]
        equal += same.index(False) if False in same else len(same)
        total += len(tokens)
    return equal / total
