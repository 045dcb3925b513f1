"""Conversations of any turns and media are written as transformers' chat template and processors
write them.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from transformers.models.smolvlm import processing_smolvlm as reference
from transformers.models.smolvlm.image_processing_pil_smolvlm import SmolVLMImageProcessorPil

from tests.checkpoints import build_tokenizer, write_tiny_checkpoint
from vlmbatch.checkpoint import Checkpoint
from vlmbatch.core import Conversation, Part, Pixels, Question, Turn
from vlmbatch.errors import ModelLoadError, PrepareError
from vlmbatch.prepare import Payload, Preparer
from vlmbatch.prepare.chat import ChatTemplate, fill_in

TILE, SEQ_LEN = 32, 4
CORPUS = ["User: What is this?\n\nAssistant: 12\n\n  User:\n\n", "System: Be short.\n"] * 20
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


def noise(width: int, height: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def text(words: str) -> Part:
    return Part("text", text=words)


def is_text(part: Part) -> bool:
    return part.kind == "text"


def picture(width: int = 64, height: int = 48, seed: int = 0) -> Part:
    return Part("picture", pixels=Pixels([noise(width, height, seed)]))


def tile(seed: int = 0) -> Part:
    return Part("tile", pixels=Pixels([noise(TILE, TILE, seed)]))


def clip(frames: int = 3) -> Part:
    times = tuple(30.5 * number for number in range(frames))
    return Part("clip", pixels=Pixels([noise(40, 30, seed) for seed in range(frames)], times, 99.0))


class Oracle:
    """Token ids and tiles as transformers makes them."""

    def __init__(self, folder: Path) -> None:
        self.tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
        self.template = Checkpoint(folder, "tiny", "").chat_template()

    def ids(self, turns: Sequence[Turn], question: str) -> list[int]:
        """Ids of the whole conversation, up to where the assistant answers."""
        turns = list(turns)
        last = turns.pop() if turns and turns[-1].role == "user" else Turn("user", ())
        turns.append(Turn("user", (*last.parts, text(question))))
        parts = [part for turn in turns for part in turn.parts if not is_text(part)]
        kinds = {"text": "text", "picture": "image", "tile": "image", "clip": "video"}
        messages = [
            {
                "role": turn.role,
                "content": [
                    {"type": kinds[part.kind], **({"text": part.text} if is_text(part) else {})}
                    for part in turn.parts
                ],
            }
            for turn in turns
        ]
        has_clip = any(part.kind == "clip" for part in parts)
        written = self.tokenizer.apply_chat_template(
            messages,
            chat_template=reference.DEFAULT_CHAT_TEMPLATE if has_clip else self.template,
            add_generation_prompt=True,
            tokenize=False,
        )
        for part in parts:
            marker = "<video>" if part.kind == "clip" else "<image>"
            before, found, after = written.partition(marker)
            assert found
            written = before + self.media(part).replace("<image>", "\x01") + after
        written = written.replace("\x01", "<image>")
        return list(self.tokenizer(written, add_special_tokens=False)["input_ids"])

    def media(self, part: Part) -> str:
        """The text of a picture or clip."""
        assert part.pixels is not None
        if part.kind == "clip":
            times = list(part.pixels.times_seconds)
            processor = SimpleNamespace(
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
            found = self.process(part, return_row_col_info=True)
            grid = found["rows"][0][0], found["cols"][0][0]
        prompt: str = reference.get_image_prompt_string(
            *grid,
            SEQ_LEN,
            fake_token_around_image="<fake_token_around_image>",
            image_token="<image>",
            global_image_token="<global-img>",
        )
        return prompt

    def process(self, part: Part, **options: Any) -> Any:
        assert part.pixels is not None
        small = part.kind == "clip"
        processor = SmolVLMImageProcessorPil(
            size={"longest_edge": TILE if small else 4 * TILE},
            max_image_size={"longest_edge": TILE},
            do_image_splitting=not small,
        )
        frames = [[Image.fromarray(frame)] for frame in part.pixels.arrays()]
        return processor(frames, do_rescale=False, do_normalize=False, do_pad=False, **options)

    def tiles(self, turns: Sequence[Turn]) -> np.ndarray:
        """The tiles of all pictures and clips."""
        found = []
        for part in (part for turn in turns for part in turn.parts if part.kind != "text"):
            assert part.pixels is not None
            if part.kind == "tile":
                found += [frame.transpose(2, 0, 1) for frame in part.pixels.arrays()]
                continue
            found += [
                np.asarray(each) for frame in self.process(part)["pixel_values"] for each in frame
            ]
        return np.stack(found) if found else np.zeros((0, 3, TILE, TILE), np.uint8)


def prepare(preparer: Preparer, turns: Sequence[Turn], *questions: str) -> Payload:
    request = preparer.prepare(Conversation(tuple(turns)), [Question(each) for each in questions])
    payload: Payload = request.payload
    assert request.tiles == len(payload.tiles)
    return payload


def user(*parts: Part) -> Turn:
    return Turn("user", parts)


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


@settings(max_examples=150, deadline=None)
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
