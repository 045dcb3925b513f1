"""Prepare pixels and questions for the engine as the checkpoint's own processor does; on uint8, on
any number of threads, without torch.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from vlmbatch.checkpoint import Checkpoint
from vlmbatch.core import (
    Conversation,
    Part,
    Picture,
    Pixels,
    Question,
    Request,
    UInt8Array,
    draw_seed,
    picture_size,
)
from vlmbatch.errors import PrepareError
from vlmbatch.job import Detail, ResourceOptions
from vlmbatch.prepare.compiled import shared_resizer
from vlmbatch.prepare.digests import digest_tiles
from vlmbatch.prepare.lanczos import is_worth_leaving
from vlmbatch.prepare.media_text import image_text, video_text
from vlmbatch.prepare.page_layout import lay_out
from vlmbatch.prepare.payload import Payload, UncutPicture, UncutTiles
from vlmbatch.prepare.prompt import PromptWriter
from vlmbatch.prepare.settings import read_tile_settings
from vlmbatch.prepare.tiles import TileSettings, cut_tiles, fit_picture, plan_tiles

_TEMPLATE_KINDS = {"text": "text", "picture": "image", "tile": "image", "clip": "video"}

DEFAULT_CONTEXT = 2048
"""Default of transformers' Llama configuration, for a config.json without it; the published
checkpoints have 8192.
"""


class Preparer:
    """Turns conversations into requests. Thread-safe and picklable; Pillow releases the GIL while
    it resizes, so threads help.
    """

    def __init__(
        self,
        writer: PromptWriter,
        picture: TileSettings,
        clip: TileSettings | None,
        *,
        context: int,
        detail: Detail = "full",
        cache_folder: Path | None = None,
        uncut_bytes: int = 0,
    ) -> None:
        """Set up with the values that ``from_checkpoint`` reads.

        Args:
            writer: Writes the prompts.
            picture: Tile settings of pictures.
            clip: Tile settings of clip frames; None if the checkpoint has none.
            context: Maximum number of tokens of prompt and answer together.
            detail: ``full`` follows the checkpoint, ``native`` does not enlarge small pictures
                beyond a whole tile, ``low`` is one tile.
            cache_folder: Keeps what is compiled for this machine; None for the user's usual one.
            uncut_bytes: Leave pictures to the engine's device, if that cuts one in so much memory;
                0 to cut all of them here.
        """
        self.writer = writer
        self.seq_len = writer.tokens.seq_len
        self.context = context
        self.detail = detail
        self._full = picture
        self._clip = clip
        self._cache_folder = cache_folder or ResourceOptions().cache_folder
        self.uncut_bytes = uncut_bytes
        self._compiled = shared_resizer(self._cache_folder)
        self._image_prefix = functools.lru_cache(maxsize=64)(
            lambda rows, cols: tuple(writer.image_prefix(rows, cols))
        )
        self._image_question = functools.lru_cache(maxsize=1024)(
            lambda question: tuple(writer.image_question(question))
        )
        self._video_question = functools.lru_cache(maxsize=1024)(
            lambda question: tuple(writer.video_question(question))
        )

    def __reduce__(self) -> tuple[Any, ...]:
        return self._maker(self.uncut_bytes), (self.writer, self._full, self._clip)

    def leaving_pictures(self, uncut_bytes: int) -> Preparer:
        """The same preparer, but pictures whose upload is worth it are left to the device.

        Args:
            uncut_bytes: See ``__init__``.
        """
        return self._maker(uncut_bytes)(self.writer, self._full, self._clip)

    def _maker(self, uncut_bytes: int) -> Callable[..., Preparer]:
        settings: dict[str, Any] = {"detail": self.detail, "cache_folder": self._cache_folder}
        return functools.partial(
            Preparer, context=self.context, uncut_bytes=uncut_bytes, **settings
        )

    @classmethod
    def from_checkpoint(
        cls, checkpoint: Checkpoint, detail: Detail = "full", cache_folder: Path | None = None
    ) -> Preparer:
        """Read a checkpoint's tokenizer, chat template and processor files.

        Args:
            checkpoint: The checkpoint.
            detail: Detail of pictures; see ``__init__``. Clips are not affected.
            cache_folder: See ``__init__``.

        Raises:
            ModelLoadError: A file is missing, or has invalid settings.
        """
        picture, clip = read_tile_settings(checkpoint)
        text = checkpoint.config.get("text_config") or {}
        context = int(text.get("max_position_embeddings") or DEFAULT_CONTEXT)
        writer = PromptWriter.from_checkpoint(checkpoint)
        settings: dict[str, Any] = {"detail": detail, "cache_folder": cache_folder}
        return cls(writer, picture, clip, context=context, **settings)

    def prepare(self, conversation: Conversation, questions: Sequence[Question]) -> Request:
        """Cut the tiles and write the prompts of a conversation.

        Args:
            conversation: The conversation, with pixels.
            questions: The questions, at least one.

        Returns:
            The request, with a ``Payload`` and without a tag.

        Raises:
            PrepareError: The pixels are not RGB pictures, a text holds an image token, or the
                prompt is longer than the context.
        """
        if not questions:
            raise PrepareError("there is no question to ask")
        media = conversation.media()
        for part in media:
            _check_pixels(part)
            if part.kind == "clip" and self._clip is None:
                raise PrepareError(
                    "the model takes pictures, no video; ask about single frames (--per frame)"
                )
        texts = [question.text for question in questions]
        prefix_ids, question_ids = self._words(conversation, media, texts)
        self._check_context(len(prefix_ids) + max(map(len, question_ids)), media)
        tiles = self._tiles(media)
        image_tokens = prefix_ids.count(self.writer.image_token_id)
        if image_tokens != len(tiles) * self.seq_len:
            raise PrepareError(
                f"{image_tokens} image tokens for {len(tiles)} tiles of {self.seq_len}: "
                "tokenizer and processor do not match"
            )
        seeds = [
            draw_seed(question.seed, conversation.key, question.text) for question in questions
        ]
        keys = digest_tiles(tiles)
        payload = Payload(tiles, prefix_ids, question_ids, seeds, keys)
        return Request(
            conversation.without_pixels(),
            questions,
            payload,
            tiles.nbytes,
            tiles=len(tiles),
            native_tiles=self._native_tiles(media),
        )

    def cut(self, conversation: Conversation) -> list[Conversation]:
        """Cut a picture into conversations about its tiles, in reading order and between lines and
        words: see page_layout.py. A tile of one colour is left out, because a model invents text
        when asked to read an empty tile.

        Args:
            conversation: A conversation about one picture.

        Raises:
            PrepareError: It is not an RGB picture.
        """
        (part,) = conversation.media()
        (picture,) = _check_pixels(part).frames
        settings = self._settings(picture_size(picture))
        try:
            page, plan = fit_picture(picture, settings)
            parts = lay_out(np.asarray(page), settings.tile_edge) if plan.rows else []
            parts = parts or [
                np.ascontiguousarray(cut_tiles(picture, settings)[0][-1].transpose(1, 2, 0))
            ]
        except (ValueError, OSError, MemoryError) as error:
            raise _uncuttable(picture, error) from error
        return [
            Conversation.about("tile", Pixels((part,)), f"{conversation.key}#tile={number}")
            for number, part in enumerate(parts)
        ]

    def decode(self, ids: Sequence[int]) -> str:
        """Decode tokens to text, without special tokens."""
        return self.writer.decode(ids)

    def token_text(self, token: int) -> str:
        """Decode one token, also a special one."""
        return self.writer.token_text(token)

    def num_tiles(self, width: int, height: int, detail: Detail | None = None) -> int:
        """Count the tiles of a picture of this size, at the preparer's detail or another one."""
        return plan_tiles(width, height, self._settings((width, height), detail)).n_tiles

    @property
    def takes_clips(self) -> bool:
        """True if the model takes clips beside pictures."""
        return self._clip is not None

    def _native_tiles(self, media: Sequence[Part]) -> int | None:
        """Count the tiles of pictures at native detail, if the detail is full."""
        if self.detail != "full" or not media:
            return None
        if any(part.kind != "picture" or part.detail for part in media):
            return None
        sizes = [picture_size(_frames(part)[0]) for part in media]
        return sum(self.num_tiles(*size, "native") for size in sizes)

    def _settings(self, size: tuple[int, int], detail: Detail | None = None) -> TileSettings:
        """Return the settings for a picture of a size (width, height)."""
        detail = detail or self.detail
        if detail == "low":
            return dataclasses.replace(self._full, split=False)
        return self._full.native(*size) if detail == "native" else self._full

    def _words(
        self, conversation: Conversation, media: Sequence[Part], questions: Sequence[str]
    ) -> tuple[Sequence[int], list[Sequence[int]]]:
        """Token ids of the prefix and of the questions; the shortest conversations are cached."""
        turns = conversation.turns
        is_short = len(turns) == 1 and len(turns[0].parts) == len(media) == 1
        if is_short and turns[0].role == "user" and self.writer.splits:
            part = media[0]
            if part.kind == "clip":
                prefix: Sequence[int] = tuple(self.writer.video_prefix(*self._times(part)))
                return prefix, [self._video_question(question) for question in questions]
            grid = (0, 0) if part.kind == "tile" else self._grid(part)
            return self._image_prefix(*grid), [self._image_question(text) for text in questions]
        messages = [
            (turn.role, [(_TEMPLATE_KINDS[part.kind], part.text) for part in turn.parts])
            for turn in turns
        ]
        prefix, ids = self.writer.chat(
            messages, [self._media_text(part) for part in media], questions
        )
        return prefix, list(ids)

    def _media_text(self, part: Part) -> str:
        if part.kind == "clip":
            return video_text(*self._times(part), self.writer.tokens)
        grid = (0, 0) if part.kind == "tile" else self._grid(part)
        return image_text(*grid, self.writer.tokens)

    def _grid(self, part: Part) -> tuple[int, int]:
        """Rows and columns of a picture's tiles."""
        size = picture_size(_frames(part)[0])
        plan = plan_tiles(*size, self._settings(size, part.detail))
        return plan.rows, plan.cols

    def _times(self, part: Part) -> tuple[Sequence[float], float]:
        """Times of a clip's frames, and the duration of its video."""
        pixels = part.pixels
        assert pixels is not None  # checked by prepare
        times = pixels.times_seconds
        if len(times) != len(pixels.frames):
            raise PrepareError(f"the clip has {len(pixels.frames)} frames and {len(times)} times")
        duration = pixels.duration_seconds
        return times, times[-1] if duration is None else duration  # like the processor

    def _tiles(self, media: Sequence[Part]) -> UInt8Array | UncutTiles:
        """The tiles of all media, uint8 (n, 3, E, E)."""
        edge = self._full.tile_edge
        found = [tiles for part in media for tiles in self._cut(part)]
        cut = [part for part in found if isinstance(part, np.ndarray)]
        if len(cut) < len(found):
            return UncutTiles(found, edge)
        if not cut:
            return np.zeros((0, 3, edge, edge), np.uint8)
        return cut[0] if len(cut) == 1 else np.concatenate(cut)

    def _cut(self, part: Part) -> list[UInt8Array | UncutPicture]:
        frames = _frames(part)
        if part.kind == "tile":
            tile = np.ascontiguousarray(np.asarray(frames[0], np.uint8).transpose(2, 0, 1))
            return [tile[np.newaxis]]
        try:
            if part.kind == "picture":
                settings = self._settings(picture_size(frames[0]), part.detail)
                return [self._cut_or_leave(frames[0], settings)]
            assert self._clip is not None  # checked by prepare
            return [self._cut_or_leave(frame, self._clip) for frame in frames]
        except (ValueError, OSError, MemoryError) as error:
            raise _uncuttable(frames[0], error) from error

    def _cut_or_leave(self, picture: Picture, settings: TileSettings) -> UInt8Array | UncutPicture:
        if self.uncut_bytes:
            size = picture_size(picture)
            plan = plan_tiles(*size, settings)
            if is_worth_leaving(size, plan, settings, self.uncut_bytes):
                # An array is copied: it may be the caller's, or a view of a video's buffer.
                is_array = isinstance(picture, np.ndarray)
                pixels = np.array(picture, order="C") if is_array else np.asarray(picture)
                return UncutPicture(pixels, plan, settings.tile_edge)
        return cut_tiles(picture, settings, self._compiled)[0]

    def _check_context(self, prompt_tokens: int, media: Sequence[Part]) -> None:
        if prompt_tokens + 1 <= self.context:
            return
        frames = max((len(_frames(part)) for part in media if part.kind == "clip"), default=1)
        hint = f"; use fewer than {frames} frames (--num-frames)" if frames > 1 else ""
        raise PrepareError(
            f"the prompt has {prompt_tokens} tokens, the model's context is {self.context}{hint}"
        )


def _uncuttable(picture: Picture, error: Exception) -> PrepareError:
    width, height = picture_size(picture)
    return PrepareError(
        f"a picture of {width} x {height} pixels cannot be cut into tiles: "
        f"{error or type(error).__name__}"
    )


def _frames(part: Part) -> Sequence[Picture]:
    assert part.pixels is not None  # checked by prepare
    return part.pixels.frames


def _check_pixels(part: Part) -> Pixels:
    pixels = part.pixels
    if pixels is None or not pixels.frames:
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
    return pixels
