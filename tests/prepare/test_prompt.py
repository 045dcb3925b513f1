"""Prompts are those of transformers' own SmolVLM processor, and every question continues the ids of
its prefix.
"""

from __future__ import annotations

import datetime
import json
import re
from pathlib import Path
from types import SimpleNamespace

import num2words
import numpy as np
import pytest
import tokenizers
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers.models.smolvlm import processing_smolvlm as reference

from tests.checkpoints import CHAT_TEMPLATE, build_tokenizer, write_tiny_checkpoint
from vlmbatch.checkpoint import Checkpoint
from vlmbatch.errors import ModelLoadError, PrepareError
from vlmbatch.prepare.media_text import MediaTokens, image_text, number_words, video_text
from vlmbatch.prepare.prompt import PromptWriter

TOKENS = MediaTokens(seq_len=4)
GRIDS = [(0, 0)] + [(rows, cols) for rows in range(1, 7) for cols in range(1, 7) if rows * cols > 1]
CORPUS = [
    "User: What is this?\n\nAssistant: 12\n\n  User:\n\n",
    "Frame from 00:01:\n\n",
    "You are provided\n\n\n\n the frames",
    "  two  spaces 🙂",
] * 20
QUESTIONS = [
    "What?",
    " a space first",
    "\nline",
    "\n\nlines\n\n",
    "  ",
    "7 dwarfs",
    "12:30?",
    "🙂 who",
    "é",
    "'s",
    "",
    "<|im_end|>x",
    ":",
    "\n",
    "\t\n x",
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_checkpoint(tmp_path_factory.mktemp("hub"))


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_checkpoint(tmp_path_factory.mktemp("saved"), layout="saved")


BYTES = PromptWriter(build_tokenizer((), 0), CHAT_TEMPLATE, TOKENS)
TINY = PromptWriter(build_tokenizer(), CHAT_TEMPLATE, TOKENS)
MERGED = PromptWriter(build_tokenizer(CORPUS, merges=150), CHAT_TEMPLATE, TOKENS)
WRITERS = [
    pytest.param(BYTES, id="bytes"),
    pytest.param(TINY, id="one-merge"),
    pytest.param(MERGED, id="merges"),
]


WORDS = st.text().filter(lambda text: TOKENS.image not in text)
"""Any question that is allowed: hypothesis also draws texts that it finds in the code."""


def whole_ids(writer: PromptWriter, text: str) -> list[int]:
    return writer.tokenizer.encode(text, add_special_tokens=False).ids


def reference_video(times: list[float], duration: float | None) -> str:
    processor = SimpleNamespace(
        image_seq_len=TOKENS.seq_len,
        image_token=TOKENS.image,
        fake_image_token=TOKENS.fake,
        global_image_token=TOKENS.global_image,
    )
    metadata = SimpleNamespace(fps=1.0, timestamps=times, duration=duration)
    inputs = {"pixel_values": np.empty((1, len(times), 0)), "video_metadata": [metadata]}
    return reference.SmolVLMProcessor.replace_video_token(processor, inputs, 0)


@pytest.mark.parametrize("grid", GRIDS, ids=str)
@pytest.mark.parametrize("seq_len", [4, 64, 81])
def test_image_text_is_the_processors(grid: tuple[int, int], seq_len: int) -> None:
    tokens = MediaTokens(seq_len)
    expected = reference.get_image_prompt_string(
        *grid,
        seq_len,
        fake_token_around_image=tokens.fake,
        image_token=tokens.image,
        global_image_token=tokens.global_image,
    )
    assert image_text(*grid, tokens) == expected


def test_counts_are_spelled_as_num2words_spells_them() -> None:
    larger = [
        2001,
        9999,
        10_000,
        10_001,
        12_345,
        20_100,
        99_999,
        100_000,
        100_001,
        100_100,
        123_456,
        500_099,
        999_999,
    ]
    for number in [*range(2001), *larger]:
        assert number_words(number) == num2words.num2words(number)


@settings(max_examples=200)
@given(st.lists(st.floats(0, 20_000), min_size=1, max_size=70), st.floats(0, 200_000))
def test_video_text_is_the_processors(times: list[float], duration: float) -> None:
    assert video_text(times, duration, TOKENS) == reference_video(times, duration)


@pytest.mark.parametrize("duration", [0.0, 59.999, 60, 3599.5, 3600, 86_399, 86_400, 180_000])
def test_video_durations(duration: float) -> None:
    text = video_text([0.0, 61.5, 3725.0], duration, TOKENS)
    assert text == reference_video([0.0, 61.5, 3725.0], duration)
    assert f"from a {datetime.timedelta(seconds=int(duration))} [H:MM:SS] video" in text
    assert "Frame from 62:05:" in text


@pytest.mark.parametrize("writer", WRITERS)
@pytest.mark.parametrize("question", QUESTIONS)
@pytest.mark.parametrize("grid", [(0, 0), (1, 2), (6, 6)], ids=str)
def test_prefix_and_question_are_the_whole_prompt(
    writer: PromptWriter, question: str, grid: tuple[int, int]
) -> None:
    text = f"<|im_start|>User:{image_text(*grid, TOKENS)}{question}<end_of_utterance>\nAssistant:"
    assert writer.image_prefix(*grid) + writer.image_question(question) == whole_ids(writer, text)


@settings(max_examples=300)
@given(WORDS, st.sampled_from([BYTES, MERGED]))
def test_any_question_continues_a_picture(question: str, writer: PromptWriter) -> None:
    text = f"<|im_start|>User:{image_text(2, 3, TOKENS)}{question}<end_of_utterance>\nAssistant:"
    assert writer.image_prefix(2, 3) + writer.image_question(question) == whole_ids(writer, text)


@settings(max_examples=300)
@given(WORDS, st.sampled_from([BYTES, MERGED]), st.integers(1, 5))
def test_any_question_continues_a_clip(question: str, writer: PromptWriter, frames: int) -> None:
    times = [1.5 * number for number in range(frames)]
    text = (
        f"<|im_start|>User: {reference_video(times, 9.0)}{question}<end_of_utterance>\nAssistant:"
    )
    assert writer.video_prefix(times, 9.0) + writer.video_question(question) == whole_ids(
        writer, text
    )


@pytest.mark.parametrize("writer", WRITERS)
@pytest.mark.parametrize("question", QUESTIONS)
def test_clip_and_awkward_questions(writer: PromptWriter, question: str) -> None:
    video = reference_video([0.0, 1.0], 2.0)
    text = f"<|im_start|>User: {video}{question}<end_of_utterance>\nAssistant:"
    assert writer.video_prefix([0.0, 1.0], 2.0) + writer.video_question(question) == whole_ids(
        writer, text
    )


def test_the_merged_tokenizer_joins_line_breaks() -> None:
    """Or else the tests above would not show that a question is split off where nothing merges."""
    assert MERGED.tokenizer.token_to_id("ĊĊ") is not None
    assert len(MERGED.video_question("\n\nx")) < len(BYTES.video_question("\n\nx"))


@pytest.mark.parametrize("layout", ["folder", "saved"])
@pytest.mark.parametrize("question", ["What is this?", " padded ", "\n\n7"])
def test_picture_prompt_is_the_chat_template_of_transformers(
    layout: str, question: str, request: pytest.FixtureRequest
) -> None:
    path = request.getfixturevalue(layout)
    writer = PromptWriter.from_checkpoint(Checkpoint(path, "tiny", ""))
    tokenizer = transformers.AutoTokenizer.from_pretrained(path)
    template = Checkpoint(path, "tiny", "").chat_template()
    messages = [
        {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": question}]}
    ]
    text = tokenizer.apply_chat_template(
        messages, chat_template=template, add_generation_prompt=True, tokenize=False
    )
    text = text.replace("<image>", image_text(3, 4, writer.tokens))
    expected = tokenizer(text, add_special_tokens=False)["input_ids"]
    assert writer.image_prefix(3, 4) + writer.image_question(question) == expected
    assert expected.count(writer.image_token_id) == 13 * writer.tokens.seq_len


def test_clip_prompt_is_the_processors_chat_template(folder: Path) -> None:
    writer = PromptWriter.from_checkpoint(Checkpoint(folder, "tiny", ""))
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    messages = [
        {"role": "user", "content": [{"type": "video"}, {"type": "text", "text": "What happens?"}]}
    ]
    text = tokenizer.apply_chat_template(
        messages,
        chat_template=reference.DEFAULT_CHAT_TEMPLATE,
        add_generation_prompt=True,
        tokenize=False,
    )
    text = text.replace("<video>", reference_video([0.0, 1.0, 2.0], 3.0))
    expected = tokenizer(text, add_special_tokens=False)["input_ids"]
    assert (
        writer.video_prefix([0.0, 1.0, 2.0], 3.0) + writer.video_question("What happens?")
        == expected
    )


def test_answers_come_back_without_special_tokens_and_with_their_white_space() -> None:
    ids = whole_ids(MERGED, " A cat 🙂.<end_of_utterance>")
    assert MERGED.decode(ids) == " A cat 🙂."


@pytest.mark.parametrize("ask", ["image_question", "video_question"])
def test_a_question_with_an_image_token_is_refused(ask: str) -> None:
    with pytest.raises(PrepareError, match="<image>"):
        getattr(BYTES, ask)("what is <image> about?")


def test_a_template_with_special_tokens_as_variables() -> None:
    template = CHAT_TEMPLATE.replace("<|im_start|>", "{{ bos_token }}")
    special = {"bos_token": "<|im_start|>"}
    writer = PromptWriter(build_tokenizer((), 0), template, TOKENS, special)
    assert writer.image_prefix(1, 2) == BYTES.image_prefix(1, 2)


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("{% for %}", "broken"),
        ("{{ gone.by }}", "broken"),
        ("nothing", "does not put a question"),
        ("{{ raise_exception('not for you') }}", "broken: .*not for you"),
        (CHAT_TEMPLATE.replace("line['text']", "''"), "does not put a question"),
    ],
)
def test_templates_that_cannot_be_used(template: str, message: str) -> None:
    with pytest.raises(ModelLoadError, match=message):
        PromptWriter(build_tokenizer(), template, TOKENS)


def test_a_tokenizer_of_another_model() -> None:
    with pytest.raises(ModelLoadError, match=re.escape("<image>")):
        PromptWriter(tokenizers.Tokenizer(tokenizers.models.BPE()), CHAT_TEMPLATE, TOKENS)


@pytest.mark.parametrize(
    ("file", "change", "message"),
    [
        ("tokenizer.json", None, "tokenizer.json is missing"),
        ("tokenizer.json", "{", "tokenizer.json cannot be read"),
        ("chat_template.json", None, "no chat template"),
        ("config.json", None, "config.json is missing"),
        (
            "config.json",
            {"model_type": "llama"},
            r"neither a SmolVLM2 nor an Idefics3 checkpoint \(its type is llama\)",
        ),
        (
            "processor_config.json",
            {"image_seq_len": 169},
            "169 image tokens a tile, the vision encoder gives 4",
        ),
        ("processor_config.json", "[]", "not a JSON object"),
    ],
)
def test_checkpoints_that_cannot_be_used(
    tmp_path: Path, folder: Path, file: str, change: dict[str, object] | str | None, message: str
) -> None:
    for path in folder.glob("*.json"):
        (tmp_path / path.name).write_bytes(path.read_bytes())
    path = tmp_path / file
    if change is None:
        path.unlink()
    else:
        path.write_text(
            change if isinstance(change, str) else json.dumps(json.loads(path.read_text()) | change)
        )
    with pytest.raises(ModelLoadError, match=message):
        PromptWriter.from_checkpoint(Checkpoint(tmp_path, "tiny", ""))


def test_truncation_and_padding_of_tokenizer_json_do_not_apply(tmp_path: Path) -> None:
    tokenizer = build_tokenizer((), 0)
    tokenizer.enable_truncation(8)
    tokenizer.enable_padding(length=64)
    writer = PromptWriter.from_checkpoint(
        Checkpoint(write_tiny_checkpoint(tmp_path, tokenizer=tokenizer), "tiny", "")
    )
    assert writer.image_prefix(2, 2) == BYTES.image_prefix(2, 2)
    assert writer.image_question("Hm?") == BYTES.image_question("Hm?")
