"""Greedy answers of whole conversations equal those of transformers, alone and in company."""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path

import pytest

from tests.chats import Oracle, random_chat
from tests.checkpoints import build_tokenizer, write_tiny_checkpoint
from tests.engine.reference import run_all
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
