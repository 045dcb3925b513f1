"""SmolVLM's and Idefics3's processor, put together from the parts that need no torchvision."""

from __future__ import annotations

import math
import types
from collections.abc import Mapping, Sequence
from typing import Any

import torch
import transformers
from PIL import Image
from transformers.models.smolvlm import processing_smolvlm

from vlmbatch.checkpoint import Checkpoint
from vlmbatch.core import Conversation, Part
from vlmbatch.engine.transformers.processing import Payload, messages_of, pictures_of
from vlmbatch.errors import MissingDependencyError, PrepareError
from vlmbatch.job import Detail

TILED_TYPES = ("smolvlm", "idefics3")
"""Model types that cut pictures into tiles of one size, and write the same words around them."""
CLIP_TYPE = "smolvlm"
"""The one of them that takes clips."""

_SMOLVLM: Any = processing_smolvlm


class TiledProcessor:
    """Make conversations into tensors. See ``Processor``."""

    def __init__(self, checkpoint: Checkpoint, config: Any, detail: Detail) -> None:
        """Load tokenizer, chat template and image processor."""
        # AutoTokenizer would rebuild that of an Idefics3 whose files name the class of GPT-2, with
        # another pre-tokenizer than tokenizer.json has; SmolVLM's it takes as it is.
        self.tokenizer = transformers.PreTrainedTokenizerFast.from_pretrained(
            checkpoint.folder, local_files_only=True
        )
        self._template = checkpoint.chat_template()
        self._images = transformers.AutoImageProcessor.from_pretrained(
            checkpoint.folder, backend="pil", local_files_only=True, trust_remote_code=False
        )
        self._edge = int(self._images.max_image_size["longest_edge"])
        self._longest = int(self._images.size["longest_edge"])
        self._detail = detail
        self._clip = _clip_settings(checkpoint) if config.model_type == CLIP_TYPE else None
        vision = config.vision_config
        grid = vision.image_size // vision.patch_size // config.scale_factor
        self._words = types.SimpleNamespace(
            image_seq_len=checkpoint.read_json("processor_config.json").get(
                "image_seq_len", grid**2
            ),
            image_token="<image>",
            video_token="<video>",
            fake_image_token="<fake_token_around_image>",
            global_image_token="<global-img>",
        )
        if config.model_type == "idefics3":  # as its processor does
            special = [self._words.fake_image_token, self._words.image_token, "<end_of_utterance>"]
            self.tokenizer.add_special_tokens({"additional_special_tokens": special})
        else:
            for name in ("image_token", "fake_image_token", "global_image_token"):
                setattr(
                    self._words, name, getattr(self.tokenizer, name, getattr(self._words, name))
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
            messages = messages_of(conversation.turns, question)
            text = _render(
                self.tokenizer,
                messages,
                _SMOLVLM.DEFAULT_CHAT_TEMPLATE if has_clip else self._template,
            )
            bos = self.tokenizer.bos_token
            ids = self.tokenizer(
                self._fill(text, markers, words),
                add_special_tokens=not (bos and text.startswith(bos)),
                return_tensors="pt",
            )
            prompts.append({"input_ids": ids["input_ids"]})
        pixel_values = {"pixel_values": torch.cat(tiles, 1)} if tiles else {}
        return Payload(pixel_values, prompts, sum(len(part[0]) for part in tiles))

    def _picture_part(self, part: Part) -> tuple[str, torch.Tensor]:
        """Words and tiles, float32 (1, tiles, 3, E, E), of a picture or tile."""
        picture = pictures_of(part)[0]
        detail = part.detail or self._detail
        options: dict[str, Any] = {}
        if part.kind == "tile":
            if picture.size != (self._edge, self._edge):
                raise PrepareError(
                    f"a tile has {self._edge} x {self._edge} pixels; this one has "
                    f"{picture.width} x {picture.height}"
                )
            options = {"do_resize": False, "do_image_splitting": False}
        elif detail == "low":
            options = {"do_image_splitting": False}
        elif detail == "native":
            own = math.ceil(max(picture.size) / self._edge) * self._edge
            options = {"size": {"longest_edge": min(own, self._longest)}}
        found = self._process([picture], options)
        text = _SMOLVLM.get_image_prompt_string(
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
        frames, pixels = pictures_of(part), part.pixels
        assert pixels is not None  # or there were no frames
        if self._clip is None:
            raise PrepareError(
                "the model takes pictures, no video; ask about single frames (--per frame)"
            )
        if len(pixels.times_seconds) != len(frames):
            raise PrepareError(
                f"the clip has {len(frames)} frames and {len(pixels.times_seconds)} times"
            )
        if _SMOLVLM.num2words is None:
            raise MissingDependencyError(
                "clips with --engine transformers need num2words: pip install num2words"
            )
        found = self._process(frames, self._clip | {"do_image_splitting": False})
        metadata = types.SimpleNamespace(
            fps=1, timestamps=pixels.times_seconds, duration=pixels.duration_seconds
        )
        video = {"pixel_values": found["pixel_values"], "video_metadata": [metadata]}
        # The processor itself wants torchvision; what writes its words does not.
        text = _SMOLVLM.SmolVLMProcessor.replace_video_token(self._words, video, 0)
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


def _clip_settings(checkpoint: Checkpoint) -> dict[str, Any] | None:
    """Settings of clips that differ from pictures; None where the checkpoint does not say."""
    settings = checkpoint.video_processor()
    size = settings.get("video_sampling", {}).get("video_size") or settings.get("size")
    if not size:
        return None
    others = ("max_image_size", "resample", "do_resize")
    return {"size": size} | {name: settings[name] for name in others if name in settings}


def _render(tokenizer: Any, messages: list[dict[str, Any]], template: str) -> str:
    try:
        text: str = tokenizer.apply_chat_template(
            messages, chat_template=template, add_generation_prompt=True, tokenize=False
        )
    except Exception as error:  # a template may raise anything
        raise PrepareError(f"the chat template refuses the conversation: {error}") from error
    return text
