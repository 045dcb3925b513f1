"""Measure when the first answers come while other photos wait to be encoded, and what it costs.

    python -m benchmarks.first_answers          # 256M shape, 8 photos of 13 tiles, 48 tokens

One photo alone; then all photos at once, with the pace of decoding (``engine/torch/pace.py``) and
without it, in turns. The photos are drawn and prepared before; the engine is the same.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Sequence

from vlmbatch.bench.bench import PROMPT
from vlmbatch.bench.checkpoint import cached_checkpoint
from vlmbatch.bench.pictures import photo
from vlmbatch.bench.shapes import SHAPES
from vlmbatch.bench.subject import Subject
from vlmbatch.checkpoint import find_checkpoint
from vlmbatch.core import Request
from vlmbatch.engine.timing import again, closed_queue
from vlmbatch.engine.torch.pace import Pace, Pending
from vlmbatch.job import EngineOptions


class NoPace(Pace):
    """Encodes all photos first, as if decoding never came before an encoder call."""

    def wants_step(self, live: Sequence[Pending]) -> bool:
        """Return False."""
        return False


def run(subject: Subject, requests: Sequence[Request], tokens: int, pace: Pace) -> list[float]:
    """Answer requests, and return the seconds after which each answer was there, in order."""
    engine = subject.engine
    engine.pace = pace
    work = [again(request, tokens, number) for number, request in enumerate(requests)]
    begun = time.perf_counter()
    found = []
    for done in engine.run(closed_queue(work)):
        if done.error is not None:
            raise done.error
        found.append(time.perf_counter() - begun)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--shape", choices=SHAPES, default="256m")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--photos", type=int, default=8)
    parser.add_argument("--new-tokens", type=int, default=48)
    parser.add_argument("--rounds", type=int, default=2)
    asked = parser.parse_args()
    checkpoint = find_checkpoint(str(cached_checkpoint(asked.shape)))
    options = EngineOptions(device="cpu", dtype=asked.dtype, max_new_tokens=asked.new_tokens)
    subject = Subject(options, checkpoint, asked.shape)
    pictures = [photo(number, 640, 480) for number in range(asked.photos)]
    requests = subject.requests(pictures, [PROMPT], "full")
    run(subject, requests[:1], asked.new_tokens, Pace())  # warm-up
    alone, paced, unpaced = [], [], []
    for _ in range(asked.rounds):
        alone.append(run(subject, requests[:1], asked.new_tokens, Pace())[0])
        paced.append(run(subject, requests, asked.new_tokens, Pace()))
        unpaced.append(run(subject, requests, asked.new_tokens, NoPace()))
    one = statistics.median(alone)
    print(f"{asked.photos} photos of {requests[0].tiles} tiles, {asked.new_tokens} tokens each")
    print(f"{'':<18}{'first':>10}{'over one':>10}{'half':>10}{'all':>10}")
    print(f"{'one alone':<18}{one:>8.1f} s")
    for name, rounds in (("with the pace", paced), ("encoders first", unpaced)):
        first, half, last = (
            statistics.median(seconds[place] for seconds in rounds)
            for place in (0, asked.photos // 2, -1)
        )
        print(f"{name:<18}{first:>8.1f} s{first / one:>9.2f}x{half:>8.1f} s{last:>8.1f} s")
    ratios = sorted(a[-1] / b[-1] for a, b in zip(paced, unpaced, strict=True))
    print(f"all, with over without: {', '.join(f'{ratio:.3f}' for ratio in ratios)}")


if __name__ == "__main__":
    main()
