"""Conversations to tensors, by the checkpoint's own processor in transformers."""

from __future__ import annotations

import dataclasses
import math
import types
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np
import torch
import transformers
from PIL import Image
from transformers.models.auto.processing_auto import PROCESSOR_MAPPING_NAMES
from transformers.models.smolvlm import processing_smolvlm

from vlmbatch.checkpoint import Checkpoint
from vlmbatch.core import Conversation, Part, Turn
from vlmbatch.errors import MissingDependencyError, ModelLoadError, PrepareError
from vlmbatch.job import Detail

TILED_TYPES = ("smolvlm", "idefics3")
"""Model types that cut pictures into tiles of one size, and write the same words around them."""

Tensors = Mapping[str, torch.Tensor]


@dataclasses.dataclass(frozen=True, slots=True)
class Payload:
    """What the model takes.

    Attributes:
        media: Pixels and what belongs to them, as the processor gives them for one prompt.
        prompts: For each question its token ids, int64 (1, length), and what else has a value a
            token.
        tiles: Tiles in ``media``; None where the family has none.
    """

    media: Tensors
    prompts: Sequence[Tensors]
    tiles: int | None

    @property
    def media_bytes(self) -> int:
        """Bytes of pixels and what belongs to them."""
        return sum(tensor.nbytes for tensor in self.media.values())


class Processor(Protocol):
    """Make conversations into tensors; thread-safe.

    Attributes:
        tokenizer: transformers' tokenizer.
    """

    tokenizer: Any

    def __call__(self, conversation: Conversation, questions: Sequence[str]) -> Payload:
        """Tensors for each question about a conversation.

        Raises:
            PrepareError: They cannot be made.
        """
        ...


def open_processor(checkpoint: Checkpoint, config: Any, detail: Detail) -> Processor:
    """Read the processor's files.

    Args:
        checkpoint: Where they are.
        config: The model's configuration, as transformers loaded it.
        detail: How closely to look at pictures.

    Raises:
        ModelLoadError: A file is missing or broken, or the processor needs torchvision.
    """
    try:
        if config.model_type in TILED_TYPES:
            return TiledProcessor(checkpoint, config, detail)
        return OwnProcessor(checkpoint, config.model_type)
    except ModelLoadError:
        raise
    except Exception as error:  # transformers raises errors of many kinds
        raise ModelLoadError(
            f"{checkpoint.name}: transformers cannot open its processor: {error}"
        ) from error


class TiledProcessor:
    """SmolVLM's and Idefics3's processor, put together from the parts that need no torchvision."""

    def __init__(self, checkpoint: Checkpoint, config: Any, detail: Detail) -> None:
        """Load tokenizer, chat template and image processor."""
        self.tokenizer = _tokenizer(checkpoint)
        self._template = checkpoint.chat_template()
        self._images = transformers.AutoImageProcessor.from_pretrained(
            checkpoint.folder, backend="pil", local_files_only=True, trust_remote_code=False
        )
        self._edge = int(self._images.max_image_size["longest_edge"])
        self._longest = int(self._images.size["longest_edge"])
        self._detail = detail
        self._clip = _clip_settings(checkpoint)
        vision = config.vision_config
        grid = vision.image_size // vision.patch_size // config.scale_factor
        self._words = types.SimpleNamespace(
            image_seq_len=checkpoint.read_json("processor_config.json").get(
                "image_seq_len", grid**2
            ),
            image_token=getattr(self.tokenizer, "image_token", "<image>"),
            video_token="<video>",
            fake_image_token=getattr(
                self.tokenizer, "fake_image_token", "<fake_token_around_image>"
            ),
            global_image_token=getattr(self.tokenizer, "global_image_token", "<global-img>"),
        )

    def __call__(self, conversation: Conversation, questions: Sequence[str]) -> Payload:
        """See ``Processor``."""
        media = conversation.media()
        has_clip = any(part.kind == "clip" for part in media)
        markers, words, tiles = [], [], []
        for part in media:
            is_clip = part.kind == "clip"
            markers.append(self._words.video_token if is_clip else self._words.image_token)
            text, pixels = self._clip_part(part) if is_clip else self._picture_part(part)
            words.append(text)
            tiles.append(pixels)
        prompts = []
        for question in questions:
            messages = _messages(conversation.turns, question)
            text = _render(
                self.tokenizer,
                messages,
                processing_smolvlm.DEFAULT_CHAT_TEMPLATE if has_clip else self._template,
            )
            ids = self.tokenizer(self._fill(text, markers, words), return_tensors="pt")
            prompts.append({"input_ids": ids["input_ids"]})
        pixel_values = {"pixel_values": torch.cat(tiles, 1)} if tiles else {}
        return Payload(pixel_values, prompts, sum(len(part[0]) for part in tiles))

    def _picture_part(self, part: Part) -> tuple[str, torch.Tensor]:
        """Words and tiles, float32 (1, tiles, 3, E, E), of a picture or tile."""
        picture = _pictures(part)[0]
        options: dict[str, Any] = {}
        if part.kind == "tile":
            if picture.size != (self._edge, self._edge):
                raise PrepareError(
                    f"a tile has {self._edge} x {self._edge} pixels; this one has "
                    f"{picture.width} x {picture.height}"
                )
            options = {"do_resize": False, "do_image_splitting": False}
        elif self._detail == "low":
            options = {"do_image_splitting": False}
        elif self._detail == "native":
            own = math.ceil(max(picture.size) / self._edge) * self._edge
            options = {"size": {"longest_edge": min(own, self._longest)}}
        found = self._process([picture], options)
        text = processing_smolvlm.get_image_prompt_string(
            found["rows"][0][0],
            found["cols"][0][0],
            self._words.image_seq_len,
            fake_token_around_image=self._words.fake_image_token,
            image_token=self._words.image_token,
            global_image_token=self._words.global_image_token,
        )
        return text, found["pixel_values"]

    def _clip_part(self, part: Part) -> tuple[str, torch.Tensor]:
        """Words and frames, float32 (1, frames, 3, E, E), of a clip."""
        frames, pixels = _pictures(part), part.pixels
        assert pixels is not None  # or there were no frames
        if self._clip is None:
            raise PrepareError(
                "the checkpoint does not say how frames of a clip are cut; ask about single "
                "frames (--per frame)"
            )
        if len(pixels.times_seconds) != len(frames):
            raise PrepareError(
                f"the clip has {len(frames)} frames and {len(pixels.times_seconds)} times"
            )
        if processing_smolvlm.num2words is None:
            raise MissingDependencyError(
                "clips with --engine transformers need num2words: pip install num2words"
            )
        found = self._process(frames, self._clip | {"do_image_splitting": False})
        metadata = types.SimpleNamespace(
            fps=1, timestamps=pixels.times_seconds, duration=pixels.duration_seconds
        )
        video = {"pixel_values": found["pixel_values"], "video_metadata": [metadata]}
        # The processor itself wants torchvision; what writes its words does not.
        text = processing_smolvlm.SmolVLMProcessor.replace_video_token(self._words, video, 0)
        return text, found["pixel_values"]

    def _process(self, pictures: list[Image.Image], options: Mapping[str, Any]) -> Any:
        try:
            found = self._images(
                [pictures], return_row_col_info=True, return_tensors="pt", **options
            )
        except (ValueError, OSError, MemoryError, ZeroDivisionError) as error:
            size = f"{pictures[0].width} x {pictures[0].height}"
            raise PrepareError(
                f"a picture of {size} pixels cannot be cut into tiles: {error}"
            ) from error
        return found

    def _fill(self, text: str, markers: Sequence[str], words: Sequence[str]) -> str:
        """Replace the markers of a rendered conversation by the words of its media."""
        for marker in {self._words.image_token, *markers}:
            if text.count(marker) != markers.count(marker):
                raise PrepareError(
                    f"a text may not hold the token {marker}: it stands for pixels"
                    if text.count(marker) > markers.count(marker)
                    else f"the chat template has no place for {marker}"
                )
        pieces = []
        for marker, replacement in zip(markers, words, strict=True):
            before, _, text = text.partition(marker)
            pieces += [before, replacement]
        return "".join([*pieces, text])


class OwnProcessor:
    """The processor class of any other family."""

    def __init__(self, checkpoint: Checkpoint, model_type: str) -> None:
        """Load it without its video processor, which would need torchvision."""
        name = PROCESSOR_MAPPING_NAMES.get(model_type)
        found = getattr(transformers, name, None) if name else None
        if found is None:
            raise ModelLoadError(f"{checkpoint.name}: transformers has no processor for it")
        attributes = [part for part in found.get_attributes() if part != "video_processor"]
        without_video = type(name, (found,), {"get_attributes": lambda: attributes})
        self._processor = without_video.from_pretrained(
            checkpoint.folder, backend="pil", local_files_only=True, trust_remote_code=False
        )
        self.tokenizer = self._processor.tokenizer
        if self._processor.chat_template is None:
            self._processor.chat_template = checkpoint.chat_template()

    def __call__(self, conversation: Conversation, questions: Sequence[str]) -> Payload:
        """See ``Processor``."""
        if any(part.kind != "picture" for part in conversation.media()):
            raise PrepareError(
                "this model takes pictures, neither clips nor tiles; ask about single frames "
                "(--per frame)"
            )
        self._check_words(conversation, questions)
        pictures = iter([_pictures(part)[0] for part in conversation.media()])
        messages = _messages(conversation.turns, questions[0])
        for part in (part for message in messages for part in message["content"]):
            if part["type"] == "image":
                part["image"] = next(pictures)
        media: dict[str, torch.Tensor] = {}
        prompts: list[dict[str, torch.Tensor]] = []
        for question in questions:
            messages[-1]["content"][-1]["text"] = question
            tensors = self._process(messages)
            ids = tensors["input_ids"]
            tensors.pop("attention_mask", None)
            prompt = {key: value for key, value in tensors.items() if _is_by_token(key, value, ids)}
            media = {key: value for key, value in tensors.items() if key not in prompt}
            prompts.append(prompt)
        return Payload(media, prompts, None)

    def _process(self, messages: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        try:
            found = self._processor.apply_chat_template(
                messages,
                add_generation_prompt=True,
                tokenize=True,
                return_dict=True,
                return_tensors="pt",
            )
        except Exception as error:  # templates and processors raise errors of all kinds
            raise PrepareError(
                f"the model's processor refuses the conversation: {error or type(error).__name__}"
            ) from error
        return dict(found)

    def _check_words(self, conversation: Conversation, questions: Sequence[str]) -> None:
        token = getattr(self._processor, "image_token", None)
        texts = [part.text for turn in conversation.turns for part in turn.parts]
        if token and any(str(token) in text for text in [*texts, *questions]):
            raise PrepareError(f"a text may not hold the token {token}: it stands for pixels")


def _is_by_token(key: str, value: torch.Tensor, ids: torch.Tensor) -> bool:
    """Whether a tensor has a value a token: the ids, or types of tokens."""
    return key == "input_ids" or (key.endswith("token_type_ids") and value.shape == ids.shape)


def _tokenizer(checkpoint: Checkpoint) -> Any:
    return transformers.AutoTokenizer.from_pretrained(
        checkpoint.folder, local_files_only=True, trust_remote_code=False
    )


def _clip_settings(checkpoint: Checkpoint) -> dict[str, Any] | None:
    """How frames of clips differ from pictures; None where the checkpoint does not say."""
    settings = checkpoint.video_processor()
    size = settings.get("video_sampling", {}).get("video_size") or settings.get("size")
    if not size:
        return None
    others = ("max_image_size", "resample", "do_resize")
    return {"size": size} | {name: settings[name] for name in others if name in settings}


def _messages(turns: Sequence[Turn], question: str) -> list[dict[str, Any]]:
    """Turns and a question as chat templates take them."""
    kinds = {"picture": "image", "tile": "image", "clip": "video"}
    messages: list[dict[str, Any]] = [
        {
            "role": turn.role,
            "content": [
                {"type": "text", "text": part.text}
                if part.kind == "text"
                else {"type": kinds[part.kind]}
                for part in turn.parts
            ],
        }
        for turn in turns
    ]
    if not messages or messages[-1]["role"] != "user":
        messages.append({"role": "user", "content": []})
    messages[-1]["content"].append({"type": "text", "text": question})
    return messages


def _render(tokenizer: Any, messages: list[dict[str, Any]], template: str) -> str:
    try:
        text: str = tokenizer.apply_chat_template(
            messages, chat_template=template, add_generation_prompt=True, tokenize=False
        )
    except Exception as error:  # a template may raise anything
        raise PrepareError(f"the chat template refuses the conversation: {error}") from error
    return text


def _pictures(part: Part) -> list[Image.Image]:
    """The frames of a part as Pillow images.

    Raises:
        PrepareError: There are none, or they are not RGB.
    """
    if part.pixels is None or not part.pixels.frames:
        raise PrepareError("there are no pixels")
    found = []
    for frame in part.pixels.frames:
        if isinstance(frame, np.ndarray):
            if frame.dtype != np.uint8 or frame.ndim != 3 or frame.shape[2] != 3 or not frame.size:
                raise PrepareError(
                    f"pixels are RGB, uint8, (H, W, 3); these are {frame.dtype}, {frame.shape}"
                )
            frame = Image.fromarray(frame)
        if frame.mode != "RGB" or 0 in frame.size:
            raise PrepareError(
                f"pictures are RGB; this one is {frame.mode}, {frame.width} x {frame.height}"
            )
        found.append(frame)
    return found
