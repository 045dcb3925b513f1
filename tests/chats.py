"""Conversations as transformers writes and answers them, put together without torchvision, and
random ones to compare.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
import transformers
from PIL import Image
from transformers.models.smolvlm import processing_smolvlm as reference
from transformers.models.smolvlm.image_processing_pil_smolvlm import SmolVLMImageProcessorPil

from vlmbatch.checkpoint import Checkpoint
from vlmbatch.core import Conversation, Part, Pixels, Question, Turn

TILE, SEQ_LEN = 32, 4


def noise(width: int, height: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def text(words: str) -> Part:
    return Part("text", text=words)


def picture(width: int = 64, height: int = 48, seed: int = 0) -> Part:
    return Part("picture", pixels=Pixels([noise(width, height, seed)]))


def tile(seed: int = 0) -> Part:
    return Part("tile", pixels=Pixels([noise(TILE, TILE, seed)]))


def clip(frames: int = 3, seed: int = 0) -> Part:
    times = tuple(30.5 * number for number in range(frames))
    pictures = [noise(40, 30, seed + number) for number in range(frames)]
    return Part("clip", pixels=Pixels(pictures, times, 99.0))


def user(*parts: Part) -> Turn:
    return Turn("user", parts)


class Oracle:
    """Token ids, tiles and greedy answers as transformers makes them."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
        self.template = Checkpoint(folder, "tiny", "").chat_template()
        self._model: Any = None

    def ids(self, turns: Sequence[Turn], question: str) -> list[int]:
        """Ids of the whole conversation, up to where the assistant answers."""
        turns = list(turns)
        last = turns.pop() if turns and turns[-1].role == "user" else user()
        turns.append(user(*last.parts, text(question)))
        parts = media(turns)
        kinds = {"text": "text", "picture": "image", "tile": "image", "clip": "video"}
        messages = [
            {
                "role": turn.role,
                "content": [
                    {"type": kinds[part.kind]}
                    | ({"text": part.text} if part.kind == "text" else {})
                    for part in turn.parts
                ],
            }
            for turn in turns
        ]
        has_clip = any(part.kind == "clip" for part in parts)
        written: str = self.tokenizer.apply_chat_template(
            messages,
            chat_template=reference.DEFAULT_CHAT_TEMPLATE if has_clip else self.template,
            add_generation_prompt=True,
            tokenize=False,
        )
        begun = bool(self.tokenizer.bos_token) and written.startswith(self.tokenizer.bos_token)
        for part in parts:
            marker = "<video>" if part.kind == "clip" else "<image>"
            before, found, after = written.partition(marker)
            assert found
            written = before + self.words(part).replace("<image>", "\x01") + after
        written = written.replace("\x01", "<image>")
        return list(self.tokenizer(written, add_special_tokens=not begun)["input_ids"])

    def words(self, part: Part) -> str:
        """The text of a picture or clip."""
        assert part.pixels is not None
        if part.kind == "clip":
            times = list(part.pixels.times_seconds)
            processor: Any = SimpleNamespace(
                image_seq_len=SEQ_LEN,
                image_token="<image>",
                fake_image_token="<fake_token_around_image>",
                global_image_token="<global-img>",
            )
            metadata = SimpleNamespace(
                fps=1.0, timestamps=times, duration=part.pixels.duration_seconds
            )
            inputs: dict[str, Any] = {
                "pixel_values": np.empty((1, len(times), 0)),
                "video_metadata": [metadata],
            }
            written: str = reference.SmolVLMProcessor.replace_video_token(processor, inputs, 0)
            return written
        grid = (0, 0)
        if part.kind == "picture":
            found = self._process(part, return_row_col_info=True)
            grid = found["rows"][0][0], found["cols"][0][0]
        prompt: str = reference.get_image_prompt_string(
            *grid,
            SEQ_LEN,
            fake_token_around_image="<fake_token_around_image>",
            image_token="<image>",
            global_image_token="<global-img>",
        )
        return prompt

    def tiles(self, turns: Sequence[Turn]) -> np.ndarray:
        """The tiles of all pictures and clips, uint8."""
        found: list[np.ndarray] = []
        for part in media(turns):
            assert part.pixels is not None
            if part.kind == "tile":
                found += [frame.transpose(2, 0, 1) for frame in part.pixels.arrays()]
            else:
                pixels = self._process(part)["pixel_values"]
                found += [np.asarray(each) for frame in pixels for each in frame]
        return np.stack(found) if found else np.zeros((0, 3, TILE, TILE), np.uint8)

    def answer(self, turns: Sequence[Turn], question: str, max_new_tokens: int) -> list[int]:
        """Tokens of the greedy answer, in float32."""
        if self._model is None:
            self._model = transformers.AutoModelForImageTextToText.from_pretrained(
                self._folder, dtype=torch.float32
            )
        ids = torch.tensor([self.ids(turns, question)])
        tiles = torch.from_numpy(self.tiles(turns))[None].float() / 255
        pixels = {"pixel_values": (tiles - 0.5) / 0.5} if tiles.shape[1] else {}
        found = self._model.generate(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=max_new_tokens,
            do_sample=False,
            **pixels,
        )
        return list(found[0, ids.shape[1] :].tolist())

    def _process(self, part: Part, **options: Any) -> Any:
        assert part.pixels is not None
        small = part.kind == "clip"
        processor = SmolVLMImageProcessorPil(
            size={"longest_edge": TILE if small else 4 * TILE},
            max_image_size={"longest_edge": TILE},
            do_image_splitting=not small,
        )
        frames = [[Image.fromarray(frame)] for frame in part.pixels.arrays()]
        return processor(frames, do_rescale=False, do_normalize=False, do_pad=False, **options)


def media(turns: Sequence[Turn]) -> list[Part]:
    return [part for turn in turns for part in turn.parts if part.kind != "text"]


PIECES = (
    *("", " ", "\n", "\n\n", "\t", "  ", "\r\n", "What is this?", "Describe it.", "12 of 345", "é"),
    *(
        "e\u0301",
        "🙂",
        "世界",
        "\u200b",
        "User:",
        "Assistant:",
        ": ",
        "{{ x }}",
        "</s>",
        "<row_1_col_1>",
    ),
    *("<end_of_utterance>", "<|im_end|>", "<|im_start|>", "<global-img>", "<image", "\x00"),
    "<fake_token_around_image>",
)


def random_text(rng: random.Random, special: Sequence[str] = ()) -> str:
    """Up to six pieces: words, white space at the edges, tokens of the vocabulary, nothing."""
    return "".join(rng.choices([*PIECES, *special], k=rng.randrange(6)))


def random_chat(
    rng: random.Random, kind: str = "picture", max_new_tokens: int = 8
) -> tuple[Conversation, Question]:
    """A conversation of one to four turns, with a system turn or without, and up to three pictures
    (``kind`` is "picture"), clips ("clip") or both ("both").
    """
    special = ["<video>"] if kind == "picture" else []
    left = rng.randrange(4)
    turns = []
    if rng.random() < 0.4:
        turns.append(Turn("system", (text(random_text(rng, special)),)))
    num_turns = rng.randrange(1, 5)
    for number in range(num_turns):
        is_answer = number % 2 and number < num_turns - 1 and rng.random() < 0.9
        parts = [text(random_text(rng, special)) for _ in range(rng.randrange(1, 3))]
        while not is_answer and left and rng.random() < 0.6:
            left -= 1
            seed = rng.randrange(1000)
            is_clip = kind == "clip" or (kind == "both" and rng.random() < 0.5)
            size = rng.randrange(8, 200), rng.randrange(8, 200)
            part = clip(rng.randrange(1, 5), seed) if is_clip else picture(*size, seed)
            parts.insert(rng.randrange(len(parts) + 1), part)
        turns.append(Turn("assistant" if is_answer else "user", tuple(parts)))
    last = turns.pop()
    question = last.parts[-1].text
    kept = last.parts[:-1] if last.parts[-1].kind == "text" else last.parts
    turns.append(user(*kept))
    return Conversation(tuple(turns)), Question(question, max_new_tokens=max_new_tokens)
