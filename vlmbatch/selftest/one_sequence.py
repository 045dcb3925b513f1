"""Speed of int8 beside bfloat16 with one sequence on this CPU: 8-bit integers always save memory,
and on some processors no time.

The model has random weights in the shape of the 256M checkpoint's language model. The rates are
kept in the folder for caches, where plain ``doctor`` finds them.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import tempfile
from pathlib import Path
from typing import Any

import torch

import vlmbatch
from vlmbatch.bench.bench import PROMPT
from vlmbatch.bench.checkpoint import write_checkpoint
from vlmbatch.bench.pictures import photo
from vlmbatch.bench.subject import Subject
from vlmbatch.checkpoint import find_checkpoint
from vlmbatch.engine.threads import num_threads
from vlmbatch.engine.torch.cpu.choices import processor_model
from vlmbatch.engine.torch.cpu.timing import Stopwatch
from vlmbatch.job import EngineOptions
from vlmbatch.selftest.checks import Check

NAME = "int8, one sequence"
SHAPE = "256m"
FOLDER = "one_sequence"
WARM_TOKENS, TIMED_TOKENS, ROUNDS = 4, 32, 3
HOW = "vlmbatch doctor --selftest --quantize int8"
"""Command that measures."""
SLOWER = (
    "for a chat, or one picture at a time, leave out --quantize int8: it saves memory, not time"
)


@dataclasses.dataclass(frozen=True)
class Rates:
    """Tokens a second of one sequence."""

    int8: float
    bfloat16: float

    @property
    def is_int8_slower(self) -> bool:
        """True if bfloat16 is faster."""
        return self.int8 < self.bfloat16

    def describe(self) -> str:
        """Write the rates."""
        return (
            f"{self.int8:.3g} tokens/s, {self.bfloat16:.3g} in bfloat16 ({SHAPE} shape): "
            f"{self.int8 / self.bfloat16:.2f}x"
        )

    def check(self) -> Check:
        """Say whether int8 costs time."""
        if self.is_int8_slower:
            return Check(NAME, "warn", self.describe(), SLOWER)
        return Check(NAME, "pass", self.describe())


def settle_rates(options: EngineOptions) -> Rates:
    """Return the rates that are kept for this machine, or measure them. They are kept if other
    programs left the machine alone meanwhile.

    Raises:
        OutputError: There is no room for the random weights; the message names TMPDIR.
        EngineError: The engine cannot be opened.
    """
    threads = num_threads(options)
    kept = kept_rates(options.cache_folder, threads)
    if kept is not None:
        return kept
    watch = Stopwatch(threads)
    with tempfile.TemporaryDirectory(prefix="vlmbatch-selftest-") as folder:
        rates = measure_rates(write_checkpoint(SHAPE, Path(folder), vision_layers=1), options)
    if watch.steadiness().is_steady:
        keep_rates(options.cache_folder, threads, rates)
    return rates


def measure_rates(folder: Path, options: EngineOptions) -> Rates:
    """Time decode steps of one sequence, in bfloat16 and with 8-bit integers.

    Args:
        folder: The checkpoint.
        options: Threads and folder for caches.
    """

    def rate(**changes: Any) -> float:
        changed = dataclasses.replace(
            EngineOptions(max_new_tokens=TIMED_TOKENS, device="cpu", **changes),
            threads=options.threads,
            cache_dir=options.cache_dir,
        )
        subject = Subject(changed, find_checkpoint(str(folder)), SHAPE)
        try:
            requests = subject.requests([photo(0, 64, 64)], [PROMPT], "low")
            subject.run(requests, WARM_TOKENS)
            found = [subject.run(requests, TIMED_TOKENS).stats for _ in range(ROUNDS)]
        finally:
            subject.close()
        return max(stats.decode_tokens / stats.decode_seconds for stats in found)

    bfloat16 = rate(dtype="bfloat16")
    return Rates(rate(quantize="int8"), bfloat16)


def kept_rates(cache: Path, threads: int) -> Rates | None:
    """Return the rates that were measured with so many threads; None if there are none."""
    try:
        found = json.loads(_path(cache, threads).read_text(encoding="utf-8"))
        return Rates(float(found["int8"]), float(found["bfloat16"]))
    except (OSError, ValueError, KeyError, TypeError):
        return None


def keep_rates(cache: Path, threads: int, rates: Rates) -> None:
    """Keep rates; without a writable folder they are measured again next time."""
    path = _path(cache, threads)
    with contextlib.suppress(OSError):
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        path.write_text(json.dumps(dataclasses.asdict(rates)), encoding="utf-8")


def _path(cache: Path, threads: int) -> Path:
    """Return the file of this processor, with these versions."""
    key = [processor_model(), str(torch.__version__), vlmbatch.__version__, threads]
    digest = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()
    return cache / FOLDER / f"{digest[:24]}.json"
