"""A conversation becomes a request: tiles and ids that fit each other, checked before the engine
sees them.
"""

from __future__ import annotations

import json
import pickle
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from transformers.models.smolvlm.image_processing_pil_smolvlm import SmolVLMImageProcessorPil

from tests.checkpoints import build_tokenizer, write_tiny_checkpoint
from vlmbatch.checkpoint import Checkpoint
from vlmbatch.core import Conversation, Media, Pixels, Question, Request
from vlmbatch.errors import ModelLoadError, PrepareError
from vlmbatch.job import Detail
from vlmbatch.prepare import Payload, Preparer

TILE = 32
SEQ_LEN = 4


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_checkpoint(tmp_path_factory.mktemp("hub"))


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_checkpoint(tmp_path_factory.mktemp("saved"), layout="saved")


@pytest.fixture(scope="module")
def preparer(folder: Path) -> Preparer:
    return load(folder)


def load(folder: Path, detail: Detail = "full") -> Preparer:
    return Preparer.from_checkpoint(Checkpoint(folder, "tiny", ""), detail)


def ask(*texts: str, seed: int = 0) -> list[Question]:
    return [Question(text, seed=seed) for text in texts]


def payload(preparer: Preparer, conversation: Conversation, *texts: str) -> Payload:
    found: Payload = preparer.prepare(conversation, ask(*(texts or ("?",)))).payload
    return found


def edited(folder: Path, target: Path, file: str, **changes: Any) -> Path:
    """A copy of a checkpoint's small files, keys of one changed; None takes a key out."""
    for path in [*folder.glob("*.json"), *folder.glob("*.jinja")]:
        (target / path.name).write_bytes(path.read_bytes())
    settings = json.loads((target / file).read_text()) | changes
    (target / file).write_text(
        json.dumps({key: value for key, value in settings.items() if value is not None})
    )
    return target


def noise(width: int, height: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def image(
    width: int, height: int, *, media: Media = "image", key: str = "a.png", seed: int = 0
) -> Conversation:
    return Conversation.about(media, Pixels([noise(width, height, seed)]), key)


def clip(frames: int, width: int = 50, height: int = 30) -> Conversation:
    times = tuple(0.5 * number for number in range(frames))
    return Conversation.about(
        "clip",
        Pixels([noise(width, height, number) for number in range(frames)], times, 12.0),
        "a.mp4",
    )


def pixels_of(conversation: Conversation) -> Pixels:
    (part,) = conversation.media()
    assert part.pixels is not None
    return part.pixels


def reference_tiles(pixels: np.ndarray, **options: Any) -> np.ndarray:
    settings = {
        "size": {"longest_edge": 4 * TILE},
        "max_image_size": {"longest_edge": TILE},
    } | options
    found = SmolVLMImageProcessorPil(**settings)(
        Image.fromarray(pixels), do_rescale=False, do_normalize=False, do_pad=False
    )
    return np.stack([np.asarray(tile) for tile in found["pixel_values"][0]])


def assert_consistent(request: Request, preparer: Preparer) -> None:
    made = request.payload
    assert made.tiles.dtype == np.uint8
    assert made.tiles.shape[1:] == (3, TILE, TILE)
    assert len(made.tiles) == request.tiles == len(made.tile_keys)
    assert request.payload_bytes == made.tiles.nbytes
    assert made.prefix_ids.count(preparer.writer.image_token_id) == request.tiles * SEQ_LEN
    assert made.prompt_tokens == len(made.prefix_ids) + max(map(len, made.question_ids))
    assert len(made.seeds) == len(made.question_ids) == len(request.questions)
    assert all(part.pixels is None for part in request.conversation.media())


@pytest.mark.parametrize("media", ["image", "frame"])
def test_a_picture_in_full(preparer: Preparer, media: Media) -> None:
    request = preparer.prepare(image(64, 48, media=media), ask("What is it?", "Where?"))
    assert_consistent(request, preparer)
    assert (request.tiles, request.native_tiles) == (13, 5)
    assert np.array_equal(request.payload.tiles, reference_tiles(noise(64, 48)))
    assert list(request.payload.prefix_ids) == preparer.writer.image_prefix(3, 4)
    assert [list(ids) for ids in request.payload.question_ids] == [
        preparer.writer.image_question(text) for text in ("What is it?", "Where?")
    ]


def test_native_detail_does_not_enlarge(folder: Path) -> None:
    preparer = load(folder, "native")
    request = preparer.prepare(image(64, 48), ask("?"))
    assert_consistent(request, preparer)
    assert (request.tiles, request.native_tiles) == (5, None)
    expected = reference_tiles(noise(64, 48), size={"longest_edge": 64})
    assert np.array_equal(request.payload.tiles, expected)
    assert list(request.payload.prefix_ids) == preparer.writer.image_prefix(2, 2)
    assert preparer.prepare(image(20, 9), ask("?")).tiles == 1
    assert preparer.prepare(image(640, 480), ask("?")).tiles == 13
    full = load(folder)
    assert full.prepare(image(20, 9), ask("?")).native_tiles == 1
    assert full.prepare(image(640, 480), ask("?")).native_tiles == 13


def test_low_detail_is_one_tile(folder: Path) -> None:
    preparer = load(folder, "low")
    request = preparer.prepare(image(64, 48), ask("?"))
    assert_consistent(request, preparer)
    expected = reference_tiles(noise(64, 48), do_image_splitting=False)
    assert np.array_equal(request.payload.tiles, expected)
    assert list(request.payload.prefix_ids) == preparer.writer.image_prefix(0, 0)


@pytest.mark.parametrize("layout", ["folder", "saved"])
@pytest.mark.parametrize("detail", ["full", "native", "low"])
def test_a_clip_is_one_tile_a_frame_whatever_the_detail(
    layout: str, detail: Detail, request: pytest.FixtureRequest
) -> None:
    preparer = load(request.getfixturevalue(layout), detail)
    conversation = clip(5)
    request_made = preparer.prepare(conversation, ask("What happens?", "Why?"))
    assert_consistent(request_made, preparer)
    made, pixels = request_made.payload, pixels_of(conversation)
    expected = [
        reference_tiles(frame, size={"longest_edge": TILE}, do_image_splitting=False)
        for frame in pixels.arrays()
    ]
    assert np.array_equal(made.tiles, np.concatenate(expected))
    assert list(made.prefix_ids) == preparer.writer.video_prefix(pixels.times_seconds, 12.0)
    assert list(made.question_ids[1]) == preparer.writer.video_question("Why?")


def test_a_clip_without_duration_lasts_until_its_last_frame(preparer: Preparer) -> None:
    pixels = Pixels([noise(8, 8), noise(8, 8, 1)], (3.0, 65.5))
    made = payload(preparer, Conversation.about("clip", pixels))
    assert list(made.prefix_ids) == preparer.writer.video_prefix((3.0, 65.5), 65.5)


def assert_same(one: Payload, other: Payload) -> None:
    assert np.array_equal(one.tiles, other.tiles)
    for field in ("prefix_ids", "question_ids", "seeds", "tile_keys"):
        assert getattr(one, field) == getattr(other, field)


def test_both_layouts_say_the_same(folder: Path, saved: Path) -> None:
    one, other = (payload(load(path), image(40, 90), "What?") for path in (folder, saved))
    assert_same(one, other)


def test_seeds_depend_on_the_questions_seed_the_item_and_the_words_only(
    folder: Path, preparer: Preparer
) -> None:
    seeds = payload(preparer, image(40, 30), "One?", "Two?").seeds
    assert payload(preparer, image(80, 30, seed=5), "Two?", "One?").seeds == seeds[::-1]
    assert payload(load(folder, "low"), image(40, 30), "One?").seeds == seeds[:1]
    others = [
        *payload(preparer, image(40, 30, key="b.png"), "One?", "Two?").seeds,
        *preparer.prepare(image(40, 30), ask("One?", "Two?", seed=1)).payload.seeds,
    ]
    assert len({*seeds, *others}) == 6
    assert all(0 <= seed < 1 << 63 for seed in [*seeds, *others])
    assert seeds == [
        3033386156278037642,
        7827745155218110806,
    ]  # the same in every version: an answer must not change under an upgrade


def test_an_item_whose_name_is_not_unicode_has_a_seed(preparer: Preparer) -> None:
    assert (
        payload(preparer, image(8, 8, key="caf\udce9.png")).seeds
        != payload(preparer, image(8, 8, key="cafe.png")).seeds
    )


def test_threads_get_what_one_thread_gets(folder: Path) -> None:
    sizes = [(20 + 13 * number, 200 - 17 * number) for number in range(8)]
    jobs = [
        (image(*size, seed=number), f"Question {number % 3}?", "And?")
        for number, size in enumerate(sizes)
    ] * 4
    jobs += [(clip(1 + number % 4), "What happens?") for number in range(8)]
    alone = [payload(load(folder), *job) for job in jobs]
    shared, start = load(folder), threading.Barrier(8)

    def work(number: int) -> list[Payload]:
        start.wait()
        return [payload(shared, *job) for job in jobs[number:] + jobs[:number]]

    with ThreadPoolExecutor(8) as pool:
        for number, made in enumerate(pool.map(work, range(8))):
            for expected, found in zip(alone[number:] + alone[:number], made, strict=True):
                assert_same(found, expected)


@pytest.mark.parametrize("detail", ["full", "native", "low"])
def test_a_preparer_goes_to_another_process_and_prepares_the_same(
    folder: Path, detail: Detail
) -> None:
    here = load(folder, detail)
    payload(here, image(64, 48), "Before?")  # what it remembers stays here
    there = pickle.loads(pickle.dumps(here))
    for conversation in (image(64, 48), clip(3), Conversation()):
        assert_same(payload(there, conversation, "Why?"), payload(here, conversation, "Why?"))
    assert (there.context, there.detail) == (here.context, here.detail)


def test_tokens_that_do_not_match_the_tiles_are_an_error(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    preparer = load(folder)
    write = preparer.writer.image_prefix
    monkeypatch.setattr(preparer.writer, "image_prefix", lambda rows, cols: write(1, 2))
    with pytest.raises(PrepareError, match="12 image tokens for 13 tiles"):
        preparer.prepare(image(64, 48), ask("?"))


def test_a_prompt_that_leaves_no_room_for_an_answer_is_an_error(
    folder: Path, tmp_path: Path, preparer: Preparer
) -> None:
    tokens = payload(preparer, image(64, 48)).prompt_tokens
    text = json.loads((folder / "config.json").read_text())["text_config"]
    roomy = load(
        edited(
            folder,
            tmp_path,
            "config.json",
            text_config=text | {"max_position_embeddings": tokens + 1},
        )
    )
    assert payload(roomy, image(64, 48)).prompt_tokens == tokens
    with pytest.raises(
        PrepareError, match=f"has {tokens + 1} tokens, the model's context is {tokens + 1}$"
    ):
        roomy.prepare(image(64, 48), ask("?", "??"))


def test_a_clip_beyond_the_context_names_the_way_out(preparer: Preparer) -> None:
    with pytest.raises(
        PrepareError,
        match=r"tokens, the model's context is 2048; use fewer than 100 frames \(--num-frames\)",
    ):
        preparer.prepare(clip(100, 8, 8), ask("?"))


def test_a_checkpoint_that_does_not_state_its_context_has_that_of_transformers_llama(
    folder: Path, tmp_path: Path
) -> None:
    text = json.loads((folder / "config.json").read_text())["text_config"]
    del text["max_position_embeddings"]
    assert load(edited(folder, tmp_path, "config.json", text_config=text)).context == 2048


@pytest.mark.parametrize(
    ("conversation", "questions", "message"),
    [
        (image(8, 8), [], "no question"),
        (image(8, 8), ["what is <image>?"], "<image>"),
        (image(8, 8), ["fine", "\ud800"], "not valid text"),
        (Conversation.about("image", Pixels([])), ["?"], "no pixels"),
        (Conversation.about("image", Pixels([np.zeros((4, 4), np.uint8)])), ["?"], r"\(4, 4\)"),
        (
            Conversation.about("image", Pixels([np.zeros((4, 4, 4), np.uint8)])),
            ["?"],
            r"\(4, 4, 4\)",
        ),
        (
            Conversation.about("image", Pixels([np.zeros((0, 4, 3), np.uint8)])),
            ["?"],
            r"\(0, 4, 3\)",
        ),
        (Conversation.about("image", Pixels([np.zeros((4, 4, 3), np.float32)])), ["?"], "float32"),
        (
            Conversation.about("clip", Pixels([noise(4, 4)] * 2, (0.0,), 1.0)),
            ["?"],
            "2 frames and 1 times",
        ),
    ],
)
def test_what_cannot_be_prepared_is_that_items_error(
    preparer: Preparer, conversation: Conversation, questions: list[str], message: str
) -> None:
    with pytest.raises(PrepareError, match=message):
        preparer.prepare(conversation, ask(*questions))


def test_more_tiles_than_the_vocabulary_has_positions_for(folder: Path, tmp_path: Path) -> None:
    """Their names are ordinary text then, as the processor writes them."""
    preparer = load(
        edited(folder, tmp_path, "preprocessor_config.json", size={"longest_edge": 7 * TILE})
    )
    request = preparer.prepare(image(100, 100), ask("?"))
    assert request.tiles == 50
    text = preparer.writer.tokenizer.decode(request.payload.prefix_ids, skip_special_tokens=False)
    assert "<row_6_col_6>" in text
    assert "<row_7_col_7><image>" in text


@pytest.mark.parametrize(
    "changes",
    [
        {"size": {"longest_edge": 3 * TILE}},
        {"do_image_splitting": False},
        {"resample": 3},
        {"do_resize": False},
        {"do_resize": False, "resample": 2},
    ],
    ids=str,
)
def test_the_processors_settings_are_honoured(
    folder: Path, tmp_path: Path, changes: dict[str, Any]
) -> None:
    preparer = load(edited(folder, tmp_path, "preprocessor_config.json", **changes))
    request = preparer.prepare(image(70, 40), ask("?"))
    assert_consistent(request, preparer)
    assert np.array_equal(request.payload.tiles, reference_tiles(noise(70, 40), **changes))


@pytest.mark.parametrize("frame_edge", [TILE, 2 * TILE])
def test_the_video_size_is_the_sampling_settings_or_the_video_processors(
    folder: Path, saved: Path, tmp_path: Path, frame_edge: int
) -> None:
    (tmp_path / "hub").mkdir(), (tmp_path / "saved").mkdir()
    sampling = {"fps": 1, "max_frames": 64, "video_size": {"longest_edge": frame_edge}}
    clips = json.loads((saved / "processor_config.json").read_text())["video_processor"] | {
        "size": {"longest_edge": frame_edge}
    }
    del clips["video_sampling"]
    conversation = clip(2)
    expected = [
        reference_tiles(frame, size={"longest_edge": frame_edge}, do_image_splitting=False)
        for frame in pixels_of(conversation).arrays()
    ]
    for path in (
        edited(folder, tmp_path / "hub", "preprocessor_config.json", video_sampling=sampling),
        edited(saved, tmp_path / "saved", "processor_config.json", video_processor=clips),
    ):
        assert np.array_equal(payload(load(path), conversation).tiles, np.concatenate(expected))


def test_a_checkpoint_that_says_nothing_about_clips_still_takes_pictures(
    saved: Path, tmp_path: Path
) -> None:
    preparer = load(edited(saved, tmp_path, "processor_config.json", video_processor=None))
    assert preparer.prepare(image(64, 48), ask("?")).tiles == 13
    with pytest.raises(PrepareError, match="takes pictures, no video"):
        preparer.prepare(clip(1), ask("?"))


@pytest.mark.parametrize(
    ("file", "changes", "message"),
    [
        (
            "preprocessor_config.json",
            {"size": {"height": 5, "width": 5}},
            "size has no longest_edge",
        ),
        ("preprocessor_config.json", {"size": 512}, "size has no longest_edge"),
        ("preprocessor_config.json", {"size": {"longest_edge": 0}}, "size has no longest_edge"),
        (
            "preprocessor_config.json",
            {"max_image_size": {"longest_edge": "x"}},
            "max_image_size has no longest_edge",
        ),
        (
            "preprocessor_config.json",
            {"max_image_size": {"longest_edge": 48}},
            "tiles of 48 pixels, the vision encoder takes 32",
        ),
        ("preprocessor_config.json", {"resample": 17}, "resample 17"),
        ("preprocessor_config.json", {"resample": "lanczos"}, "resample 'lanczos'"),
        (
            "preprocessor_config.json",
            {"video_sampling": {"video_size": 512}},
            "video_sampling.video_size has no longest_edge",
        ),
        ("config.json", {"vision_config": {}}, "the vision encoder takes 224"),
        ("config.json", {"vision_config": {"patch_size": "8"}}, "says '8' for patch_size"),
        ("config.json", {"scale_factor": 0}, "says 0 for scale_factor"),
        (
            "config.json",
            {"model_type": "idefics2"},
            r"neither a SmolVLM2 nor an Idefics3 checkpoint \(its type is idefics2\)",
        ),
        ("processor_config.json", {"image_seq_len": 64}, "64 image tokens a tile"),
    ],
)
def test_checkpoints_that_cannot_be_used(
    folder: Path, tmp_path: Path, file: str, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(ModelLoadError, match=message) as caught:
        load(edited(folder, tmp_path, file, **changes))
    assert "\n" not in str(caught.value)


def test_answers_are_decoded(preparer: Preparer) -> None:
    ids = build_tokenizer().encode(" A cat.<end_of_utterance>").ids
    assert preparer.decode(ids) == " A cat."
    assert preparer.token_text(ids[-1]) == "<end_of_utterance>"


def test_preparing_loads_neither_torch_nor_transformers() -> None:
    code = (
        "import sys, vlmbatch.prepare; "
        "print([name for name in ('torch', 'transformers') if name in sys.modules])"
    )
    assert (
        subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, check=True
        ).stdout.strip()
        == "[]"
    )
