"""Turns drawn scenes into packed training examples, with the same preparation that answers use.

One example is one picture or clip with several questions. The prefix (chat opening and image
tokens) stands once, every question and answer continues it: position ids restart behind the prefix
and the mask hides the other questions, as the engine does it.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from training import scenes
from training.optimizer import Schedule
from training.patches import IntArray, patch_labels
from vlmbatch.checkpoint import Checkpoint
from vlmbatch.finetune.examples import IGNORED
from vlmbatch.prepare.prompt import PromptWriter
from vlmbatch.prepare.tiles import TilePlan, TileSettings, cut_tiles

PAD = 2
LIGHT_SHARE = 0.6
"""Share of the mixture's steps in which most pictures are at native detail: a third of the work of
full detail.
"""
READING = 0.6
"""Share of words and numbers among the pictures."""
HARD = 0.8
"""Share of scenes of which the one with more shapes or characters of two is taken: what the model
learns last.
"""
ONE_TILE = (64, 448)
"""Longest edges of pictures that are scaled to one tile; of larger ones it looks the same."""
REPLAYED = 3
"""Drawing costs as much as learning, so one of so many examples in a batch is new; the others were
drawn before.
"""
KEPT = 20_000
"""Examples that are kept for that."""


@dataclasses.dataclass(frozen=True)
class Example:
    """One packed picture or clip.

    Attributes:
        tiles: uint8, (n_tiles, 3, E, E).
        patches: What each patch shows, int64, (n_tiles, PATCHES², 4): shape, colour, and the
            characters in its left and in its right half, each as one class with its place in
            reading order among what the tile shows (``patches.PATCH_CLASSES``); 0 for none,
            -100 for not asked.
        prefix: Token ids up to the last media token.
        asked: For each question its token ids and those of its answer.
        kinds: For each question its kind, for scoring.
    """

    tiles: npt.NDArray[np.uint8]
    patches: IntArray
    prefix: list[int]
    asked: list[tuple[list[int], list[int]]]
    kinds: list[str]

    def length(self) -> int:
        """Tokens of the packed example."""
        return len(self.prefix) + sum(len(q) + len(a) - 1 for q, a in self.asked)


class ExampleMaker:
    """Draws scenes and prepares them."""

    def __init__(self, checkpoint: Checkpoint, reading: float = READING) -> None:
        self.reading = reading
        settings = checkpoint.image_processor()
        edge = settings["max_image_size"]["longest_edge"]
        self.prompt = PromptWriter.from_checkpoint(checkpoint)
        self.full = TileSettings(settings["size"]["longest_edge"], edge)
        self.low = dataclasses.replace(self.full, split=False)
        self.video = TileSettings(edge, edge, split=False)

    def random(self, rng: np.random.Generator, *, full: float = 0.35) -> Example:
        """A random example; ``full`` is the share of pictures at full detail (more tiles, so more
        work), half of the others are at native detail.
        """
        if rng.random() < 0.15:
            return self.clip(scenes.random_clip(rng), rng)
        in_full, as_one = rng.random() < full, False
        if in_full and rng.random() < 0.25:
            scene = scenes.random_page(rng, int(rng.integers(160, 480)))
        else:
            as_one = not in_full and rng.random() < 0.5
            longest = (
                (64, 1600)
                if rng.random() < 0.1
                else (64, 384)
                if in_full
                else ONE_TILE
                if as_one
                else (64, 192)
            )
            scene = scenes.random_scene(rng, longest=longest, reading=self.reading, hard=HARD)
        if rng.random() < 0.6:
            scene = dataclasses.replace(
                scene, pixels=scenes.jpeg(scene.pixels, int(rng.integers(60, 96)))
            )
        if in_full:
            return self.image(scene, rng, self.full)
        height, width = scene.pixels.shape[:2]
        return self.image(scene, rng, self.low if as_one else self.full.native(width, height))

    def tiny(self, rng: np.random.Generator) -> Example:
        """A random picture that is one tile: a fifth of the work of a large one."""
        scene = scenes.random_scene(rng, longest=ONE_TILE, reading=self.reading, hard=HARD)
        if rng.random() < 0.5:
            scene = dataclasses.replace(
                scene, pixels=scenes.jpeg(scene.pixels, int(rng.integers(60, 96)))
            )
        return self.image(scene, rng, self.low)

    def image(
        self, scene: scenes.Scene, rng: np.random.Generator, settings: TileSettings
    ) -> Example:
        """An example of a picture with a caption, its text and a few of its questions."""
        tiles, plan = cut_tiles(scene.pixels, settings)
        asked = [("caption", str(rng.choice(scenes.CAPTION_PROMPTS)), scene.caption)]
        if scene.text != "No text." or rng.random() < 0.4:
            asked.append(("reading", str(rng.choice(scenes.OCR_PROMPTS)), scene.text))
        asked += _pick_questions(scene, rng)
        ids = [(self.prompt.image_question(q), self._answer(a)) for _, q, a in asked]
        prefix = self.prompt.image_prefix(plan.rows, plan.cols)
        return Example(
            tiles,
            patch_labels(scene.labels, scene.things, plan, scene.pages),
            prefix,
            ids,
            [k for k, _, _ in asked],
        )

    def clip(self, clip: scenes.Clip, rng: np.random.Generator) -> Example:
        """An example of a clip with a caption and all its questions."""
        tiles = np.concatenate([cut_tiles(frame, self.video)[0] for frame in clip.frames])
        asked = [
            ("clip", str(rng.choice(scenes.CLIP_PROMPTS)), clip.caption),
            *(("clip", q, a) for q, a in clip.questions),
        ]
        ids = [(self.prompt.video_question(q), self._answer(a)) for _, q, a in asked]
        prefix = self.prompt.video_prefix(clip.times_seconds, clip.duration_seconds)
        patches = np.concatenate(
            [
                patch_labels(label, clip.things, TilePlan((0, 0), (0, 0), 0, 0))
                for label in clip.labels
            ]
        )
        return Example(tiles, patches, prefix, ids, [k for k, _, _ in asked])

    def _answer(self, answer: str) -> list[int]:
        return list(
            self.prompt.tokenizer.encode(
                f" {answer}<end_of_utterance>", add_special_tokens=False
            ).ids
        )


class AnswerSpan(NamedTuple):
    """Where an answer stands in a batch, and the kind of its question."""

    row: int
    start: int
    end: int
    kind: str


def collate(examples: Sequence[Example]) -> tuple[dict[str, torch.Tensor], list[AnswerSpan]]:
    """Packs B examples, the longest of L tokens, N tiles in all.

    Returns:
        ``tiles``, uint8, (N, 3, E, E); ``patches``, int64, (N, PATCHES², 4); ``input_ids``,
        ``position_ids`` and ``labels``, int64, (B, L), labels already shifted and -100 where no
        loss is taken; ``mask``, bool, (B, 1, L, L), True where a query may look. And where the
        answers stand.
    """
    # Lengths in steps of 32: fewer shapes, for which fewer kernels are set up and kept.
    rows, longest = len(examples), -(-max(e.length() for e in examples) // 32) * 32
    input_ids = np.full((rows, longest), PAD, np.int64)
    positions = np.zeros((rows, longest), np.int64)
    labels = np.full((rows, longest), IGNORED, np.int64)
    segment = np.full((rows, longest), -1, np.int64)
    spans = []
    for row, example in enumerate(examples):
        at = len(example.prefix)
        input_ids[row, :at] = example.prefix
        positions[row, :at] = np.arange(at)
        segment[row, :at] = 0
        for number, (question, answer) in enumerate(example.asked):
            ids = question + answer[:-1]
            end = at + len(ids)
            input_ids[row, at:end] = ids
            positions[row, at:end] = len(example.prefix) + np.arange(len(ids))
            segment[row, at:end] = number + 1
            labels[row, end - len(answer) : end] = answer
            spans.append(AnswerSpan(row, end - len(answer), end, example.kinds[number]))
            at = end
    causal = np.tril(np.ones((longest, longest), bool))
    same = (segment[:, :, None] == segment[:, None, :]) | (segment[:, None, :] == 0)
    mask = causal[None] & same
    batch = {
        "tiles": torch.from_numpy(np.concatenate([e.tiles for e in examples])),
        "patches": torch.from_numpy(np.concatenate([e.patches for e in examples])),
        "input_ids": torch.from_numpy(input_ids),
        "position_ids": torch.from_numpy(positions),
        "mask": torch.from_numpy(mask[:, None]),
        "labels": torch.from_numpy(labels),
    }
    return batch, spans


class Stages(torch.utils.data.IterableDataset[dict[str, torch.Tensor]]):
    """The batches of a training, from a step on: tiles for the vision encoder alone, then answers
    about pictures of one tile, then about everything.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        schedule: Schedule,
        start: int,
        *,
        tiles: int,
        examples: int,
        reading: float = READING,
    ) -> None:
        """Takes the step to begin with, and the size of a batch of tiles and of examples; batches
        of pictures of one tile hold twice as many.
        """
        self.checkpoint, self.schedule, self.start = checkpoint, schedule, start
        self.tiles, self.examples, self.reading = tiles, examples, reading

    def __iter__(self) -> Iterator[dict[str, torch.Tensor]]:
        torch.set_num_threads(1)
        maker = ExampleMaker(self.checkpoint, self.reading)
        rng = np.random.default_rng(self.start)
        schedule, step = self.schedule, self.start
        if step < schedule.vision:
            yield from itertools.islice(self._tiles(maker, rng), schedule.vision - step)
            step = schedule.vision
        if step < schedule.vision + schedule.tiny:
            yield from itertools.islice(
                self._answers(rng, 2 * self.examples, maker.tiny),
                schedule.vision + schedule.tiny - step,
            )
            step = schedule.vision + schedule.tiny
        light = schedule.vision + schedule.tiny + int(LIGHT_SHARE * schedule.mixture)
        if step < light:
            yield from itertools.islice(
                self._answers(rng, self.examples, lambda rng: maker.random(rng, full=0.15)),
                light - step,
            )
        yield from self._answers(rng, self.examples, lambda rng: maker.random(rng, full=0.4))

    def _tiles(
        self, maker: ExampleMaker, rng: np.random.Generator
    ) -> Iterator[dict[str, torch.Tensor]]:
        """Batches of tiles that show something."""
        fresh: list[tuple[npt.NDArray[np.uint8], IntArray]] = []
        seen: list[tuple[npt.NDArray[np.uint8], IntArray]] = []
        while True:
            # Most tiles hold a whole shape or word: from the inside of a large shape nothing can be
            # learned.
            example = maker.tiny(rng) if rng.random() < 0.7 else maker.random(rng, full=0.8)
            shown = (example.patches > 0).any(axis=(1, 2))
            fresh += zip(example.tiles[shown], example.patches[shown], strict=True)
            if len(fresh) >= 4 * self.tiles:  # mixed, so that a batch is not one picture
                for _ in range(4 * REPLAYED):
                    chosen = [
                        fresh[i]
                        for i in rng.choice(len(fresh), self.tiles // REPLAYED, replace=False)
                    ]
                    chosen += [
                        (seen or fresh)[i]
                        for i in rng.integers(len(seen or fresh), size=self.tiles - len(chosen))
                    ]
                    yield {
                        "tiles": torch.from_numpy(np.stack([t for t, _ in chosen])),
                        "patches": torch.from_numpy(np.stack([p for _, p in chosen])),
                    }
                seen = (seen + fresh)[-KEPT:]
                fresh = []

    def _answers(
        self, rng: np.random.Generator, size: int, make: Callable[[np.random.Generator], Example]
    ) -> Iterator[dict[str, torch.Tensor]]:
        """Batches of examples, eight at a time from examples sorted by length, so that a batch
        holds little padding.
        """
        seen: list[Example] = []
        while True:
            fresh = [make(rng) for _ in range(8 * size // REPLAYED)]
            old = [
                (seen or fresh)[i]
                for i in rng.integers(len(seen or fresh), size=8 * size - len(fresh))
            ]
            pool = sorted(fresh + old, key=Example.length)
            seen = (seen + fresh)[-KEPT:]
            for start in rng.permutation(range(0, len(pool), size)):
                yield collate(pool[start : start + size])[0]


def _pick_questions(scene: scenes.Scene, rng: np.random.Generator) -> list[tuple[str, str, str]]:
    """A few questions of each kind, so that the many counts that are zero do not drown the rest."""
    kinds: dict[str, list[scenes.Question]] = {}
    for question, answer in scene.questions:
        kinds.setdefault(question_kind(question, answer), []).append((question, answer))
    names = list(kinds.get("yes", []))
    picked = []
    for kind in dict.fromkeys(
        ["relation"] * ("relation" in kinds) + list(rng.permutation(sorted(kinds))[:3])
    ):  # who stands where is the hardest to learn
        found = kinds[str(kind)]
        picked.append((str(kind), *found[int(rng.integers(len(found)))]))
    if names and rng.random() < 0.4:
        shapes = [scenes.shape_named(question) for question, _ in names]
        picked += [("no", *q) for q in scenes.absent_questions(shapes, rng, 1)]
    return picked


def question_kind(question: str, answer: str) -> str:
    """The kind of a question: color, shape, count, zero, yes, no, position, relation, text."""
    first = question.split()[0]
    if question.startswith("What color"):
        return "color"
    if question.startswith("What shape"):
        return "shape"
    if first == "How":
        return "zero" if answer == "0" else "count"
    if question.startswith("Is there"):
        return "yes" if answer == "Yes." else "no"
    if first == "Where":
        return "position"
    return (
        "relation" if question.startswith("What is") and not question.endswith("word?") else "text"
    )
