"""Conversations as the messages of OpenAI's chat API, with the pictures as ``data:`` URLs."""

from __future__ import annotations

import base64
import dataclasses
import datetime
import io
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
from PIL import Image

from vlmbatch.core import Conversation, Part, Picture, Pixels, Question, Request
from vlmbatch.errors import PrepareError
from vlmbatch.prepare.media_text import FRAME_INTRO, VIDEO_INTRO, VIDEO_OUTRO, number_words
from vlmbatch.prepare.tiles import TileSettings, fit_picture, plan_tiles

Json = dict[str, Any]
PNG_LEVEL = 3
"""Compression of PNG files: higher levels take much longer and save little."""
FULL_COLOUR_QUALITY = 90
"""JPEG quality from which on colours keep their full resolution."""


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class Payload:
    """The messages of a request.

    Attributes:
        messages: Those before the question, each with a list of parts.
        num_pictures: Their pictures.
    """

    messages: Sequence[Json]
    num_pictures: int

    def asking(self, question: str) -> list[Json]:
        """Return the messages with a question, which continues the last turn of the user."""
        messages = [*self.messages]
        parts: list[Json] = []
        if messages and messages[-1]["role"] == "user":
            parts = messages.pop()["content"]
        messages.append({"role": "user", "content": [*parts, _text(question)]})
        return [{**message, "content": _simple(message["content"])} for message in messages]


@dataclasses.dataclass(frozen=True)
class Messages:
    """Turns conversations into requests. Thread-safe.

    Attributes:
        picture: Tile settings of the model; their first resize is what pictures are shrunk to.
        clip: The same for the frames of clips.
        detail: Detail of pictures whose part does not say it.
        is_original: Whether pictures are sent in full size.
        jpeg_quality: Quality of JPEG files; None for PNG.
    """

    picture: TileSettings
    clip: TileSettings
    detail: Literal["full", "low"] = "full"
    is_original: bool = False
    jpeg_quality: int | None = None

    def prepare(self, conversation: Conversation, questions: Sequence[Question]) -> Request:
        """Write the messages of a conversation, and encode its pictures.

        Raises:
            PrepareError: The pixels are not RGB pictures, or cannot be sent.
        """
        messages: list[Json] = [
            {
                "role": turn.role,
                "content": [piece for part in turn.parts for piece in self._pieces(part)],
            }
            for turn in conversation.turns
        ]
        sizes = [
            len(piece["image_url"]["url"])
            for message in messages
            for piece in message["content"]
            if piece["type"] == "image_url"
        ]
        payload = Payload(messages, len(sizes))
        return Request(conversation.without_pixels(), questions, payload, sum(sizes))

    def _pieces(self, part: Part) -> list[Json]:
        if part.kind == "text":
            return [_text(part.text)]
        pixels = part.pixels
        if pixels is None or not pixels.frames:
            raise PrepareError("there are no pixels")
        if part.kind == "tile":
            raise PrepareError("an endpoint cuts pictures by itself: tiles cannot be sent")
        if part.kind == "clip":
            return self._frames(pixels)
        image = _checked(pixels.frames[0])
        if not self.is_original:
            image = _shrunk(image, self.picture)
        return [self._image(image, part.detail or self.detail)]

    def _frames(self, pixels: Pixels) -> list[Json]:
        """Return the frames of a clip between the words of the family's video prompt."""
        times, duration = pixels.times_seconds, pixels.duration_seconds
        if len(times) != len(pixels.frames):
            raise PrepareError(f"the clip has {len(pixels.frames)} frames and {len(times)} times")
        length = datetime.timedelta(seconds=int(times[-1] if duration is None else duration))
        words = VIDEO_INTRO.format(count=number_words(len(times)), duration=length)
        pieces = []
        for frame, time in zip(pixels.frames, times, strict=True):
            words += FRAME_INTRO.format(minutes=int(time // 60), seconds=int(time % 60))
            image = _checked(frame)
            if not self.is_original:
                image = _fitted(image, self.clip)
            pieces += [_text(words), self._image(image, "low")]
            words = ""
        return [*pieces, _text(VIDEO_OUTRO)]

    def _image(self, image: Image.Image, detail: Literal["full", "low"]) -> Json:
        data = io.BytesIO()
        if self.jpeg_quality is None:
            kind = "png"
            image.save(data, "PNG", compress_level=PNG_LEVEL)
        else:
            kind, quality = "jpeg", self.jpeg_quality
            subsampling = 0 if quality >= FULL_COLOUR_QUALITY else 2
            image.save(data, "JPEG", quality=quality, subsampling=subsampling)
        url = f"data:image/{kind};base64,{base64.b64encode(data.getvalue()).decode()}"
        return {
            "type": "image_url",
            "image_url": {"url": url, "detail": "low" if detail == "low" else "high"},
        }


def _text(text: str) -> Json:
    return {"type": "text", "text": text}


def _simple(parts: list[Json]) -> list[Json] | str:
    """Return a single text as such: some servers take no list without pictures."""
    is_text = len(parts) == 1 and parts[0]["type"] == "text"
    return str(parts[0]["text"]) if is_text else parts


def _checked(picture: Picture) -> Image.Image:
    """Return a picture as Pillow's.

    Raises:
        PrepareError: It is not RGB.
    """
    if isinstance(picture, Image.Image):
        if picture.mode != "RGB" or 0 in picture.size:
            raise PrepareError(f"pictures are RGB; this one is {picture.mode}, {picture.size}")
        return picture
    if picture.dtype != np.uint8 or picture.ndim != 3 or picture.shape[2] != 3:
        raise PrepareError(
            f"pixels are RGB, uint8, (H, W, 3); these are {picture.dtype}, {picture.shape}"
        )
    return Image.fromarray(np.ascontiguousarray(picture))


def _shrunk(image: Image.Image, settings: TileSettings) -> Image.Image:
    """Do the first resize of the model's processor where it makes a picture smaller. The endpoint's
    own is then a copy.
    """
    resized = plan_tiles(*image.size, settings).resized
    if resized[0] > image.width or resized[1] > image.height or resized == image.size:
        return image
    return _resized(image, lambda: image.resize(resized, Image.Resampling(settings.resample)))


def _fitted(image: Image.Image, settings: TileSettings) -> Image.Image:
    return _resized(image, lambda: fit_picture(image, settings)[0])


def _resized(image: Image.Image, resize: Any) -> Image.Image:
    try:
        found: Image.Image = resize()
    except (ValueError, OSError, MemoryError) as error:
        raise PrepareError(
            f"a picture of {image.width} x {image.height} pixels cannot be resized: "
            f"{error or type(error).__name__}"
        ) from error
    return found
