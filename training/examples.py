"""Turns drawn scenes into packed training examples, with the same preparation that answers use.

One example is one picture or clip with several questions. The prefix (chat opening and image tokens) stands once, every question and answer continues it:
position ids restart behind the prefix and the mask hides the other questions, as the engine does it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image

from training import scenes
from training.checkpoint import PATCH, TILE
from vlmbatch.checkpoint import Checkpoint
from vlmbatch.prepare.prompt import PromptWriter
from vlmbatch.prepare.tiles import TilePlan, TileSettings, cut_tiles

PATCHES = TILE // PATCH  # along an edge of a tile
IGNORED = -100
LONGEST_WORD = 6
MOST_SHAPES = 3
PATCH_CLASSES = (
    1 + MOST_SHAPES * len(scenes.SHAPES),
    1 + MOST_SHAPES * len(scenes.COLORS),
    1 + LONGEST_WORD * len(scenes.CHARACTERS),
    1 + LONGEST_WORD * len(scenes.CHARACTERS),
)
"""A character and its place are one class, not two: so the encoder learns to say "B, second" where a sum over patches keeps it readable."""
READING = 0.45
"""Share of words and numbers among the pictures."""
REPLAYED = 3
"""Drawing costs as much as learning, so one of so many examples in a batch is new; the others were drawn before."""
KEPT = 20_000
"""Examples that are kept for that."""
IntArray = npt.NDArray[np.int64]


@dataclasses.dataclass(frozen=True)
class Example:
    """One packed picture or clip.

    Attributes:
        tiles: uint8, (n_tiles, 3, E, E).
        patches: What each patch shows, int64, (n_tiles, PATCHES², 4): shape, colour, and the characters in its left and in its right half, each as one class
            with its place in reading order among what the tile shows (``PATCH_CLASSES``); 0 for none, -100 for not asked.
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
        """A random example; ``full`` is the share of pictures at full detail (more tiles, so more work), half of the others are at native detail."""
        if rng.random() < 0.15:
            return self.clip(scenes.random_clip(rng), rng)
        in_full = rng.random() < full
        if in_full and rng.random() < 0.25:
            scene = scenes.random_page(rng, int(rng.integers(160, 480)))
        else:
            longest = (64, 1600) if rng.random() < 0.1 else (64, 384) if in_full else (64, 192)
            scene = scenes.random_scene(rng, longest=longest, reading=self.reading)
        if rng.random() < 0.6:
            scene = dataclasses.replace(scene, pixels=scenes.jpeg(scene.pixels, int(rng.integers(60, 96))))
        if in_full:
            return self.image(scene, rng, self.full)
        height, width = scene.pixels.shape[:2]
        return self.image(scene, rng, self.low if rng.random() < 0.5 else self.full.native(width, height))

    def tiny(self, rng: np.random.Generator) -> Example:
        """A random picture that is one tile: a fifth of the work of a large one."""
        scene = scenes.random_scene(rng, longest=(64, 192), reading=self.reading)
        if rng.random() < 0.5:
            scene = dataclasses.replace(scene, pixels=scenes.jpeg(scene.pixels, int(rng.integers(60, 96))))
        return self.image(scene, rng, self.low)

    def image(self, scene: scenes.Scene, rng: np.random.Generator, settings: TileSettings) -> Example:
        """An example of a picture with a caption, its text and a few of its questions."""
        tiles, plan = cut_tiles(scene.pixels, settings)
        asked = [("caption", str(rng.choice(scenes.CAPTION_PROMPTS)), scene.caption)]
        if scene.text != "No text." or rng.random() < 0.4:
            asked.append(("reading", str(rng.choice(scenes.OCR_PROMPTS)), scene.text))
        asked += _pick_questions(scene, rng)
        ids = [(self.prompt.image_question(q), self._answer(a)) for _, q, a in asked]
        prefix = self.prompt.image_prefix(plan.rows, plan.cols)
        return Example(tiles, _patch_labels(scene.labels, scene.things, plan, scene.pages), prefix, ids, [k for k, _, _ in asked])

    def clip(self, clip: scenes.Clip, rng: np.random.Generator) -> Example:
        """An example of a clip with a caption and all its questions."""
        tiles = np.concatenate([cut_tiles(frame, self.video)[0] for frame in clip.frames])
        asked = [("clip", str(rng.choice(scenes.CLIP_PROMPTS)), clip.caption), *(("clip", q, a) for q, a in clip.questions)]
        ids = [(self.prompt.video_question(q), self._answer(a)) for _, q, a in asked]
        prefix = self.prompt.video_prefix(clip.times_seconds, clip.duration_seconds)
        patches = np.concatenate([_patch_labels(label, clip.things, TilePlan((0, 0), (0, 0), 0, 0)) for label in clip.labels])
        return Example(tiles, patches, prefix, ids, [k for k, _, _ in asked])

    def _answer(self, answer: str) -> list[int]:
        return list(self.prompt.tokenizer.encode(f" {answer}<end_of_utterance>", add_special_tokens=False).ids)


@dataclasses.dataclass(frozen=True)
class Batch:
    """Examples side by side; L is the longest one, B their number, N all tiles.

    Attributes:
        tiles: uint8, (N, 3, E, E).
        patches: int64, (N, PATCHES², 4).
        input_ids: int64, (B, L).
        position_ids: int64, (B, L).
        mask: bool, (B, 1, L, L); True where a query may look.
        labels: int64, (B, L); -100 where no loss is taken; already shifted.
        spans: (row, start, end, kind) of each answer.
    """

    tiles: torch.Tensor
    patches: torch.Tensor
    input_ids: torch.Tensor
    position_ids: torch.Tensor
    mask: torch.Tensor
    labels: torch.Tensor
    spans: list[tuple[int, int, int, str]]


def collate(examples: Sequence[Example], pad: int) -> Batch:
    """Packs examples into a batch."""
    # Lengths in steps of 32: fewer shapes, for which fewer kernels are set up and kept.
    rows, longest = len(examples), -(-max(e.length() for e in examples) // 32) * 32
    input_ids = np.full((rows, longest), pad, np.int64)
    positions = np.zeros((rows, longest), np.int64)
    labels = np.full((rows, longest), -100, np.int64)
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
            spans.append((row, end - len(answer), end, example.kinds[number]))
            at = end
    causal = np.tril(np.ones((longest, longest), bool))
    same = (segment[:, :, None] == segment[:, None, :]) | (segment[:, None, :] == 0)
    mask = causal[None] & same
    return Batch(
        torch.from_numpy(np.concatenate([e.tiles for e in examples])),
        torch.from_numpy(np.concatenate([e.patches for e in examples])),
        torch.from_numpy(input_ids),
        torch.from_numpy(positions),
        torch.from_numpy(mask[:, None]),
        torch.from_numpy(labels),
        spans,
    )


class TileBatches(torch.utils.data.IterableDataset[tuple[torch.Tensor, torch.Tensor]]):
    """An endless stream of tiles that show something, uint8 (size, 3, E, E), with what their patches show, int64 (size, PATCHES², 4)."""

    def __init__(self, checkpoint: Checkpoint, seed: int, size: int, reading: float = READING) -> None:
        self.checkpoint, self.seed, self.size, self.reading = checkpoint, seed, size, reading

    def __iter__(self) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        torch.set_num_threads(1)
        maker = ExampleMaker(self.checkpoint, self.reading)
        info = torch.utils.data.get_worker_info()
        rng = np.random.default_rng((self.seed, info.id if info else 0, 1))
        fresh: list[tuple[npt.NDArray[np.uint8], IntArray]] = []
        seen: list[tuple[npt.NDArray[np.uint8], IntArray]] = []
        while True:
            # Most tiles hold a whole shape or word: from the inside of a large shape nothing can be learned.
            example = maker.tiny(rng) if rng.random() < 0.7 else maker.random(rng, full=0.8)
            shown = (example.patches > 0).any(axis=(1, 2))
            fresh += zip(example.tiles[shown], example.patches[shown], strict=True)
            if len(fresh) >= 4 * self.size:  # mixed, so that a batch is not one picture
                for _ in range(4 * REPLAYED):
                    chosen = [fresh[i] for i in rng.choice(len(fresh), self.size // REPLAYED, replace=False)]
                    chosen += [seen[i] for i in rng.integers(len(seen), size=self.size - len(chosen))] if seen else []
                    yield torch.from_numpy(np.stack([t for t, _ in chosen])), torch.from_numpy(np.stack([p for _, p in chosen]))
                seen = (seen + fresh)[-KEPT:]
                fresh = []


class Batches(torch.utils.data.IterableDataset[Batch]):
    """An endless stream of random batches; another seed, another stream."""

    def __init__(self, checkpoint: Checkpoint, seed: int, size: int, tiny_batches: int, light_batches: int, pad: int, reading: float = READING) -> None:
        """First come batches of pictures of one tile, twice as many in a batch; then such in which most pictures are at native detail."""
        self.checkpoint, self.seed, self.size, self.pad = checkpoint, seed, size, pad
        self.tiny_batches, self.light_batches, self.reading = tiny_batches, light_batches, reading

    def __iter__(self) -> Iterator[Batch]:
        torch.set_num_threads(1)
        maker = ExampleMaker(self.checkpoint, self.reading)
        info = torch.utils.data.get_worker_info()
        rng = np.random.default_rng((self.seed, info.id if info else 0))
        workers = info.num_workers if info else 1
        count = 0
        seen: list[Example] = []
        kind = None
        while True:
            done = count * workers
            tiny = done < self.tiny_batches
            size = 2 * self.size if tiny else self.size
            full = 0.15 if done < self.tiny_batches + self.light_batches else 0.4
            if kind != (tiny, full):
                kind, seen = (tiny, full), []
            # Eight batches' worth at a time, sorted by length, so that a batch holds little padding.
            fresh = [maker.tiny(rng) if tiny else maker.random(rng, full=full) for _ in range(8 * size // REPLAYED)]
            old = [seen[i] for i in rng.integers(len(seen), size=8 * size - len(fresh))] if seen else []
            pool = sorted(fresh + old, key=Example.length)
            seen = (seen + fresh)[-KEPT:]
            batches = range(0, len(pool), size)
            for start in rng.permutation(batches):
                yield collate(pool[start : start + size], self.pad)
            count += len(batches)


def _pick_questions(scene: scenes.Scene, rng: np.random.Generator) -> list[tuple[str, str, str]]:
    """A few questions of each kind, so that the many counts that are zero do not drown the rest."""
    kinds: dict[str, list[scenes.Question]] = {}
    for question, answer in scene.questions:
        kinds.setdefault(question_kind(question, answer), []).append((question, answer))
    names = list(kinds.get("yes", []))
    picked = []
    for kind in rng.permutation(sorted(kinds))[:3]:
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
    return "relation" if question.startswith("What is") and not question.endswith("word?") else "text"


def _patch_labels(labels: npt.NDArray[np.uint8], things: Sequence[scenes.Thing], plan: TilePlan, pages: bool = False) -> IntArray:
    """What each patch of each tile shows, see ``Example.patches``. The whole of a page is too small to be read, so nothing is asked there."""
    image, wide = Image.fromarray(labels), 2 * PATCHES
    whole = np.asarray(image.resize((wide, PATCHES), Image.Resampling.NEAREST))[None]
    tiles = whole
    if plan.rows:
        grid = np.asarray(image.resize((plan.cols * wide, plan.rows * PATCHES), Image.Resampling.NEAREST))
        cut = grid.reshape(plan.rows, PATCHES, plan.cols, wide).transpose(0, 2, 1, 3).reshape(-1, PATCHES, wide)
        tiles = np.concatenate([cut, whole])
    asked = np.stack([_tile_labels(tile, things) for tile in tiles])
    if pages:
        asked[-1] = IGNORED
    return asked


def _tile_labels(tile: npt.NDArray[np.uint8], things: Sequence[scenes.Thing]) -> IntArray:
    """The classes of one tile's patches, (PATCHES², 4), from things at two places of each patch, (PATCHES, 2 * PATCHES)."""
    table = np.zeros((len(things), 3), np.int64)
    for place, number in enumerate(n for n in np.unique(tile) if n):
        shape, color, character = things[number]
        if shape:
            table[number] = 1 + place * len(scenes.SHAPES) + shape - 1, 1 + place * len(scenes.COLORS) + color - 1, 0
        elif place < LONGEST_WORD:
            table[number, 2] = 1 + place * len(scenes.CHARACTERS) + character - 1
    found = table[tile]
    return np.concatenate([found[:, ::2], found[:, 1::2, 2:]], axis=-1).reshape(-1, 4)
