"""Greedy answers of whole conversations equal those of transformers, alone and in company."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from tests.chats import Oracle, random_chat
from tests.checkpoints import build_tokenizer, write_tiny_checkpoint
from tests.engine import idefics3
from tests.engine.reference import run_all
from vlmbatch.core import Conversation, Part, Question
from vlmbatch.engine import open_engine
from vlmbatch.job import EngineOptions

WORDS = ["User: What is this?\n\nAssistant: 12\n\n  User:\n\n", "System: Be short.\n"] * 20


def without_end(ids: Sequence[int], ends: frozenset[int]) -> list[int]:
    """Tokens before the one that ends the answer."""
    return [token for token in ids if token not in ends]


@pytest.mark.parametrize(("count", "seed"), [(20, 0), pytest.param(200, 1, marks=pytest.mark.slow)])
def test_random_chats_are_answered_as_transformers_answers_them(
    tmp_path: Path, count: int, seed: int
) -> None:
    folder = write_tiny_checkpoint(tmp_path, tokenizer=build_tokenizer(WORDS, merges=80))
    oracle = Oracle(folder)
    engine = open_engine(EngineOptions(model=str(folder), device="cpu", dtype="float32"))
    rng = random.Random(seed)
    chats = [random_chat(rng, ("picture", "clip")[number % 2]) for number in range(count)]
    expected = [
        oracle.answer(chat.turns, question.text, question.max_new_tokens)
        for chat, question in chats
    ]
    assert len({tuple(ids) for ids in expected}) > count // 2  # they follow the chat
    ends = frozenset([engine._preparer.writer.tokenizer.token_to_id("<end_of_utterance>")])
    together = run_all(engine, [engine.prepare(chat, [question]) for chat, question in chats])
    for number, (chat, question) in enumerate(chats):
        found = without_end(together[number, 0].token_ids, ends)
        assert found == without_end(expected[number], ends), (chat, question)
        if number % 5 == 0:
            alone = run_all(engine, [engine.prepare(chat, [question])])[0, 0]
            assert without_end(alone.token_ids, ends) == found
    engine.close()


def messages_of(chat: Conversation, question: Question) -> list[dict[str, Any]]:
    """The chat as transformers takes it; it ends with a turn of the user."""
    turns = [[turn.role, [content_of(part) for part in turn.parts]] for turn in chat.turns]
    turns[-1][1].append({"type": "text", "text": question.text})  # type: ignore[attr-defined]
    return [{"role": role, "content": content} for role, content in turns]


def content_of(part: Part) -> dict[str, Any]:
    if part.kind == "text":
        return {"type": "text", "text": part.text}
    assert part.pixels is not None
    return {"type": "image", "image": Image.fromarray(part.pixels.arrays()[0])}


@pytest.mark.parametrize(
    "options",
    [{}, idefics3.docling_options(), idefics3.literal_options()],
    ids=["SmolVLM", "docling", "literal"],
)
def test_random_chats_with_idefics3(tmp_path: Path, options: Mapping[str, Any]) -> None:
    folder = idefics3.write_idefics3(tmp_path, **options)
    oracle = idefics3.Oracle(folder)
    engine = open_engine(EngineOptions(model=str(folder), device="cpu", dtype="float32"))
    rng = random.Random(3)
    chats = [random_chat(rng, max_new_tokens=6) for _ in range(8)]
    requests = [engine.prepare(chat, [question]) for chat, question in chats]
    prompts = [[*one.payload.prefix_ids, *one.payload.question_ids[0]] for one in requests]
    together = run_all(engine, requests)
    for number, (chat, question) in enumerate(chats):
        inputs = oracle.processor.apply_chat_template(
            messages_of(chat, question),
            add_generation_prompt=True,
            tokenize=True,
            return_dict=True,
            return_tensors="pt",
        )
        ids = inputs["input_ids"]
        assert prompts[number] == ids[0].tolist(), (chat, question)
        with torch.inference_mode():
            found = oracle.model.generate(**inputs, do_sample=False, max_new_tokens=6)
        expected = found[0, ids.shape[1] :].tolist()
        assert list(together[number, 0].token_ids) == expected, (chat, question)
    engine.close()
