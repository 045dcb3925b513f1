"""Writes an untrained checkpoint of the demo model: the real SmolVLM2 architecture and file layout,
in tiny shapes.

python -m training.checkpoint build/demo
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import tokenizers
from tokenizers import decoders, models, pre_tokenizers, trainers

from training import scenes

TILE = 96
PATCH = 8
SCALE = 3  # patches along an edge that become one token
LONGEST_EDGE = 2 * TILE
VOCABULARY = 640  # at most
TWO_LINES = "\n\n"

CHAT_TEMPLATE = (
    "<|im_start|>{% for message in messages %}{{message['role'] | capitalize}}"
    "{% if message['content'][0]['type'] == 'image' %}{{':'}}{% else %}{{': '}}{% endif %}"
    "{% for line in message['content'] %}{% if line['type'] == 'text' %}{{line['text']}}"
    "{% elif line['type'] == 'image' %}{{ '<image>' }}{% endif %}{% endfor %}<end_of_utterance>\n"
    "{% endfor %}{% if add_generation_prompt %}{{ 'Assistant:' }}{% endif %}"
)


def train_tokenizer() -> tokenizers.Tokenizer:
    """A byte-level BPE over the demo's own sentences, special tokens placed as in the published
    vocabulary: a few first, the media tokens last.
    """
    rng = np.random.default_rng(7)
    intro = (
        "You are provided the following series of two three four five six seven eight nine ten "
        "frames from a video.\n\nFrame from:"
    )
    corpus = [intro] * 50
    corpus += ["User:\nAssistant: User: You"] * 5000
    for _ in range(4000):
        scene = scenes.random_scene(rng, longest=(64, 66), reading=0.05)
        corpus += [
            scene.caption if not scene.caption.startswith("The ") else "The word. The number."
        ]
        corpus += [f"{q} {a}" for q, a in scene.questions if a.upper() != a]
        corpus += [
            *scenes.CAPTION_PROMPTS,
            *scenes.OCR_PROMPTS,
            *scenes.CLIP_PROMPTS,
            "No text. No. Yes. What number is shown? What word is shown?",
        ]
        clip = scenes.random_clip(rng, longest=(64, 65), max_frames=2)
        corpus += [clip.caption, *(f"{q} {a}" for q, a in clip.questions)]
    # The sentences above hold "\n\n" before a word only, where it is two tokens. Before a special
    # token, as behind the last row of tiles, it is one, which the published vocabularies have.
    corpus += [TWO_LINES]
    tokenizer = tokenizers.Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(
                tokenizers.Regex("[A-Z](?![a-z])"), "isolated"
            ),  # a letter of a word in capitals is always the same token
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    first = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    grid = [f"<row_{row}_col_{col}>" for row in range(1, 7) for col in range(1, 7)]
    last = ["<global-img>", *grid, "<fake_token_around_image>", "<image>", "<end_of_utterance>"]
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY - len(last),
        special_tokens=first,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(corpus, trainer)
    tokenizer.add_special_tokens(last)
    return tokenizer


TOKENIZER_SETTINGS = {
    "tokenizer_class": "PreTrainedTokenizerFast",
    "bos_token": "<|im_start|>",
    "eos_token": "<end_of_utterance>",
    "pad_token": "<|im_end|>",
    "model_max_length": 2048,
    "clean_up_tokenization_spaces": False,
    "fake_image_token": "<fake_token_around_image>",
    "image_token": "<image>",
    "global_image_token": "<global-img>",
    "end_of_utterance_token": "<end_of_utterance>",
}
"""Content of tokenizer_config.json."""


def write_checkpoint(folder: Path) -> None:
    """Writes every file of an untrained checkpoint in the hub's layout."""
    import torch
    import transformers

    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = train_tokenizer()
    tokenizer.save(str(folder / "tokenizer.json"))
    vocabulary = tokenizer.get_vocab()
    ids = {
        name: vocabulary[name]
        for name in ("<|im_start|>", "<|im_end|>", "<image>", "<end_of_utterance>")
    }
    config = _config(ids, len(vocabulary))
    torch.manual_seed(0)
    model = transformers.SmolVLMForConditionalGeneration(config)
    _initialize(model)
    model.generation_config = transformers.GenerationConfig(
        bos_token_id=ids["<|im_start|>"],
        eos_token_id=ids["<end_of_utterance>"],
        pad_token_id=ids["<|im_end|>"],
    )
    model.save_pretrained(folder)
    _write_json(folder / "preprocessor_config.json", _preprocessor())
    _write_json(
        folder / "processor_config.json",
        {"processor_class": "SmolVLMProcessor", "image_seq_len": (TILE // PATCH // SCALE) ** 2},
    )
    _write_json(folder / "tokenizer_config.json", TOKENIZER_SETTINGS)
    (folder / "chat_template.jinja").write_text(CHAT_TEMPLATE, encoding="utf-8")


def _config(ids: Mapping[str, int], vocabulary: int) -> Any:
    """Gives the configuration; ``ids`` are those of the special tokens."""
    import transformers

    return transformers.SmolVLMConfig(
        image_token_id=ids["<image>"],
        scale_factor=SCALE,
        tie_word_embeddings=False,
        text_config={
            "model_type": "llama",
            "vocab_size": vocabulary,
            "hidden_size": 192,
            "intermediate_size": 384,
            "num_hidden_layers": 4,
            "num_attention_heads": 6,
            "num_key_value_heads": 2,
            "head_dim": 32,
            "max_position_embeddings": 2048,
            "rms_norm_eps": 1e-5,
            "rope_theta": 10000.0,
            "bos_token_id": ids["<|im_start|>"],
            "eos_token_id": ids["<end_of_utterance>"],
            "pad_token_id": ids["<|im_end|>"],
        },
        vision_config={
            "hidden_size": 128,
            "intermediate_size": 384,
            "num_hidden_layers": 4,
            "num_attention_heads": 4,
            "image_size": TILE,
            "patch_size": PATCH,
        },
    )


def _initialize(model: Any) -> None:
    """Draws weights that a small model learns from quickly.

    transformers draws everything with 0.02, which suits wide models. Here positions would drown in
    the patches' content, words in the vision features, and attention would start out blind: shapes
    stayed at chance for a thousand steps. Matrices keep the size of what passes through them (std
    1/sqrt(fan_in)).
    """
    import torch

    layers = model.config.text_config.num_hidden_layers
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "position_embedding" in name or "embed_tokens" in name:
                weight.normal_(std=0.5)
            elif weight.ndim > 1:
                deep = name.endswith(
                    ("o_proj.weight", "down_proj.weight", "out_proj.weight", "fc2.weight")
                )
                weight.normal_(
                    std=weight[0].numel() ** -0.5 * ((2 * layers) ** -0.5 if deep else 1.0)
                )


def _preprocessor() -> dict[str, object]:
    return {
        "image_processor_type": "SmolVLMImageProcessor",
        "processor_class": "SmolVLMProcessor",
        "do_convert_rgb": True,
        "do_image_splitting": True,
        "do_normalize": True,
        "do_pad": True,
        "do_rescale": True,
        "do_resize": True,
        "image_mean": [0.5, 0.5, 0.5],
        "image_std": [0.5, 0.5, 0.5],
        "max_image_size": {"longest_edge": TILE},
        "resample": 1,
        "rescale_factor": 1 / 255,
        "size": {"longest_edge": LONGEST_EDGE},
        "video_sampling": {"fps": 1, "max_frames": 64, "video_size": {"longest_edge": TILE}},
    }


def _write_json(path: Path, value: object) -> None:
    path.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    write_checkpoint(parser.parse_args().folder)
