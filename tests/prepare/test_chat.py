"""Conversations of any turns and media are written as transformers' chat template and processors
write them.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import decoders, models, normalizers, pre_tokenizers, processors, trainers

from tests.chats import SEQ_LEN, Oracle, clip, picture, random_chat, text, tile, user
from tests.checkpoints import (
    CHAT_TEMPLATE,
    FIRST_TOKENS,
    LAST_TOKENS,
    build_tokenizer,
    write_tiny_checkpoint,
)
from vlmbatch.checkpoint import Checkpoint
from vlmbatch.core import Conversation, Part, Pixels, Question, Turn
from vlmbatch.errors import ModelLoadError, PrepareError
from vlmbatch.prepare import Payload, Preparer
from vlmbatch.prepare.chat import ChatTemplate, fill_in

CORPUS = ["User: What is this?\n\nAssistant: 12\n\n  User:\n\n", "System: Be short.\n"] * 20
CHATS = 12
"""Random chats of each tokenizer and template."""
QUESTIONS = ["What?", " padded ", "\n\n7", "", "🙂 <end_of_utterance>", "é\n"]


@pytest.fixture(scope="module", params=["bytes", "merges"])
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    tokenizer = build_tokenizer(CORPUS, merges=100) if request.param == "merges" else None
    return write_tiny_checkpoint(tmp_path_factory.mktemp("model"), tokenizer=tokenizer)


@pytest.fixture(scope="module")
def preparer(folder: Path) -> Preparer:
    return Preparer.from_checkpoint(Checkpoint(folder, "tiny", ""))


@pytest.fixture(scope="module")
def oracle(folder: Path) -> Oracle:
    return Oracle(folder)


def prepare(preparer: Preparer, turns: Sequence[Turn], *questions: str) -> Payload:
    request = preparer.prepare(Conversation(tuple(turns)), [Question(each) for each in questions])
    payload: Payload = request.payload
    assert request.tiles == len(payload.tiles)
    return payload


SYSTEM = Turn("system", (text("Be short."),))
ANSWERED = [user(picture(), text("What is it?")), Turn("assistant", (text(" A cat."),))]
CONVERSATIONS: dict[str, list[Turn]] = {
    "no turn": [],
    "text alone": [user(text("It is late.\n\n"))],
    "a picture": [user(picture())],
    "a tile": [user(tile())],
    "a clip": [user(clip())],
    "a small picture": [user(picture(20, 9), text("\nLook. "))],
    "text before a picture": [user(text("Look: "), picture(30, 90))],
    "two pictures": [user(picture(), picture(90, 20, seed=1), text("Compare. "))],
    "a picture and a tile": [user(picture(), text(" and "), tile(seed=2))],
    "a system turn": [SYSTEM, user(picture())],
    "a system turn alone": [SYSTEM],
    "a system turn and text": [SYSTEM, user(text("Hello."))],
    "an answered question": ANSWERED,
    "a second question": [*ANSWERED, user(text("And "))],
    "a second picture": [*ANSWERED, user(picture(40, 40, seed=3))],
    "many turns": [SYSTEM, *ANSWERED, user(text("Why?")), Turn("assistant", (text(" So."),))],
    "a clip after a system turn": [SYSTEM, user(clip(2), text("First. "))],
    "two clips": [user(clip(1), clip(2))],
    "a clip and a picture": [user(clip(2), picture(), text("Is this in it? "))],
    "an answered clip": [user(clip(2), text("What?")), Turn("assistant", (text(" A ball."),))],
    "special tokens in text": [user(text("<|im_end|> <row_1_col_1>"), picture())],
}


@pytest.mark.parametrize("turns", CONVERSATIONS.values(), ids=CONVERSATIONS)
def test_prompts_and_tiles_are_those_of_transformers(
    preparer: Preparer, oracle: Oracle, turns: list[Turn]
) -> None:
    made = prepare(preparer, turns, *QUESTIONS)
    for question, ids in zip(QUESTIONS, made.question_ids, strict=True):
        assert [*made.prefix_ids, *ids] == oracle.ids(turns, question)
    assert np.array_equal(made.tiles, oracle.tiles(turns))
    assert list(made.prefix_ids).count(preparer.writer.image_token_id) == SEQ_LEN * len(made.tiles)


PIECES = st.text(st.sampled_from("ab 1\n:.é🙂"), max_size=8)
TURNS = st.lists(
    st.tuples(st.sampled_from(["user", "assistant", "system"]), PIECES, st.booleans(), PIECES),
    max_size=3,
)


@settings(max_examples=150)
@given(TURNS, PIECES)
def test_any_words_in_any_turns(
    preparer: Preparer, oracle: Oracle, drawn: list[tuple[Any, str, bool, str]], question: str
) -> None:
    turns = [
        Turn(role, (text(before), *([tile()] if has_tile else []), text(after)))
        for role, before, has_tile, after in drawn
    ]
    made = prepare(preparer, turns, question)
    assert [*made.prefix_ids, *made.question_ids[0]] == oracle.ids(turns, question)


def test_all_questions_share_the_prefix_up_to_the_last_special_token(preparer: Preparer) -> None:
    one = prepare(preparer, [user(picture(), text("Look."))], "Why?", "Where?")
    assert one.prefix_ids[-1] == preparer.writer.tokenizer.token_to_id("<fake_token_around_image>")
    answered = prepare(preparer, ANSWERED, "Why?")
    assert preparer.token_text(answered.prefix_ids[-1]) == "<end_of_utterance>"


@pytest.mark.parametrize(
    "turns",
    [
        [user(text("an <image>"))],
        [user(picture(), text("an <image>"))],
        [Turn("system", (text("<image>"),)), user(picture())],
        [user(text("a <video>"), clip())],
        [user(clip(), text("a <video>"))],
        [user(Part("picture"))],
        [user(text("a"), Part("picture", pixels=Pixels([])))],
        [user(text("\ud800"))],
    ],
)
def test_conversations_that_cannot_be_written(preparer: Preparer, turns: list[Turn]) -> None:
    with pytest.raises(PrepareError):
        prepare(preparer, turns, "?")


def test_a_question_with_an_image_token_is_refused_in_every_conversation(
    preparer: Preparer,
) -> None:
    for turns in ([], ANSWERED, [user(picture())], [user(clip())], [SYSTEM, user(tile())]):
        with pytest.raises(PrepareError, match="<image>"):
            prepare(preparer, turns, "fine", "an <image>?")


def test_a_conversation_longer_than_the_context_is_refused(preparer: Preparer) -> None:
    with pytest.raises(PrepareError, match="the model's context is 2048"):
        prepare(preparer, [user(text("é" * 3000))], "?")


def test_a_template_that_drops_or_breaks() -> None:
    with pytest.raises(PrepareError, match="no place for <image>"):
        fill_in("a <image>", ["<image>", "<image>"], ["1", "2"])
    assert fill_in("a <i> b <v>", ["<i>", "<v>"], ["<v>", "2"]) == "a <v> b 2"
    with pytest.raises(PrepareError, match="refuses the conversation"):
        ChatTemplate("{{ raise_it() }}", {}).render([("user", [("text", "a")])])
    with pytest.raises(ModelLoadError, match="broken"):
        ChatTemplate("{% if %}", {}).render([("user", [("text", "a")])])


def stripping_tokenizer() -> tokenizers.Tokenizer:
    """Its special tokens take the white space beside them, and its texts are composed (NFC)."""
    tokenizer = build_tokenizer(CORPUS, merges=60)
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.add_special_tokens(
        [
            tokenizers.AddedToken("<fake_token_around_image>", rstrip=True, normalized=False),
            tokenizers.AddedToken("<end_of_utterance>", lstrip=True, rstrip=True, normalized=False),
        ]
    )
    return tokenizer


def word_tokenizer() -> tokenizers.Tokenizer:
    """One that joins spaces to words, marks the first one, and begins and ends prompts itself."""
    tokenizer = tokenizers.Tokenizer(models.BPE(byte_fallback=True, unk_token="<|endoftext|>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
    tokenizer.decoder = decoders.Metaspace()
    trainer = trainers.BpeTrainer(
        vocab_size=400, special_tokens=[*FIRST_TOKENS, *(f"<0x{byte:02X}>" for byte in range(256))]
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    tokenizer.add_special_tokens(list(LAST_TOKENS))
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<|im_start|> $A <|im_end|>",
        special_tokens=[(name, tokenizer.token_to_id(name)) for name in FIRST_TOKENS[1:3]],
    )
    return tokenizer


TOKENIZERS: dict[str, Callable[[], tokenizers.Tokenizer]] = {
    "bytes": build_tokenizer,
    "merges": lambda: build_tokenizer(CORPUS, merges=100),
    "stripping": stripping_tokenizer,
    "words": word_tokenizer,
}
PARTS = (
    "{% for p in m['content'] %}{{ '<image>' if p['type'] == 'image' else p['text'] }}{% endfor %}"
)
TEMPLATES = {
    "published": CHAT_TEMPLATE,
    "with a system turn of its own": (
        "{{ bos_token }}{% if messages[0]['role'] != 'system' %}System: Help.\n\n{% endif %}"
        "{% for m in messages %}{{ m['role'] }}\n" + PARTS + "<end_of_utterance>\n{% endfor %}"
        "{% if add_generation_prompt %}{{ 'assistant\n' }}{% endif %}"
    ),
    "with roles as tokens": (
        "{%- for m in messages -%}{{- '<repo_name>' + m['role'] + '<file_sep>' -}}"
        "{%- for p in m['content'] -%}{%- if p['type'] == 'text' -%}{{- p['text'] -}}"
        "{%- elif p['type'] == 'image' -%}{{- '<image>' -}}{%- endif -%}{%- endfor -%}"
        "{{- '<end_of_utterance>\n' -}}{%- endfor -%}"
        "{%- if add_generation_prompt -%}{{- '<repo_name>assistant<file_sep>' -}}{%- endif -%}"
    ),
    "that strips texts": (
        "{% for m in messages %}{% if m['role'] == 'tool' %}{{ raise_exception('no tools') }}"
        "{% break %}{% endif %}[{{ m['role'] | upper }}]{% for p in m['content'] %}"
        "{% if p['type'] == 'image' %}\n<image>\n{% else %}{% generation %}{{ p['text'] | trim }}"
        "{% endgeneration %}{% endif %}{% endfor %}{{ eos_token }}{% endfor %}[ASSISTANT] "
    ),
}


@pytest.mark.parametrize("template", TEMPLATES.values(), ids=TEMPLATES)
@pytest.mark.parametrize("make", TOKENIZERS.values(), ids=TOKENIZERS)
def test_random_chats_are_written_as_transformers_writes_them(
    make: Callable[[], tokenizers.Tokenizer], template: str, tmp_path: Path
) -> None:
    write_tiny_checkpoint(tmp_path, tokenizer=make())
    (tmp_path / "chat_template.jinja").write_text(template, encoding="utf-8")
    preparer = Preparer.from_checkpoint(Checkpoint(tmp_path, "tiny", ""))
    oracle = Oracle(tmp_path)
    rng = random.Random(0)
    for number in range(CHATS):
        chat, question = random_chat(rng, ("picture", "clip", "both")[number % 3])
        made = prepare(preparer, chat.turns, question.text)
        expected = oracle.ids(chat.turns, question.text)
        assert [*made.prefix_ids, *made.question_ids[0]] == expected, (chat, question)
        assert np.array_equal(made.tiles, oracle.tiles(chat.turns))


def test_a_template_may_refuse_a_conversation() -> None:
    template = ChatTemplate("{{ raise_exception('roles must alternate') }}", {})
    with pytest.raises(PrepareError, match="refuses the conversation: roles must alternate"):
        template.render([("user", [("text", "a")])])
