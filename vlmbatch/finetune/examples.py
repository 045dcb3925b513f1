"""A row to what the model is trained on: the pixels and words of the engine's own request, then the
answer. Batches are made of these.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
import torch

from vlmbatch.checkpoint import Checkpoint
from vlmbatch.core import Conversation, Pixels, Question, UInt8Array
from vlmbatch.errors import DecodeError, JobError, PrepareError
from vlmbatch.finetune.rows import Row
from vlmbatch.job import Detail, Job
from vlmbatch.prepare import Preparer
from vlmbatch.read.pictures.decode import load_image
from vlmbatch.read.video.load import load_clip
from vlmbatch.sample import make_sampler

IGNORED = -100
"""The label of a token that carries no loss."""

TIME_TOLERANCE_SECONDS = 1e-3
"""Windows of a video are found again by their start, which tables may have rounded."""


@dataclasses.dataclass(frozen=True, slots=True)
class Example:
    """One row, ready for a batch.

    Attributes:
        tiles: uint8, (n_tiles, 3, E, E).
        input_ids: Token ids of prefix, question and answer, the answer's end among them.
        answer_start: Place of the answer's first token.
    """

    tiles: UInt8Array
    input_ids: Sequence[int]
    answer_start: int


@dataclasses.dataclass(frozen=True)
class ExampleMaker:
    """Makes examples of rows, on any thread or process.

    Attributes:
        checkpoint: Whose tokenizer, chat template and processor prepare them.
        detail: How closely to look at pictures.
        video_job: How clips are made of videos.
        max_pixels: Pictures with more pixels are refused.
    """

    checkpoint: Checkpoint
    detail: Detail
    video_job: Job
    max_pixels: int

    @functools.cached_property
    def preparer(self) -> Preparer:
        """What prepares requests for the engine."""
        return Preparer.from_checkpoint(self.checkpoint, self.detail)

    def __getstate__(self) -> dict[str, Any]:
        """Without the preparer, which a process makes for itself."""
        return {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}

    def load(self, row: Row) -> Pixels:
        """Reads the pixels of a row.

        Raises:
            ItemError: The file is missing, broken or too large, or a video has no such frame or
                window.
        """
        if row.media == "image":
            return load_image(row.path, self.max_pixels)
        if row.media == "frame":
            return _load_frame(row, self.max_pixels)
        return _load_clip(row, self.video_job, self.max_pixels)

    def make(self, row: Row, pixels: Pixels | None = None) -> Example:
        """Makes the example of a row.

        Args:
            row: The row.
            pixels: Its pixels, when they are loaded already.

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
                f"prompt and answer have {start} + {len(answer)} tokens, the model's context is {preparer.context}"
            )
        ids = [*payload.prefix_ids, *payload.question_ids[0], *answer]
        return Example(payload.tiles, ids, start)


def _load_frame(row: Row, max_pixels: int) -> Pixels:
    from vlmbatch.read.video.file import VideoFile

    sampler = make_sampler(Job(inputs=(row.path,), media="video", at=(row.time_seconds or 0.0,)))
    with VideoFile(row.path, max_pixels) as video:
        for span in sampler(video):
            for frame in span.choose(video):
                return Pixels((frame.rgb(),))
    raise DecodeError(f"no frame at {row.time_seconds} s")


def _load_clip(row: Row, job: Job, max_pixels: int) -> Pixels:
    from vlmbatch.read.video.file import VideoFile

    with VideoFile(row.path, max_pixels) as video:
        spans = list(make_sampler(job)(video))
    for span in spans:
        if (
            row.time_seconds is None
            or abs(span.start_seconds - row.time_seconds) < TIME_TOLERANCE_SECONDS
        ):
            return load_clip(row.path, max_pixels, span)
    raise DecodeError(
        "no frames"
        if row.time_seconds is None
        else f"no clip or window starts at {row.time_seconds} s"
    )


class Rows(torch.utils.data.Dataset[Example]):
    """The examples of rows, made when they are asked for."""

    def __init__(self, rows: Sequence[Row], maker: ExampleMaker) -> None:
        """Takes rows that were checked."""
        self.rows, self.maker = rows, maker

    def __len__(self) -> int:
        """Number of rows."""
        return len(self.rows)

    def __getitem__(self, number: int) -> Example:
        """The example of a row.

        Raises:
            JobError: It was fine when it was checked, and is not any more.
        """
        row = self.rows[number]
        try:
            return self.maker.make(row)
        except Exception as error:
            raise JobError(
                f"{row.place}: {row.path} has changed since it was checked: {error}; the same command checks again and goes on"
            ) from error


class Collate(Protocol):
    """Makes a batch of examples: tensors by the names that the trainer and the model know them by."""

    def __call__(self, examples: Sequence[Example]) -> dict[str, torch.Tensor]:
        """Makes a batch."""


@dataclasses.dataclass(frozen=True)
class PadRight:
    """Puts examples side by side, shorter ones padded behind their end.

    Attributes:
        pad_id: Token id of the padding, which nothing looks at.
    """

    pad_id: int

    def __call__(self, examples: Sequence[Example]) -> dict[str, torch.Tensor]:
        """Makes a batch of B examples; L is the longest, N the most tiles.

        Returns:
            ``input_ids``, ``attention_mask`` and ``labels``, int64, (B, L), labels not shifted and
            -100 but for the answer; ``tiles``, uint8, (B, N, 3, E, E); ``n_tiles``, int64, (B,).
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
