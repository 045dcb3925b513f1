"""Makes pixels and questions ready for the engine, as the checkpoint's own processor would; on
uint8, on any number of threads, without torch.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import time
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
from PIL import Image

from vlmbatch.checkpoint import Checkpoint
from vlmbatch.core import Conversation, Picture, Pixels, Request, UInt8Array, picture_size
from vlmbatch.errors import ModelLoadError, PrepareError
from vlmbatch.prepare.page_layout import lay_out
from vlmbatch.prepare.prompt import MAX_GRID, PromptWriter
from vlmbatch.prepare.tiles import TileSettings, cut_tiles, fit_picture, plan_tiles

__all__ = ["Detail", "Preparer"]

Detail = Literal["full", "native", "low"]

DEFAULT_CONTEXT = 2048
"""What transformers' Llama configuration takes when config.json does not say; the published
checkpoints say 8192.
"""


class Preparer:
    """Turns conversations into requests. Thread-safe; Pillow lets go of the interpreter while it
    resizes, so threads help.
    """

    def __init__(
        self,
        writer: PromptWriter,
        picture: TileSettings,
        clip: TileSettings | None,
        *,
        context: int,
        detail: Detail = "full",
        seed: int = 0,
    ) -> None:
        """Takes what ``from_checkpoint`` reads.

        Args:
            writer: Writes the prompts.
            picture: How the checkpoint cuts pictures.
            clip: How it cuts the frames of clips; None when it does not say.
            context: The most tokens that prompt and answer may have together.
            detail: ``full`` is as the checkpoint does it, ``native`` does not enlarge small
                pictures beyond a whole tile, ``low`` is one tile.
            seed: The job's seed.
        """
        self.writer = writer
        self.seq_len = writer.tokens.seq_len
        self.context = context
        self.detail = detail
        self._full = picture
        self._clip = clip
        self._seed = seed
        self._image_prefix = functools.lru_cache(maxsize=MAX_GRID**2 + 1)(
            lambda rows, cols: tuple(writer.image_prefix(rows, cols))
        )
        self._image_question = functools.lru_cache(maxsize=1024)(
            lambda question: tuple(writer.image_question(question))
        )
        self._video_question = functools.lru_cache(maxsize=1024)(
            lambda question: tuple(writer.video_question(question))
        )

    @classmethod
    def from_checkpoint(
        cls, checkpoint: Checkpoint, detail: Detail = "full", seed: int = 0
    ) -> Preparer:
        """Reads a checkpoint's tokenizer, chat template and processor files.

        Args:
            checkpoint: The checkpoint.
            detail: How closely to look at pictures; see ``__init__``. Clips are not affected.
            seed: The job's seed.

        Raises:
            ModelLoadError: A file is missing, or says something that cannot be.
        """
        vision = checkpoint.config.get("vision_config") or {}
        sizes = {
            "image_size": vision.get("image_size"),
            "patch_size": vision.get("patch_size"),
            "scale_factor": checkpoint.config.get("scale_factor"),
        }
        for key, value in sizes.items():
            if not isinstance(value, int) or value < 1:
                raise ModelLoadError(f"{checkpoint.name}: config.json says {value!r} for {key}")
        settings = checkpoint.image_processor()
        longest = _longest_edge(settings.get("size"), checkpoint.name, "size")
        picture = _tile_settings(
            settings, longest, checkpoint.name, bool(settings.get("do_image_splitting", True))
        )
        clip = _clip_settings(checkpoint.video_processor(), checkpoint.name)
        for edge in {picture.tile_edge, clip.tile_edge if clip else picture.tile_edge}:
            if edge != sizes["image_size"]:
                raise ModelLoadError(
                    f"{checkpoint.name}: the processor cuts tiles of {edge} pixels, the vision encoder takes {sizes['image_size']}"
                )
        text = checkpoint.config.get("text_config") or {}
        context = int(text.get("max_position_embeddings") or DEFAULT_CONTEXT)
        return cls(
            PromptWriter.from_checkpoint(checkpoint),
            picture,
            clip,
            context=context,
            detail=detail,
            seed=seed,
        )

    def prepare(self, conversation: Conversation, questions: Sequence[str]) -> Request:
        """Cuts the tiles and writes the prompts of a conversation.

        Args:
            conversation: What was loaded.
            questions: What is asked about it, at least one.

        Returns:
            The request, without a tag.

        Raises:
            PrepareError: The pixels are not RGB pictures, a question holds an image token, or the
                prompt is longer than the context.
        """
        start = time.perf_counter()
        if not questions:
            raise PrepareError("there is no question to ask")
        _check_pixels(conversation.pixels)
        _check_text(questions)
        words = {"clip": self._clip_words, "tile": self._tile_words}.get(
            conversation.media, self._picture_words
        )
        prefix_ids, question_ids = words(conversation.pixels, questions)
        self._check_context(len(prefix_ids) + max(map(len, question_ids)), conversation)
        tiles = self._tiles(conversation)
        image_tokens = prefix_ids.count(self.writer.image_token_id)
        if image_tokens != len(tiles) * self.seq_len:
            raise PrepareError(
                f"{image_tokens} image tokens for {len(tiles)} tiles of {self.seq_len}: tokenizer and processor do not match"
            )
        seeds = [self._question_seed(conversation.key, question) for question in questions]
        keys = [hashlib.blake2b(tile, digest_size=16).digest() for tile in tiles]
        return Request(
            tiles,
            prefix_ids,
            question_ids,
            seeds,
            keys,
            prepare_seconds=time.perf_counter() - start,
        )

    def cut(self, conversation: Conversation) -> list[Conversation]:
        """A picture in tiles that are conversations of their own, in reading order and cut between
        lines and words: see pieces.py. None has one colour only.

        A model that is asked to read an empty tile makes words up.

        Args:
            conversation: About a picture.

        Raises:
            PrepareError: It is no RGB picture.
        """
        _check_pixels(conversation.pixels)
        picture = conversation.pixels.frames[0]
        settings = self._settings(picture)
        try:
            page, plan = fit_picture(picture, settings)
            parts = lay_out(np.asarray(page), settings.tile_edge) if plan.rows else []
            parts = parts or [
                np.ascontiguousarray(cut_tiles(picture, settings)[0][-1].transpose(1, 2, 0))
            ]
        except (ValueError, OSError, MemoryError) as error:
            raise _uncuttable(picture, error) from error
        return [
            Conversation("tile", Pixels((part,)), f"{conversation.key}#tile={number}")
            for number, part in enumerate(parts)
        ]

    def full_tiles(self, width: int, height: int) -> int:
        """Tiles that a picture of this size takes with ``full`` detail."""
        return plan_tiles(width, height, self._full).n_tiles

    def native_tiles(self, width: int, height: int) -> int:
        """Tiles that it takes with ``native`` detail."""
        return plan_tiles(width, height, self._full.native(width, height)).n_tiles

    def decode(self, ids: Sequence[int]) -> str:
        """The words of an answer, special tokens left out, white space around it cut off."""
        return self.writer.decode(ids)

    def _settings(self, frame: Picture) -> TileSettings:
        """The settings for one picture at the chosen detail."""
        if self.detail == "low":
            return dataclasses.replace(self._full, split=False)
        if self.detail == "native":
            return self._full.native(*picture_size(frame))
        return self._full

    def _picture_words(
        self, pixels: Pixels, questions: Sequence[str]
    ) -> tuple[tuple[int, ...], list[tuple[int, ...]]]:
        frame = pixels.frames[0]
        plan = plan_tiles(*picture_size(frame), self._settings(frame))
        if max(plan.rows, plan.cols) > MAX_GRID:
            raise PrepareError(
                f"the picture takes {plan.rows} x {plan.cols} tiles; the vocabulary has positions for {MAX_GRID} x {MAX_GRID}"
            )
        return self._image_prefix(plan.rows, plan.cols), [
            self._image_question(question) for question in questions
        ]

    def _tile_words(
        self, pixels: Pixels, questions: Sequence[str]
    ) -> tuple[tuple[int, ...], list[tuple[int, ...]]]:
        return self._image_prefix(0, 0), [self._image_question(question) for question in questions]

    def _clip_words(
        self, pixels: Pixels, questions: Sequence[str]
    ) -> tuple[tuple[int, ...], list[tuple[int, ...]]]:
        times = pixels.times_seconds
        if len(times) != len(pixels.frames):
            raise PrepareError(f"the clip has {len(pixels.frames)} frames and {len(times)} times")
        duration = (
            times[-1] if pixels.duration_seconds is None else pixels.duration_seconds
        )  # as the checkpoint's processor does without one
        return tuple(self.writer.video_prefix(times, duration)), [
            self._video_question(question) for question in questions
        ]

    def _tiles(self, conversation: Conversation) -> UInt8Array:
        frames = conversation.pixels.frames
        if conversation.media == "tile":
            return np.ascontiguousarray(conversation.pixels.arrays()[0].transpose(2, 0, 1))[
                np.newaxis
            ]
        try:
            if conversation.media != "clip":
                return cut_tiles(frames[0], self._settings(frames[0]))[0]
            if self._clip is None:
                raise PrepareError(
                    "the checkpoint does not say how frames of a clip are cut; ask about single frames (--per frame)"
                )
            return np.concatenate([cut_tiles(frame, self._clip)[0] for frame in frames])
        except (ValueError, OSError, MemoryError) as error:
            raise _uncuttable(frames[0], error) from error

    def _check_context(self, prompt_tokens: int, conversation: Conversation) -> None:
        if prompt_tokens + 1 <= self.context:
            return
        frames = len(conversation.pixels.frames)
        hint = (
            f"; use fewer than {frames} frames (--num-frames)"
            if conversation.media == "clip" and frames > 1
            else ""
        )
        raise PrepareError(
            f"the prompt has {prompt_tokens} tokens, the model's context is {self.context}{hint}"
        )

    def _question_seed(self, key: str, question: str) -> int:
        """A seed of 63 bits that depends on the job's seed, the item and the question, and on
        nothing else.
        """
        text = "\0".join((str(self._seed), key, question)).encode(
            "utf-8", "surrogatepass"
        )  # ids of files may hold undecodable bytes
        return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "big") >> 1


def _tile_settings(
    settings: Mapping[str, Any], longest: int, name: str, split: bool
) -> TileSettings:
    edge = _longest_edge(settings.get("max_image_size"), name, "max_image_size")
    resample = settings.get("resample", Image.Resampling.LANCZOS)
    if resample not in list(Image.Resampling):
        raise ModelLoadError(
            f"{name}: the processor asks for resample {resample!r}; Pillow has the filters {', '.join(str(int(f)) for f in Image.Resampling)}"
        )
    return TileSettings(longest, edge, split, bool(settings.get("do_resize", True)), int(resample))


def _clip_settings(settings: Mapping[str, Any], name: str) -> TileSettings | None:
    """How frames of a clip are cut, or None when the checkpoint does not say."""
    if not settings:
        return None
    sampling = settings.get("video_sampling") or {}
    if "video_size" in sampling:
        longest = _longest_edge(sampling["video_size"], name, "video_sampling.video_size")
    else:
        longest = _longest_edge(settings.get("size"), name, "size of the video processor")
    return _tile_settings(settings, longest, name, split=False)


def _longest_edge(size: Any, name: str, where: str) -> int:
    edge = size.get("longest_edge") if isinstance(size, Mapping) else None
    if not isinstance(edge, int) or isinstance(edge, bool) or edge < 1:
        raise ModelLoadError(f"{name}: {where} has no longest_edge in pixels: {size!r}")
    return edge


def _uncuttable(picture: Picture, error: Exception) -> PrepareError:
    width, height = picture_size(picture)
    return PrepareError(
        f"a picture of {width} x {height} pixels cannot be cut into tiles: {error or type(error).__name__}"
    )


def _check_pixels(pixels: Pixels) -> None:
    if not pixels.frames:
        raise PrepareError("there are no pixels")
    for frame in pixels.frames:
        if isinstance(frame, Image.Image):
            if frame.mode != "RGB" or 0 in frame.size:
                raise PrepareError(
                    f"pictures are RGB; this one is {frame.mode}, {frame.width} x {frame.height}"
                )
        elif frame.dtype != np.uint8 or frame.ndim != 3 or frame.shape[2] != 3 or 0 in frame.shape:
            raise PrepareError(
                f"pixels are RGB, uint8, (H, W, 3); these are {frame.dtype}, {frame.shape}"
            )


def _check_text(questions: Sequence[str]) -> None:
    for question in questions:
        try:
            question.encode()
        except UnicodeEncodeError as error:
            raise PrepareError(f"a question is not valid text: {question!r}") from error
