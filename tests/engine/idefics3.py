"""Idefics3 as transformers runs it by itself: its own processor, template and model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from PIL import Image

from tests.checkpoints import (
    GRANITE_DOCLING_TEMPLATE,
    GRANITE_TOKENS,
    LITERAL_TOKENS,
    build_tokenizer,
    write_tiny_checkpoint,
)
from vlmbatch.core import Conversation, Part, Pixels, Question, Turn
from vlmbatch.read.pictures.decode import load_image

Message = tuple[str, Sequence[str | Path]]
"""A role, and its parts in order: words, or paths of pictures."""

MULTIPLIERS = {
    "embedding_multiplier": 3.0,
    "attention_multiplier": 0.61,
    "residual_multiplier": 0.7,
    "logits_scaling": 2.5,
}
CORPUS = ["User: What is this?\n\nAssistant: 12 <row_1_col_1>\n", "<global-img> What are  7?"] * 9


class Oracle:
    """Answers greedily, one conversation at a time, in float32."""

    def __init__(self, folder: Path) -> None:
        self.processor: Any = transformers.Idefics3Processor.from_pretrained(folder, backend="pil")
        if self.processor.chat_template is None:
            self.processor.chat_template = self.processor.tokenizer.chat_template
        self.model: Any = transformers.Idefics3ForConditionalGeneration.from_pretrained(
            folder, dtype=torch.float32
        ).eval()

    def __call__(self, messages: Sequence[Message], new_tokens: int) -> tuple[list[int], list[int]]:
        """Token ids of the prompt, and of the answer."""
        inputs = self.processor.apply_chat_template(
            [
                {"role": role, "content": [_part(part) for part in parts]}
                for role, parts in messages
            ],
            add_generation_prompt=True,
            tokenize=True,
            return_dict=True,
            return_tensors="pt",
        )
        with torch.inference_mode():
            ids = self.model.generate(**inputs, do_sample=False, max_new_tokens=new_tokens)
        length = inputs["input_ids"].shape[1]
        return inputs["input_ids"][0].tolist(), ids[0, length:].tolist()


def _part(part: str | Path) -> dict[str, Any]:
    if isinstance(part, str):
        return {"type": "text", "text": part}
    with Image.open(part) as image:
        image.load()
    return {"type": "image", "image": image}


def conversation(messages: Sequence[Message]) -> tuple[Conversation, list[Question]]:
    """The same conversation for an engine; its last words are the question."""
    *before, (role, last) = messages
    *parts, question = last
    turns = [*before, (role, parts)] if parts else before
    return (
        Conversation(
            tuple(Turn(role, tuple(_engine_part(part) for part in parts)) for role, parts in turns)
        ),
        [Question(str(question))],
    )


def _engine_part(part: str | Path) -> Part:
    if isinstance(part, str):
        return Part("text", text=part)
    return Part("picture", pixels=Pixels(load_image(str(part), 1 << 30).frames))


def write_pictures(folder: Path) -> list[Path]:
    """Pictures of 37 awkward sizes and modes."""
    folder.mkdir(exist_ok=True)
    rng = np.random.default_rng(7)
    sizes = [(1, 1), (2, 2), (1, 40), (40, 1), (3, 50), (50, 3), (31, 33), (32, 32), (33, 32)]
    sizes += [(64, 128), (129, 127), (200, 10), (10, 200), (400, 300), (300, 401), (7, 900)]
    sizes += [(900, 7), (128, 128), (127, 128), (65, 64), (511, 513), (1024, 767)]
    modes = ["L", "LA", "RGBA", "P", "1"]
    cases = [("RGB", size) for size in sizes]
    cases += [(mode, size) for mode in modes for size in ((48, 37), (90, 131), (5, 4))]
    paths = []
    for number, (mode, (width, height)) in enumerate(cases):
        blocks = rng.integers(0, 256, (height // 8 + 1, width // 8 + 1, 4), dtype=np.uint8)
        pixels = np.kron(blocks, np.ones((8, 8, 1), np.uint8))[:height, :width]
        image = Image.fromarray(pixels, "RGBA").convert("RGB" if mode in "P1" else mode)
        if mode == "P":
            image = image.quantize(16)
        paths.append(folder / f"{number:02d}-{mode}-{width}x{height}.png")
        image.convert(mode).save(paths[-1], **({"transparency": 3} if mode == "P" else {}))
    return paths


def write_idefics3(folder: Path, **options: Any) -> Path:
    """A tiny random checkpoint of the family, as SmolVLM-256M-Instruct is laid out."""
    return write_tiny_checkpoint(folder, model_type="idefics3", **options)


def docling_options(**options: Any) -> Mapping[str, Any]:
    """Tokens, template and tied matrices of granite-docling-258M."""
    return {
        "tokenizer": build_tokenizer(last=GRANITE_TOKENS),
        "template": GRANITE_DOCLING_TEMPLATE,
        "starts": "<|start_of_role|>",
        "ends": ("<|end_of_text|>",),
        "tie": True,
        "layout": "saved",
        **options,
    }


def literal_options(**options: Any) -> Mapping[str, Any]:
    """Vocabulary and tiles of SmolVLM-Instruct: names of tiles are ordinary text, patches do not
    fill a tile, and three by three of them become a token.
    """
    tokenizer = build_tokenizer(CORPUS, merges=40, last=LITERAL_TOKENS)
    return {"tokenizer": tokenizer, "tile": 128, "patch": 14, "scale_factor": 3, **options}
