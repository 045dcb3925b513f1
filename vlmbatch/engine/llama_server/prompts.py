"""Prompts and pictures as llama.cpp takes them: our text with a marker for each picture, and our
pixels as PNG.

llama.cpp's image processor (``idefics3``) does both resizes of the checkpoint's own, and puts the
tokens around the tiles by itself. A picture after our second resize is of whole tiles and as long
as its setting says, so that its resizes are copies. The overview is its own: Lanczos with Pillow's
bits. Pictures of one tile take another way, see one_tile.py.
"""

from __future__ import annotations

import base64
import dataclasses
import io
from collections.abc import Sequence

import numpy as np
from PIL import Image

from vlmbatch.core import Conversation, Part, Picture, Pixels, Question, Request, picture_size
from vlmbatch.engine.llama_server.one_tile import BEHIND
from vlmbatch.errors import PrepareError
from vlmbatch.prepare.chat import Message
from vlmbatch.prepare.media_text import image_text, video_text
from vlmbatch.prepare.prompt import PromptWriter
from vlmbatch.prepare.tiles import TileSettings, fit_picture

_TEMPLATE_KINDS = {"text": "text", "picture": "image", "tile": "image", "clip": "video"}


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class Prompt:
    """The prompt of one question.

    Attributes:
        text: Its text, with a marker for each picture; empty for text alone.
        ids: Its token ids as the checkpoint's own tokenizer has them.
    """

    text: str
    ids: Sequence[int]


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class Payload:
    """The prompts and pictures of a request.

    Attributes:
        prompts: One a question.
        pictures: PNG files in base64, in the order of their markers.
        tiles: Tiles to encode.
        is_grid: Whether the pictures are cut into tiles, see ``Layout``.
    """

    prompts: Sequence[Prompt]
    pictures: Sequence[str]
    tiles: int
    is_grid: bool


@dataclasses.dataclass(frozen=True)
class Written:
    """Pictures of one part.

    Attributes:
        own: Their text in the checkpoint's prompt.
        sent: Their text with markers.
        pictures: The pictures.
        tiles: Their tiles.
    """

    own: str
    sent: str
    pictures: list[Image.Image]
    tiles: int


class Prompts:
    """Turns conversations into requests. Thread-safe."""

    def __init__(
        self,
        writer: PromptWriter,
        picture: TileSettings,
        clip: TileSettings | None,
        *,
        patched_edge: int,
        is_low: bool,
        context: int,
        marker: str,
    ) -> None:
        """Set up.

        Args:
            writer: Writes the prompts.
            picture: Tile settings of pictures at full detail.
            clip: Tile settings of the frames of clips; None if the model takes none.
            patched_edge: Edge of the part of a tile that whole patches cover, in pixels: llama.cpp
                would resize a picture of one tile to that.
            is_low: Whether pictures are one tile where their part does not say otherwise.
            context: Maximum number of tokens of prompt and answer together.
            marker: Stands for a picture.
        """
        self.writer, self.context = writer, context
        self._full, self._low = picture, dataclasses.replace(picture, split=False)
        self._clip, self._marker, self._is_low = clip, marker, is_low
        self._patched = (0, 0, patched_edge, patched_edge)

    def prepare(self, conversation: Conversation, questions: Sequence[Question]) -> Request:
        """Write the prompts of a conversation and fit its pictures.

        Raises:
            PrepareError: The pixels are not RGB pictures, a text holds an image token, the prompt
                is longer than the context, or one-tile and tiled pictures are mixed.
        """
        parts = [self._write(part) for part in conversation.media()]
        grids = {part.tiles > len(part.pictures) for part in parts}
        if len(grids) > 1:
            raise PrepareError(
                "llama-server takes pictures that are cut into tiles, or pictures of one tile and "
                "clips, in one conversation, not both: use --engine torch"
            )
        turns: list[Message] = [
            (turn.role, [(_TEMPLATE_KINDS[part.kind], part.text) for part in turn.parts])
            for turn in conversation.turns
        ]
        prompts = []
        for question in questions:
            self._check_text(question.text, turns)
            own = self.writer.written(turns, [part.own for part in parts], question.text)
            sent = self.writer.written(turns, [part.sent for part in parts], question.text)
            ids = self.writer.encode(own)
            if len(ids) + 1 > self.context:
                raise PrepareError(
                    f"the prompt has {len(ids)} tokens, the model's context is {self.context}"
                )
            prompts.append(Prompt(sent if parts else "", ids))
        pictures = [_png(picture) for part in parts for picture in part.pictures]
        tiles = sum(part.tiles for part in parts)
        payload = Payload(prompts, pictures, tiles, grids == {True})
        return Request(
            conversation.without_pixels(),
            questions,
            payload,
            sum(map(len, pictures)),
            tiles=tiles,
        )

    def _write(self, part: Part) -> Written:
        """Fit the pictures of a part, and write their text."""
        pixels = part.pixels
        if pixels is None or not pixels.frames:
            raise PrepareError("there are no pixels")
        if part.kind == "clip":
            return self._write_clip(pixels)
        if part.kind == "tile":
            tile = Image.fromarray(np.ascontiguousarray(np.asarray(pixels.frames[0], np.uint8)))
            own = image_text(0, 0, self.writer.tokens)
            return Written(own, self._one_tile, [tile.crop(self._patched)], 1)
        is_low = self._is_low if part.detail is None else part.detail == "low"
        image, rows, cols = _fit(pixels.frames[0], self._low if is_low else self._full)
        own = image_text(rows, cols, self.writer.tokens)
        if not rows:
            return Written(own, self._one_tile, [image.crop(self._patched)], 1)
        return Written(own, self._marker, [image], rows * cols + 1)

    def _write_clip(self, pixels: Pixels) -> Written:
        if self._clip is None:
            raise PrepareError(
                "the model does not say how frames of a clip are cut; ask about single frames "
                "(--per frame)"
            )
        times = pixels.times_seconds
        if len(times) != len(pixels.frames):
            raise PrepareError(f"the clip has {len(pixels.frames)} frames and {len(times)} times")
        duration = pixels.duration_seconds
        own = video_text(times, times[-1] if duration is None else duration, self.writer.tokens)
        frames = [_fit(frame, self._clip)[0].crop(self._patched) for frame in pixels.frames]
        whole = image_text(0, 0, self.writer.tokens)
        return Written(own, own.replace(whole, self._one_tile), frames, len(frames))

    @property
    def _one_tile(self) -> str:
        """Text of a picture of one tile: llama.cpp adds the token before it and the one behind it,
        see one_tile.py.
        """
        return f"{BEHIND}{self._marker}"

    def _check_text(self, question: str, turns: Sequence[Message]) -> None:
        tokens = self.writer.tokens
        for text in (question, *(text for _, parts in turns for _, text in parts)):
            if tokens.image in text:
                raise PrepareError(
                    f"a text may not hold the token {tokens.image}: it stands for pixels"
                )


def _fit(picture: Picture, settings: TileSettings) -> tuple[Image.Image, int, int]:
    """Resize a picture to whole tiles. Return it with its rows and columns."""
    if isinstance(picture, Image.Image):
        if picture.mode != "RGB" or 0 in picture.size:
            raise PrepareError(f"pictures are RGB; this one is {picture.mode}, {picture.size}")
    elif picture.dtype != np.uint8 or picture.ndim != 3 or picture.shape[2] != 3:
        raise PrepareError(
            f"pixels are RGB, uint8, (H, W, 3); these are {picture.dtype}, {picture.shape}"
        )
    try:
        image, plan = fit_picture(picture, settings)
    except (ValueError, OSError, MemoryError) as error:
        width, height = picture_size(picture)
        raise PrepareError(
            f"a picture of {width} x {height} pixels cannot be cut into tiles: "
            f"{error or type(error).__name__}"
        ) from error
    return image, plan.rows, plan.cols


def _png(picture: Image.Image) -> str:
    """Encode a picture, quickly: it goes over loopback."""
    data = io.BytesIO()
    picture.save(data, "PNG", compress_level=1)
    return base64.b64encode(data.getvalue()).decode()
