"""The Idefics3 family: prompts and greedy tokens equal those of transformers'
``Idefics3ForConditionalGeneration`` and its processor.
"""

from __future__ import annotations

import json
import string
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from tests.engine.idefics3 import (
    MULTIPLIERS,
    Message,
    Oracle,
    conversation,
    docling_options,
    literal_options,
    write_idefics3,
    write_pictures,
)
from tests.engine.reference import Reference, run_all
from vlmbatch.checkpoint import find_checkpoint
from vlmbatch.core import Constraint, Conversation, Pixels, Question, Request
from vlmbatch.engine import Engine, open_engine, plan_engine
from vlmbatch.engine.torch import device
from vlmbatch.errors import PrepareError
from vlmbatch.job import EngineOptions
from vlmbatch.prepare import Preparer

NEW_TOKENS = 16
CHECKPOINTS: dict[str, dict[str, Any]] = {
    "SmolVLM": {},
    "granite-docling": dict(docling_options()),
    "Granite": dict(docling_options(granite=MULTIPLIERS, layout="hub", seed=5)),
    "Granite by default": dict(docling_options(granite={}, seed=6)),
    "SmolVLM-Instruct": dict(literal_options(longest_edge=256)),
    "16-bit shards": {"dtype": "bfloat16", "shards": True, "tie": True, "seed": 2},
    "one tile": {"longest_edge": 32},
    "7 x 7 tiles": {"longest_edge": 7 * 32, "context": 4096},
    "an odd longest edge": {"longest_edge": 101, "tile": 40, "patch": 5, "scale_factor": 4},
}


def open_torch(folder: Path, **options: Any) -> Engine:
    settings = {"device": "cpu", "dtype": "float32"} | options
    return open_engine(EngineOptions(model=str(folder), **settings))


def prepared(engine: Engine, conversations: Sequence[Sequence[Message]]) -> list[Request]:
    requests = []
    for messages in conversations:
        about, questions = conversation(messages)
        asked = [Question(question.text, max_new_tokens=NEW_TOKENS) for question in questions]
        requests.append(engine.prepare(about, asked))
    return requests


def assert_equal(
    folder: Path, conversations: Sequence[Sequence[Message]], **options: Any
) -> list[tuple[int, ...]]:
    """Compare prompts and answers with the oracle's, all in one batch. Return the answers."""
    oracle = Oracle(folder)
    engine = open_torch(folder, **options)
    requests = prepared(engine, conversations)
    found = run_all(engine, requests)
    for number, (messages, request) in enumerate(zip(conversations, requests, strict=True)):
        prompt, answer = oracle(messages, NEW_TOKENS)
        payload = request.payload
        assert [*payload.prefix_ids, *payload.question_ids[0]] == prompt, messages
        assert found[number, 0].error is None
        assert list(found[number, 0].token_ids) == answer, messages
    return [tuple(found[number, 0].token_ids) for number in range(len(requests))]


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    return write_pictures(tmp_path_factory.mktemp("pictures"))


def chats(pictures: Sequence[Path]) -> list[list[Message]]:
    """Conversations of all kinds."""
    a, b, c = pictures[13], pictures[6], pictures[24]
    return [
        [("user", ["No picture at all?"])],
        [("system", ["Be brief."]), ("user", [a, "What is this?"])],
        [("user", ["First words. ", b, "Then?"])],
        [("user", [a, b, c, " Which one?"])],
        [("user", [a, "One?"]), ("assistant", ["Yes."]), ("user", [b, "Two <row_1_col_1>?"])],
        [("user", ["<video> and <global-img> are words  7\n\n12"])],
    ]


@pytest.mark.parametrize("name", CHECKPOINTS)
def test_pictures_and_chats(tmp_path: Path, pictures: list[Path], name: str) -> None:
    folder = write_idefics3(tmp_path / "model", **CHECKPOINTS[name])
    some = pictures if name == "SmolVLM" else pictures[2::6]
    answers = assert_equal(
        folder, [[("user", [path, "What is this?"])] for path in some] + chats(pictures)
    )
    assert len(set(answers)) > len(answers) // 2  # they follow the pictures


def test_one_picture_is_never_split_when_the_processor_says_so(
    tmp_path: Path, pictures: list[Path]
) -> None:
    folder = write_idefics3(tmp_path / "model")
    path = folder / "preprocessor_config.json"
    settings = json.loads(path.read_text()) | {"do_image_splitting": False}
    path.write_text(json.dumps(settings))
    assert_equal(folder, [[("user", [path, "What?"])] for path in pictures[::5]])


def test_any_of_several_tokens_ends_an_answer(tmp_path: Path, pictures: list[Path]) -> None:
    ends = ("<end_of_utterance>", *string.ascii_letters[::2])
    folder = write_idefics3(tmp_path / "model", ends=ends)
    assert len(json.loads((folder / "generation_config.json").read_text())["eos_token_id"]) == 27
    answers = assert_equal(folder, [[("user", [path, "What?"])] for path in pictures[::4]])
    assert len({answer[-1] for answer in answers if len(answer) < NEW_TOKENS}) > 1


@pytest.mark.parametrize(
    ("text", "vision", "options"),
    [
        (
            {"hidden_size": 576, "intermediate_size": 1536, "num_attention_heads": 9}
            | {"num_key_value_heads": 3, "head_dim": 64},
            {"hidden_size": 768, "intermediate_size": 3072, "num_attention_heads": 12},
            {"tile": 512, "patch": 16, "scale_factor": 4, "longest_edge": 1024},
        ),
        (
            {"hidden_size": 2048, "intermediate_size": 2048, "num_attention_heads": 32}
            | {"num_key_value_heads": 32, "head_dim": 64, "rope_theta": 273768.0},
            {"hidden_size": 1152, "intermediate_size": 4304, "num_attention_heads": 16},
            literal_options(tile=384, longest_edge=768),
        ),
    ],
    ids=["256M", "2.2B"],
)
def test_the_published_shapes_with_one_layer(
    tmp_path: Path,
    pictures: list[Path],
    text: dict[str, int],
    vision: dict[str, int],
    options: dict[str, Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(device, "SMALL_MODEL_PARAMETERS", 1 << 40)  # no measuring of kernels
    folder = write_idefics3(
        tmp_path / "model",
        **options,
        text=text | {"num_hidden_layers": 1},
        vision=vision | {"num_hidden_layers": 1},
    )
    preparer = Preparer.from_checkpoint(find_checkpoint(str(folder)))
    assert preparer.seq_len == (64 if options["tile"] == 512 else 81)
    assert preparer.num_tiles(7, 900) == 3
    assert_equal(folder, [[("user", [pictures[15], "What?"])]])


def test_transformers_answers_for_them_too(tmp_path: Path, pictures: list[Path]) -> None:
    folder = write_idefics3(tmp_path / "model", **docling_options(granite=MULTIPLIERS))
    wanted, engine = Reference(folder).engine, open_torch(folder)
    cases = [[("user", [path, "What?"])] for path in pictures[::6]] + chats(pictures)
    one, other = (run_all(each, prepared(each, cases)) for each in (engine, wanted))
    for key, completion in other.items():
        assert one[key].token_ids == completion.token_ids
        assert one[key].prompt_tokens == completion.prompt_tokens
        assert one[key].mean_logprob == pytest.approx(completion.mean_logprob, abs=1e-4)


@pytest.mark.parametrize("name", ["SmolVLM", "granite-docling", "SmolVLM-Instruct"])
def test_answers_have_the_form_that_is_asked_for(tmp_path: Path, name: str) -> None:
    """A prompt may have tokens that the model lacks: granite-docling has no end of utterance."""
    engine = open_torch(write_idefics3(tmp_path / "model", **CHECKPOINTS[name]))
    texts = ["red", "dark blue", " é 7"]
    form = Constraint("choices", json.dumps(texts))
    asked = [Question(f"What {number}?", NEW_TOKENS, constraint=form) for number in range(6)]
    found = run_all(engine, [engine.prepare(Conversation(), asked)])
    assert {done.text for done in found.values()} <= set(texts)


@pytest.mark.parametrize("name", ["torch", "transformers"])
def test_a_clip_is_refused(tmp_path: Path, name: str) -> None:
    folder = write_idefics3(tmp_path / "model")
    options = EngineOptions(model=str(folder), engine=name, device="cpu")
    assert not plan_engine(options).takes_clips
    frame = Pixels([next(iter(load(tmp_path)))] * 2, (0.0, 1.0), 2.0)
    with pytest.raises(PrepareError, match="takes pictures, no video"):
        open_engine(options).prepare(Conversation.about("clip", frame), [Question("What?")])


def load(folder: Path) -> Sequence[Any]:
    from vlmbatch.read.pictures.decode import load_image

    return load_image(str(write_pictures(folder / "pictures")[6]), 1 << 30).frames
