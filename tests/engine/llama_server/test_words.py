"""The words of llama.cpp are those of our own engine: prompts, pixels, tokens."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from safetensors.torch import load_file, save_file

from tests.checkpoints import FIRST_TOKENS, write_tiny_checkpoint
from tests.contracts.test_engines import answer, ask, picture
from tests.engine.llama_server.conftest import Open
from vlmbatch.checkpoint import find_checkpoint
from vlmbatch.convert import ConvertOptions, convert
from vlmbatch.core import Completion, Conversation, Part, Pixels, Question, Turn
from vlmbatch.engine import Engine, open_engine
from vlmbatch.errors import PrepareError
from vlmbatch.job import EngineOptions

SAMPLES = Path(__file__).parents[3] / "sample_data" / "images"
EMBEDDINGS = "model.text_model.embed_tokens.weight"
MULTIPLIERS = {
    "embedding_multiplier": 2.0,
    "residual_multiplier": 0.5,
    "attention_multiplier": 0.25,
}
NEAR_TIE = 0.02
"""Difference of two log-probabilities that float32 sums in another order can turn round."""


def write_quiet_checkpoint(folder: Path, **options: Any) -> Path:
    """A random checkpoint that never writes the special tokens which trained ones never write."""
    write_tiny_checkpoint(folder, **options)
    weights = load_file(folder / "model.safetensors")
    head = "lm_head.weight" if "lm_head.weight" in weights else EMBEDDINGS
    weights[head][: len(FIRST_TOKENS)] = 0
    save_file(weights, folder / "model.safetensors")
    return folder


def open_torch(model: object, **more: object) -> Engine:
    return open_engine(
        EngineOptions(model=str(model), device="cpu", dtype="float32", **more)  # type: ignore[arg-type]
    )


def conversations() -> list[Conversation]:
    """Pictures of all shapes, two in one conversation, and text alone."""
    sizes = [(40, 30), (30, 90), (128, 128), (200, 10), (33, 32), (64, 120)]
    found = [
        Conversation.about("image", picture(seed, *size), f"{seed}.png")
        for seed, size in enumerate(sizes)
    ]
    turns = (
        Turn("user", (Part("picture", pixels=picture(7)), Part("text", "One."))),
        Turn("assistant", (Part("text", "I see."),)),
        Turn("user", (Part("text", "And: "), Part("picture", pixels=picture(8)))),
    )
    return [*found, Conversation(turns, "two"), Conversation(key="text")]


def one_tile_conversations() -> list[Conversation]:
    """A tile, and a clip."""
    frames = Pixels([picture(n).frames[0] for n in range(3)], (0.0, 1.5, 3.0), 4.0)
    return [
        Conversation.about("tile", picture(3, 32, 32), "tile"),
        Conversation.about("clip", frames, "clip"),
    ]


def answers(engine: Engine, about: Sequence[Conversation], **options: object) -> list[Completion]:
    questions = [
        Question(text, max_new_tokens=24, **options)  # type: ignore[arg-type]
        for text in ("What is this?", "Why 12 of 30, and not é?")
    ]
    requests = [engine.prepare(conversation, questions) for conversation in about]
    return list(itertools.chain.from_iterable(answer(engine, *requests)))


def compare(ours: Sequence[Completion], theirs: Sequence[Completion]) -> float:
    """Share of equal tokens up to the first difference; each difference must be a near tie."""
    equal = different = 0
    for own, other in zip(ours, theirs, strict=True):
        assert other.error is None
        assert other.prompt_tokens == own.prompt_tokens
        pairs = list(zip(own.token_ids, other.token_ids, strict=False))
        same = next((n for n, (a, b) in enumerate(pairs) if a != b), len(pairs))
        equal += same
        if same < len(pairs):
            different += 1
            first, second = own.logprobs[same].top[:2]
            assert first[1] - second[1] < NEAR_TIE, (own.text, other.text, own.logprobs[same])
        else:
            assert own.text == other.text
            assert own.finish_reason == other.finish_reason
    return equal / (equal + different)


@pytest.mark.parametrize("seed", [0, 1])
def test_greedy_tokens_of_random_weights_equal_ours(
    tmp_path: Path, open_server: Open, seed: int
) -> None:
    folder = write_quiet_checkpoint(tmp_path / f"tiny-{seed}", seed=seed, tie=bool(seed))
    about = conversations() + one_tile_conversations()
    with_margin = answers(open_torch(folder), about, logprobs=2)
    assert compare(with_margin, answers(open_server(folder), about)) >= 0.99


def test_log_probabilities_are_ours(tmp_path: Path, open_server: Open) -> None:
    folder = write_quiet_checkpoint(tmp_path / "quiet")
    about = [conversations()[0], conversations()[2]]  # see docs: the overview of tall ones
    ours = answers(open_torch(folder), about, logprobs=2)
    theirs = answers(open_server(folder), about, logprobs=2)
    for own, other in zip(ours, theirs, strict=True):
        if own.token_ids == other.token_ids and other.logprobs:
            assert other.mean_logprob == pytest.approx(own.mean_logprob, abs=0.03)
        rows = zip(own.token_ids, other.token_ids, own.logprobs, other.logprobs, strict=False)
        for _, _, one, two in itertools.takewhile(lambda row: row[0] == row[1], rows):
            assert two.logprob == pytest.approx(one.logprob, abs=0.05)


def test_the_samples_have_the_same_texts_at_low_detail(open_server: Open) -> None:
    paths = sorted(SAMPLES.glob("*.*"))
    about = [
        Conversation.about("image", Pixels([Image.open(path).convert("RGB")]), path.name)
        for path in paths
    ]
    question = Question("Can you describe this image?")
    texts = []
    for engine in (open_torch("demo", detail="low"), open_server("demo", detail="low")):
        requests = [engine.prepare(each, [question]) for each in about]
        texts.append([one.text for (one,) in answer(engine, *requests)])
    assert len(texts[0]) == 12
    assert texts[0] == texts[1]


def test_a_picture_of_one_tile_is_encoded_once(tiny: Path, open_server: Open) -> None:
    engine = open_server(tiny, detail="low")
    (found,) = ask(engine, Conversation.about("image", picture(0)), Question("?"))
    ours = open_torch(tiny, detail="low")
    request = ours.prepare(Conversation.about("image", picture(0)), [Question("?")])
    assert found.prompt_tokens == request.payload.prompt_tokens
    assert engine.stats.tiles == 1


def test_questions_about_a_picture_share_its_encoding(tiny: Path, open_server: Open) -> None:
    engine = open_server(tiny)
    first, second = ask(
        engine,
        Conversation.about("image", picture(0)),
        Question("What?", max_new_tokens=4),
        Question("Why?", max_new_tokens=4),
    )
    assert first.cached_tokens == 0
    assert second.cached_tokens is not None
    assert second.prompt_tokens is not None
    assert second.cached_tokens > second.prompt_tokens - 40


def test_a_tiled_picture_and_one_tile_do_not_mix(tiny: Path, open_server: Open) -> None:
    parts = (Part("picture", pixels=picture(0)), Part("tile", pixels=picture(1, 32, 32)))
    with pytest.raises(PrepareError, match="not both: use --engine torch"):
        open_server(tiny).prepare(Conversation((Turn("user", parts),)), [Question("?")])


def test_what_does_not_fit_into_the_context_is_said(tiny: Path, open_server: Open) -> None:
    engine = open_server(tiny)
    with pytest.raises(PrepareError, match=r"the model's context is 2048"):
        engine.prepare(Conversation(), [Question("word " * 2000)])
    (found,) = ask(engine, Conversation(), Question("w" * 2000, max_new_tokens=500))
    assert found.finish_reason in ("stop", "length")
    assert found.new_tokens is not None
    assert found.new_tokens <= 2048 - 2000


def test_bad_pixels_and_image_tokens_are_refused(tiny: Path, open_server: Open) -> None:
    engine = open_server(tiny)
    grey = Pixels([np.zeros((4, 4), np.uint8)])  # type: ignore[list-item]
    for conversation, question in (
        (Conversation.about("image", grey), "?"),
        (Conversation.about("image", picture(0)), "an <image> token"),
        (Conversation.about("image", Pixels([])), "?"),
    ):
        with pytest.raises(PrepareError):
            engine.prepare(conversation, [Question(question)])


def test_an_answer_goes_on_behind_tokens_that_end_answers_of_other_families(
    tmp_path: Path, open_server: Open
) -> None:
    """llama.cpp stops at ``<|im_end|>`` too; a checkpoint that ends elsewhere does not."""
    folder = write_tiny_checkpoint(tmp_path / "tiny")
    weights = load_file(folder / "model.safetensors")
    weights["lm_head.weight"][2] *= 3
    save_file(weights, folder / "model.safetensors")
    about = [Conversation(key="text")]
    ours = answers(open_torch(folder), about, logprobs=2)
    im_end = 2
    assert any(im_end in one.token_ids[:-1] for one in ours)
    assert compare(ours, answers(open_server(folder), about)) >= 0.99


def test_tiles_that_are_no_multiple_of_a_patch_lose_their_rest(
    tmp_path: Path, open_server: Open
) -> None:
    """As those of the 2.2B checkpoint: 384 pixels, patches of 14."""
    folder = write_quiet_checkpoint(tmp_path / "odd", tile=38)
    tile = Conversation.about("tile", picture(3, 38, 38), "tile")
    about = [*conversations()[:3], tile, one_tile_conversations()[1]]
    ours = answers(open_torch(folder), about, logprobs=2)
    assert compare(ours, answers(open_server(folder), about)) >= 0.99


@pytest.mark.parametrize("granite", [None, MULTIPLIERS])
def test_idefics3_has_our_words_too(
    tmp_path: Path, open_server: Open, granite: dict[str, float] | None
) -> None:
    folder = write_quiet_checkpoint(tmp_path / "idefics3", model_type="idefics3", granite=granite)
    about = [*conversations()[:5], Conversation.about("tile", picture(3, 32, 32), "tile")]
    ours = answers(open_torch(folder), about, logprobs=2)
    engine = open_server(folder)
    assert compare(ours, answers(engine, about)) >= 0.99
    assert not engine.takes_clips


@pytest.mark.parametrize("given", ["file", "folder"])
def test_gguf_files_alone_give_the_same_words(
    tiny: Path, tmp_path: Path, open_server: Open, given: str
) -> None:
    options = ConvertOptions(tmp_path, "f32")
    text, *_ = convert(find_checkpoint(str(tiny)), "gguf", options).files
    alone = open_server(text if given == "file" else tmp_path)
    about = conversations()[:2] + one_tile_conversations()
    assert [one.text for one in answers(alone, about)] == [
        one.text for one in answers(open_server(tiny), about)
    ]
    assert alone.dtype == "float32"
    assert alone.revision.startswith("sha256:")
