"""The engine against transformers' ``generate`` on the same checkpoint and the same work, alternating in one process.

    python -m benchmarks.engine --shape 256m                 # random weights in the true shapes, float32
    python -m benchmarks.engine --model demo

Work: video frames of one tile each, and several questions about one picture. The reference runs one request at a time, and in one batch (frames only: their
prompts are equally long, so it needs no padding). Answers are compared token by token.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
import transformers

from benchmarks.checkpoint import SHAPES, write_checkpoint
from vlmbatch.checkpoint import find_checkpoint
from vlmbatch.engine import RequestQueue, open_engine
from vlmbatch.job import Job
from vlmbatch.prepare import Preparer
from vlmbatch.records import Conversation, Pixels, Request

QUESTIONS = [f"What is in part {number} of the picture?" for number in range(8)]


class Comparison:
    """Both engines on one checkpoint."""

    def __init__(self, model: str, new_tokens: int) -> None:
        transformers.utils.logging.disable_progress_bar()
        checkpoint = find_checkpoint(model)
        self.new_tokens = new_tokens
        self.low = Preparer.from_checkpoint(checkpoint, "low")
        self.full = Preparer.from_checkpoint(checkpoint, "full")
        self.end_ids = checkpoint.end_token_ids()
        job = Job(inputs=("x",), model=model, max_new_tokens=new_tokens, dtype="float32", device="cpu")
        self.engine = open_engine(job, checkpoint, self.low.prepare, lambda ids: " ".join(map(str, ids)))
        self.reference = transformers.SmolVLMForConditionalGeneration.from_pretrained(checkpoint.folder, dtype=torch.float32).eval()

    def ours(self, requests: list[Request]) -> list[str]:
        queue = RequestQueue(len(requests) + 1, 1 << 40)
        for number, request in enumerate(requests):
            request.tag = number
            queue.put(request)
        queue.close()
        found = {(done.request.tag, done.question): done.text or "" for done in self.engine.run(queue)}
        return [found[key] for key in sorted(found)]

    @torch.inference_mode()
    def theirs(self, requests: list[Request], batch: int) -> list[str]:
        rows = [(request, question) for request in requests for question in request.questions]
        texts = []
        for begin in range(0, len(rows), batch):
            part = rows[begin : begin + batch]
            ids = torch.tensor([[*request.prefix_ids, *question] for request, question in part])
            pixels = torch.stack([(torch.from_numpy(request.tiles).float() / 255 - 0.5) / 0.5 for request, _ in part])
            mask = torch.ones_like(ids)
            out = self.reference.generate(
                input_ids=ids, attention_mask=mask, pixel_values=pixels, max_new_tokens=self.new_tokens, do_sample=False, pad_token_id=2
            )
            texts += [" ".join(str(t) for t in self._cut(row[ids.shape[1] :].tolist())) for row in out]
        return texts

    def _cut(self, tokens: list[int]) -> list[int]:
        ends = [place for place, token in enumerate(tokens) if token in self.end_ids]
        return tokens[: ends[0]] if ends else tokens


def compare(name: str, ways: dict[str, Callable[[], list[str]]], rounds: int) -> dict[str, object]:
    """Runs all ways in turn and prints the others' time over ours."""
    seconds: dict[str, list[float]] = {way: [] for way in ways}
    answers = {}
    for _ in range(rounds):
        for way, call in ways.items():
            started = time.perf_counter()
            answers[way] = call()
            seconds[way].append(time.perf_counter() - started)
    same = {way: sum(a == b for a, b in zip(found, answers["ours"], strict=True)) for way, found in answers.items()}
    result: dict[str, object] = {"work": name, "answers": len(answers["ours"]), "ours_seconds": statistics.median(seconds["ours"])}
    print(f"{name}: ours {result['ours_seconds']:.2f} s")
    for way in list(ways)[1:]:
        ratios = sorted(theirs / ours for theirs, ours in zip(seconds[way], seconds["ours"], strict=True))
        print(f"  {way:<28}{statistics.median(ratios):5.2f}x ({ratios[0]:.2f} to {ratios[-1]:.2f}), {same[way]} of {len(answers['ours'])} answers equal")
        result[way] = {"ratio": statistics.median(ratios), "least": ratios[0], "most": ratios[-1], "equal": same[way]}
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="a checkpoint's folder, a hub id, or demo")
    parser.add_argument("--shape", choices=SHAPES, default="256m", help="random weights in these shapes, when there is no --model")
    parser.add_argument("--frames", type=int, default=16)
    parser.add_argument("--new-tokens", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", type=Path, metavar="FILE")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        model = arguments.model or str(write_checkpoint(arguments.shape, Path(folder) / arguments.shape))
        both = Comparison(model, arguments.new_tokens)
    rng = np.random.default_rng(0)
    pictures = [np.kron(rng.integers(0, 256, (12, 16, 3), dtype=np.uint8), np.ones((16, 16, 1), np.uint8)) for _ in range(arguments.frames)]
    frames = [both.low.prepare(Conversation("frame", Pixels([picture])), ["Describe this image in one sentence."]) for picture in pictures]
    asked = [both.low.prepare(Conversation("image", Pixels([pictures[0]])), QUESTIONS)]
    both.ours(frames[:1]), both.theirs(frames[:1], 1)
    results = [
        compare(
            f"{len(frames)} frames of one tile, {arguments.new_tokens} new tokens",
            {
                "ours": lambda: both.ours(frames),
                "generate, one at a time": lambda: both.theirs(frames, 1),
                f"generate, batch of {len(frames)}": lambda: both.theirs(frames, len(frames)),
            },
            arguments.rounds,
        ),
        compare(
            f"{len(QUESTIONS)} questions about one picture of one tile",
            {"ours": lambda: both.ours(asked), "generate, one at a time": lambda: both.theirs(asked, 1)},
            arguments.rounds,
        ),
    ]
    if arguments.json:
        arguments.json.write_text(json.dumps(results, indent=2))


if __name__ == "__main__":
    main()
