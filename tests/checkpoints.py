"""Tiny random SmolVLM2 and Idefics3 checkpoints in the hub's file layouts, made in a fraction of a
second and without a network.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import tokenizers
from tokenizers import decoders, models, pre_tokenizers, trainers

if TYPE_CHECKING:
    import transformers

CHAT_TEMPLATE = (
    "<|im_start|>{% for message in messages %}{{message['role'] | capitalize}}"
    "{% if message['content'][0]['type'] == 'image' %}{{':'}}{% else %}{{': '}}{% endif %}"
    "{% for line in message['content'] %}{% if line['type'] == 'text' %}{{line['text']}}"
    "{% elif line['type'] == 'image' %}{{ '<image>' }}{% endif %}{% endfor %}<end_of_utterance>\n"
    "{% endfor %}{% if add_generation_prompt %}{{ 'Assistant:' }}{% endif %}"
)
"""The published template, character for character."""

GRANITE_DOCLING_TEMPLATE = (
    "{%- for message in messages -%}\n"
    "{{- '<|start_of_role|>' + message['role'] + '<|end_of_role|>' -}}\n"
    "{%- if message['content'] is string -%}\n{{- message['content'] -}}\n{%- else -%}\n"
    "{%- for part in message['content'] -%}\n"
    "{%- if part['type'] == 'text' -%}\n{{- part['text'] -}}\n"
    "{%- elif part['type'] == 'image' -%}\n{{- '<image>' -}}\n{%- endif -%}\n"
    "{%- endfor -%}\n{%- endif -%}\n{{- '<|end_of_text|>\n' -}}\n{%- endfor -%}\n"
    "{%- if add_generation_prompt -%}\n{{- '<|start_of_role|>assistant' -}}\n"
    "{%- if controls -%}{{- ' ' + controls | tojson() -}}{%- endif -%}\n"
    "{{- '<|end_of_role|>' -}}\n{%- endif -%}\n"
)
"""The template of granite-docling-258M, character for character."""

FIRST_TOKENS = [
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<repo_name>",
    "<reponame>",
    "<file_sep>",
    "<filename>",
    "<gh_stars>",
    "<issue_start>",
    "<issue_comment>",
    "<issue_closed>",
    "<jupyter_start>",
    "<jupyter_text>",
    "<jupyter_code>",
    "<jupyter_output>",
    "<jupyter_script>",
    "<empty_output>",
]
"""The 17 special tokens that open the published vocabulary."""

LAST_TOKENS = (
    "<global-img>",
    *(f"<row_{row}_col_{col}>" for row in range(1, 7) for col in range(1, 7)),
    "<fake_token_around_image>",
    "<image>",
    "<end_of_utterance>",
)
"""The media tokens that close it."""

GRANITE_TOKENS = ("<|start_of_role|>", "<|end_of_role|>", "<|end_of_text|>", *LAST_TOKENS[:-1])
"""Special tokens of granite-docling-258M, which has no ``<end_of_utterance>``."""

LITERAL_TOKENS = ("<fake_token_around_image>", "<image>", "<end_of_utterance>")
"""Those of SmolVLM-Instruct, in whose vocabulary the names of tiles are ordinary text."""


def build_tokenizer(
    corpus: Iterable[str] = ("\n\n",), merges: int = 1, last: Iterable[str] = LAST_TOKENS
) -> tokenizers.Tokenizer:
    """A byte-level BPE with the published pre-tokenizer and special tokens.

    Without arguments every byte is a token, and so are two ends of lines, as in the published
    vocabularies: they stand behind a picture's last row of tiles.

    Args:
        corpus: What the merges are learned from.
        merges: How many tokens of more than one byte there may be.
        last: Special tokens that close the vocabulary.
    """
    tokenizer = tokenizers.Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    size = len(FIRST_TOKENS) + len(alphabet) + merges
    tokenizer.train_from_iterator(
        corpus,
        trainers.BpeTrainer(
            vocab_size=size,
            special_tokens=FIRST_TOKENS,
            initial_alphabet=alphabet,
            show_progress=False,
        ),
    )
    tokenizer.add_special_tokens(list(last))
    return tokenizer


def write_tiny_checkpoint(
    folder: Path,
    *,
    seed: int = 0,
    tie: bool = False,
    dtype: Literal["float32", "float16", "bfloat16"] = "float32",
    shards: bool = False,
    layout: Literal["hub", "saved"] = "hub",
    tile: int = 32,
    patch: int = 8,
    scale_factor: int = 2,
    text_layers: int = 3,
    head_dim: int = 8,
    context: int = 2048,
    scale: float = 0.3,
    tokenizer: tokenizers.Tokenizer | None = None,
    model_type: Literal["smolvlm", "idefics3"] = "smolvlm",
    granite: Mapping[str, float] | None = None,
    template: str = CHAT_TEMPLATE,
    ends: Sequence[str] = ("<end_of_utterance>",),
    starts: str = "<|im_start|>",
    longest_edge: int | None = None,
    text: Mapping[str, int] | None = None,
    vision: Mapping[str, int] | None = None,
) -> Path:
    """Writes every file of a random checkpoint.

    Args:
        folder: Where; made if it is not there.
        seed: Of the weights.
        tie: Whether lm_head shares the embeddings.
        dtype: Type of the weights on disk.
        shards: Several safetensors files and an index instead of one file.
        layout: ``hub`` as the published repositories are laid out, ``saved`` as transformers 5
            saves a processor.
        tile: Edge of a tile in pixels.
        patch: Edge of a patch in pixels.
        scale_factor: As many patches in each direction become one image token: (tile / patch /
            scale_factor)² tokens a tile.
        text_layers: Layers of the language model.
        head_dim: Numbers of a head: 8 or 16. There are three query heads for each key head.
        context: ``max_position_embeddings``.
        scale: Standard deviation of the embeddings and the head; the matrices between keep the size
            of what passes through them. Wide enough for greedy answers to follow the picture.
        tokenizer: Another one than ``build_tokenizer()``.
        model_type: The family.
        granite: Multipliers of a Granite language model; Llama without them.
        template: The chat template.
        ends: Tokens that end an answer; the first one is the tokenizer's.
        starts: The tokenizer's ``bos_token``.
        longest_edge: Of a picture after the first resize; four tiles if it is left out.
        text, vision: Other sizes of the language model and of the encoder, as in config.json.

    Returns:
        The folder.
    """
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = tokenizer or build_tokenizer()
    tokenizer.save(str(folder / "tokenizer.json"))
    config = _config(
        tokenizer,
        tie=tie,
        tile=tile,
        patch=patch,
        scale_factor=scale_factor,
        text_layers=text_layers,
        head_dim=head_dim,
        context=context,
        model_type=model_type,
        granite=granite,
        ends=ends,
        starts=starts,
        text=text or {},
        vision=vision or {},
    )
    _write_weights(folder, config, layout, seed=seed, dtype=dtype, shards=shards, scale=scale)
    seq_len = (tile // patch // scale_factor) ** 2
    family = "SmolVLM" if model_type == "smolvlm" else "Idefics3"
    pictures = _image_settings(family, tile, longest_edge or 4 * tile)
    sampling = {"fps": 1, "max_frames": 64, "video_size": {"longest_edge": tile}}
    if layout == "hub":
        video = {"video_sampling": sampling} if model_type == "smolvlm" else {}
        _write_json(
            folder / "preprocessor_config.json",
            pictures | {"processor_class": f"{family}Processor"} | video,
        )
        _write_json(
            folder / "processor_config.json",
            {"processor_class": f"{family}Processor", "image_seq_len": seq_len},
        )
        _write_json(folder / "chat_template.json", {"chat_template": template})
    else:
        whole: dict[str, Any] = {
            "image_processor": pictures,
            "image_seq_len": seq_len,
            "processor_class": f"{family}Processor",
        }
        if model_type == "smolvlm":
            whole["video_processor"] = _clip_settings(pictures, tile, sampling)
        _write_json(folder / "processor_config.json", whole)
        (folder / "chat_template.jinja").write_text(template, encoding="utf-8")
    named = _tokenizer_settings(context, starts, ends[0])
    for name in ("end_of_utterance_token", "fake_image_token", "global_image_token"):
        if tokenizer.token_to_id(named[name]) is None:
            del named[name]  # transformers would add it to the vocabulary
    _write_json(folder / "tokenizer_config.json", named)
    return folder


def _clip_settings(pictures: dict[str, Any], tile: int, sampling: dict[str, Any]) -> dict[str, Any]:
    clips = {
        key: value
        for key, value in pictures.items()
        if key not in ("image_processor_type", "do_image_splitting")
    }
    return clips | {
        "do_sample_frames": False,
        "fps": 1,
        "num_frames": 64,
        "size": {"longest_edge": tile},
        "video_processor_type": "SmolVLMVideoProcessor",
        "video_sampling": sampling,
    }


def _config(
    tokenizer: tokenizers.Tokenizer,
    *,
    tie: bool,
    tile: int,
    patch: int,
    scale_factor: int,
    text_layers: int,
    head_dim: int,
    context: int,
    model_type: str,
    granite: Mapping[str, float] | None,
    ends: Sequence[str],
    starts: str,
    text: Mapping[str, int],
    vision: Mapping[str, int],
) -> transformers.PreTrainedConfig:
    import transformers

    eos = [tokenizer.token_to_id(token) for token in ends]
    config = transformers.SmolVLMConfig if model_type == "smolvlm" else transformers.Idefics3Config
    return config(
        image_token_id=tokenizer.token_to_id("<image>"),
        scale_factor=scale_factor,
        tie_word_embeddings=tie,
        text_config={
            "model_type": "llama" if granite is None else "granite",
            **(granite or {}),
            "vocab_size": tokenizer.get_vocab_size(),
            "hidden_size": 48,
            "intermediate_size": 96,
            "num_hidden_layers": text_layers,
            "num_attention_heads": 48 // head_dim,
            "num_key_value_heads": 16 // head_dim,
            "head_dim": head_dim,
            "max_position_embeddings": context,
            "rms_norm_eps": 1e-5,
            "rope_theta": 100_000.0,
            "tie_word_embeddings": tie,
            "bos_token_id": tokenizer.token_to_id(starts),
            "eos_token_id": eos if len(eos) > 1 else eos[0],
            "pad_token_id": tokenizer.token_to_id("<|im_end|>"),
            **text,
        },
        vision_config={
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "image_size": tile,
            "patch_size": patch,
            **vision,
        },
    )


def _write_weights(
    folder: Path,
    config: transformers.PreTrainedConfig,
    layout: str,
    *,
    seed: int,
    dtype: str,
    shards: bool,
    scale: float,
) -> None:
    import torch
    import transformers

    model = transformers.AutoModelForImageTextToText.from_config(config)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            wide = "embed_tokens" in name or "lm_head" in name or "embedding" in name
            if weight.ndim > 1:
                weight.normal_(
                    0.0, scale if wide else 1.5 / weight[0].numel() ** 0.5, generator=generator
                )
            elif name.endswith("bias"):
                weight.normal_(0.0, 0.1, generator=generator)
    model.to(getattr(torch, dtype))
    text = config.text_config
    model.generation_config = transformers.GenerationConfig(
        bos_token_id=text.bos_token_id,
        eos_token_id=text.eos_token_id,
        pad_token_id=text.pad_token_id,
    )
    model.save_pretrained(folder, max_shard_size="100KB" if shards else "5GB")
    path = folder / "config.json"
    written = json.loads(path.read_text(encoding="utf-8"))
    written.pop("_pad_token_id", None)
    if layout == "hub":  # the published files are older than `rope_parameters`
        written["text_config"]["rope_theta"] = written["text_config"].pop("rope_parameters")[
            "rope_theta"
        ]
    _write_json(path, written | {"pad_token_id": 128_002})


def _image_settings(family: str, tile: int, longest_edge: int) -> dict[str, Any]:
    return {
        "do_convert_rgb": True,
        "do_image_splitting": True,
        "do_normalize": True,
        "do_pad": True,
        "do_rescale": True,
        "do_resize": True,
        "image_mean": [0.5, 0.5, 0.5],
        "image_processor_type": f"{family}ImageProcessor",
        "image_std": [0.5, 0.5, 0.5],
        "max_image_size": {"longest_edge": tile},
        "resample": 1,
        "rescale_factor": 0.00392156862745098,
        "size": {"longest_edge": longest_edge},
    }


def _tokenizer_settings(context: int, starts: str, ends: str) -> dict[str, Any]:
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": starts,
        "clean_up_tokenization_spaces": False,
        "end_of_utterance_token": "<end_of_utterance>",
        "eos_token": ends,
        "fake_image_token": "<fake_token_around_image>",
        "global_image_token": "<global-img>",
        "image_token": "<image>",
        "model_max_length": context,
        "pad_token": "<|im_end|>",
        "unk_token": "<|endoftext|>",
    }


def _write_json(path: Path, value: object) -> None:
    path.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")
