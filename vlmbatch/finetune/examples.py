"""Make examples of rows, and batches of examples.

An example is the request that the engine would get, followed by the answer.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from vlmbatch.checkpoint import Checkpoint
from vlmbatch.core import Conversation, Pixels, Question, UInt8Array
from vlmbatch.errors import DecodeError, JobError, PrepareError
from vlmbatch.finetune.rows import TrainingRow
from vlmbatch.job import Detail, Job
from vlmbatch.prepare import Preparer
from vlmbatch.read.pictures.decode import load_image
from vlmbatch.read.video.load import load_clip
from vlmbatch.sample import make_sampler

IGNORED = -100
"""Label of tokens without loss."""

TIME_TOLERANCE_SECONDS = 1e-3
"""Tolerance for the start of a window, which tables may round."""


@dataclasses.dataclass(frozen=True, slots=True)
class Example:
    """One row, ready for a batch.

    Attributes:
        tiles: uint8, (n_tiles, 3, E, E).
        input_ids: Token ids of prefix, question and answer, with the end of the answer.
        answer_start: Index of the answer's first token.
    """

    tiles: UInt8Array
    input_ids: Sequence[int]
    answer_start: int


@dataclasses.dataclass(frozen=True)
class ExampleMaker:
    """Makes examples of rows, on any thread or process.

    Attributes:
        checkpoint: Checkpoint with tokenizer, chat template and processor.
        detail: Detail of pictures.
        video_job: Options that make clips of videos.
        max_pixels: Larger pictures are bad rows.
    """

    checkpoint: Checkpoint
    detail: Detail
    video_job: Job
    max_pixels: int

    @functools.cached_property
    def preparer(self) -> Preparer:
        """The engine's own preparer."""
        return Preparer.from_checkpoint(self.checkpoint, self.detail)

    def __getstate__(self) -> dict[str, Any]:
        """Leave the preparer out: each process makes its own."""
        return {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}

    def load(self, row: TrainingRow) -> Pixels:
        """Load the pixels of a row.

        Raises:
            ItemError: The file is missing, broken or too large, or a video has no such frame or
                window.
        """
        if row.media == "image":
            return load_image(row.path, self.max_pixels)
        if row.media == "frame":
            return _load_frame(row, self.max_pixels)
        return _load_clip(row, self.video_job, self.max_pixels)

    def make(self, row: TrainingRow, pixels: Pixels | None = None) -> Example:
        """Make the example of a row.

        Args:
            row: The row.
            pixels: Its pixels, if they are loaded already.

        Raises:
            ItemError: It cannot be read or prepared, or is longer than the model's context.
        """
        preparer = self.preparer
        conversation = Conversation.about(row.media, pixels or self.load(row), row.path)
        payload = preparer.prepare(conversation, [Question(row.prompt)]).payload
        answer = preparer.writer.answer(row.answer)
        start = payload.prompt_tokens
        if start + len(answer) > preparer.context:
            raise PrepareError(
                f"prompt and answer have {start} + {len(answer)} tokens, the model's context is "
                f"{preparer.context}"
            )
        ids = [*payload.prefix_ids, *payload.question_ids[0], *answer]
        return Example(payload.tiles, ids, start)


def _load_frame(row: TrainingRow, max_pixels: int) -> Pixels:
    from vlmbatch.read.video.file import VideoFile

    sampler = make_sampler(Job(inputs=(row.path,), media="video", at=(row.time_seconds or 0.0,)))
    with VideoFile(row.path, max_pixels) as video:
        for stretch in sampler(video):
            for frame in stretch.choose(video):
                return Pixels((frame.rgb(),))
    raise DecodeError(f"no frame at {row.time_seconds} s")


def _load_clip(row: TrainingRow, job: Job, max_pixels: int) -> Pixels:
    from vlmbatch.read.video.file import VideoFile

    with VideoFile(row.path, max_pixels) as video:
        stretches = list(make_sampler(job)(video))
    for stretch in stretches:
        if (
            row.time_seconds is None
            or abs(stretch.start_seconds - row.time_seconds) < TIME_TOLERANCE_SECONDS
        ):
            return load_clip(row.path, max_pixels, stretch)
    raise DecodeError(
        "no frames"
        if row.time_seconds is None
        else f"no clip or window starts at {row.time_seconds} s"
    )


class ExampleDataset(torch.utils.data.Dataset[Example]):
    """Examples of rows, made on access."""

    def __init__(self, rows: Sequence[TrainingRow], maker: ExampleMaker) -> None:
        """Take checked rows."""
        self.rows, self.maker = rows, maker

    def __len__(self) -> int:
        """Return the number of rows."""
        return len(self.rows)

    def __getitem__(self, number: int) -> Example:
        """Make the example of a row.

        Raises:
            JobError: The row has become bad since it was checked.
        """
        row = self.rows[number]
        try:
            return self.maker.make(row)
        except Exception as error:
            raise JobError(
                f"{row.place}: {row.path} has changed since it was checked: {error}; the same "
                "command checks again and goes on"
            ) from error


@dataclasses.dataclass(frozen=True)
class PadRight:
    """Makes a batch with padding behind shorter examples.

    Attributes:
        pad_id: Token id of the padding; it is masked.
    """

    pad_id: int

    def __call__(self, examples: Sequence[Example]) -> dict[str, torch.Tensor]:
        """Make a batch of B examples; L is the longest length, N the largest number of tiles.

        Returns:
            ``input_ids``, ``attention_mask`` and ``labels``, int64, (B, L): labels are not shifted,
            and -100 outside the answer; ``tiles``, uint8, (B, N, 3, E, E); ``n_tiles``, int64,
            (B,).
        """
        rows, longest = len(examples), max(len(example.input_ids) for example in examples)
        input_ids = np.full((rows, longest), self.pad_id, np.int64)
        mask = np.zeros((rows, longest), np.int64)
        labels = np.full((rows, longest), IGNORED, np.int64)
        counts = [len(example.tiles) for example in examples]
        tiles = np.zeros((rows, max(counts), *examples[0].tiles.shape[1:]), np.uint8)
        for row, example in enumerate(examples):
            end = len(example.input_ids)
            input_ids[row, :end] = example.input_ids
            mask[row, :end] = 1
            labels[row, example.answer_start : end] = example.input_ids[example.answer_start :]
            tiles[row, : counts[row]] = example.tiles
        arrays = {
            "input_ids": input_ids,
            "attention_mask": mask,
            "labels": labels,
            "tiles": tiles,
            "n_tiles": np.asarray(counts),
        }
        return {name: torch.from_numpy(array) for name, array in arrays.items()}
