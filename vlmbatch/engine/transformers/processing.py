"""Conversations to tensors, by the checkpoint's own processor in transformers."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np
import torch
import transformers
from PIL import Image
from transformers.models.auto import processing_auto

from vlmbatch.checkpoint import Checkpoint
from vlmbatch.core import Conversation, Part, Turn
from vlmbatch.errors import ModelLoadError, PrepareError

Tensors = Mapping[str, torch.Tensor]
_PROCESSORS: Any = processing_auto


@dataclasses.dataclass(frozen=True, slots=True)
class Payload:
    """Inputs of the model.

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


class OwnProcessor:
    """The processor class of any other family."""

    def __init__(self, checkpoint: Checkpoint, model_type: str) -> None:
        """Load it without its video processor, which would need torchvision."""
        name = str(_PROCESSORS.PROCESSOR_MAPPING_NAMES.get(model_type))
        found = getattr(transformers, name, None)
        if found is None:
            raise ModelLoadError(f"{checkpoint.name}: transformers has no processor for it")
        attributes = [part for part in found.get_attributes() if part != "video_processor"]
        without_video: Any = type(
            name, (found,), {"get_attributes": staticmethod(lambda: attributes)}
        )
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
        if any(part.detail for part in conversation.media()):
            raise PrepareError("this model has one detail for pictures; leave out `detail`")
        self._check_words(conversation, questions)
        pictures = iter([pictures_of(part)[0] for part in conversation.media()])
        messages = messages_of(conversation.turns, questions[0])
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


def messages_of(turns: Sequence[Turn], question: str) -> list[dict[str, Any]]:
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


def pictures_of(part: Part) -> list[Image.Image]:
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
