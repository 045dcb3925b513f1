"""The demo model sees: it answers right about what was drawn, and differently when the picture is
changed.
"""

from __future__ import annotations

import csv
import dataclasses
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image
from safetensors.torch import load_file

from tests.engine.reference import Reference, changed, run_all
from training import scenes
from vlmbatch.checkpoint import find_checkpoint
from vlmbatch.core import Conversation, Pixels, Question, Request
from vlmbatch.engine import Engine, open_engine
from vlmbatch.job import Detail, EngineOptions, Job
from vlmbatch.prepare import Preparer
from vlmbatch.prepare.prompt import PromptWriter
from vlmbatch.read.pictures.decode import load_image
from vlmbatch.run.pipeline import Run
from vlmbatch.tasks import DEFAULT_PROMPTS
from vlmbatch.write import read_records

ROOT = Path(__file__).parents[2]
SAMPLES = ROOT / "sample_data"
CAPTION = DEFAULT_PROMPTS["caption"]
READ = DEFAULT_PROMPTS["ocr"]

Ask = Callable[[Sequence[Request]], list[list[str]]]


class Preparing:
    """Prepares requests at a detail."""

    def __init__(self, detail: Detail = "full") -> None:
        self.preparer = Preparer.from_checkpoint(find_checkpoint("demo"), detail)

    def prepare(self, conversation: Conversation, texts: Sequence[str]) -> Request:
        return self.preparer.prepare(conversation, [Question(text) for text in texts])


@pytest.fixture(scope="module")
def preparer() -> Preparing:
    return Preparing()


@pytest.fixture(scope="module")
def engine() -> Engine:
    return open_engine(EngineOptions(model="demo", dtype="float32", device="cpu"))


@pytest.fixture(scope="module")
def ask(engine: Engine) -> Ask:
    def answer(requests: Sequence[Request]) -> list[list[str]]:
        found = run_all(engine, requests)
        return [
            [found[number, question].text or "" for question in range(len(request.questions))]
            for number, request in enumerate(requests)
        ]

    return answer


def picture(pixels: np.ndarray) -> Conversation:
    return Conversation.about("image", Pixels([np.ascontiguousarray(pixels)]))


def contents() -> dict[str, str]:
    with open(SAMPLES / "content.csv", newline="", encoding="utf-8") as file:
        return {row["file"]: row["content"] for row in csv.DictReader(file)}


def test_the_sample_pictures_are_answered_right(preparer: Preparing, ask: Ask) -> None:
    names = [name for name in contents() if name.startswith(("images/", "scans/"))]
    pictures = [
        Conversation.about("image", load_image(str(SAMPLES / name), 10**8)) for name in names
    ]
    requests = [
        preparer.prepare(p, [READ if name.startswith("scans/") else CAPTION])
        for name, p in zip(names, pictures, strict=True)
    ]
    found = dict(zip(names, (answers[0] for answers in ask(requests)), strict=True))
    assert found == {name: contents()[name] for name in names}


@pytest.mark.parametrize("detail", ["full", "native", "low"])
@pytest.mark.parametrize(("reading", "count"), [(0.0, 50), (1.0, 80)], ids=["shapes", "words"])
def test_unseen_scenes_are_answered_right_nine_times_in_ten(
    ask: Ask, detail: Detail, reading: float, count: int
) -> None:
    preparer = Preparing(detail)
    rng = np.random.default_rng(20_261_121)
    drawn = [scenes.random_scene(rng, longest=(64, 1600), reading=reading) for _ in range(count)]
    asked = [
        [
            (CAPTION, s.caption),
            (READ, s.text),
            *[s.questions[int(i)] for i in rng.permutation(len(s.questions))[:4]],
        ]
        for s in drawn
    ]
    pixels = [scenes.jpeg(s.pixels, int(rng.integers(60, 96))) for s in drawn]
    requests = [
        preparer.prepare(picture(p), [q for q, _ in a]) for p, a in zip(pixels, asked, strict=True)
    ]
    right = [
        found == wanted
        for answers, a in zip(ask(requests), asked, strict=True)
        for found, (_, wanted) in zip(answers, a, strict=True)
    ]
    assert np.mean(right) >= 0.9


def test_greedy_tokens_equal_transformers(preparer: Preparing, engine: Engine) -> None:
    rng = np.random.default_rng(3)
    asked = [
        (
            picture(scenes.random_scene(rng, longest=(64, 400)).pixels),
            [CAPTION, "How many shapes are there?"],
        )
        for _ in range(8)
    ]
    for count in (2, 5):
        clip = scenes.random_clip(rng, max_frames=count)
        pixels = Pixels(clip.frames, clip.times_seconds, clip.duration_seconds)
        asked.append((Conversation.about("clip", pixels), [DEFAULT_PROMPTS["clip"]]))
    found = run_all(engine, [preparer.prepare(about, texts) for about, texts in asked])
    reference = Reference(find_checkpoint("demo").folder)
    for number, (about, texts) in enumerate(asked):
        for question, answer in enumerate(reference.answer(about, [Question(t) for t in texts])):
            assert found[number, question].token_ids == answer.token_ids


def test_swapped_colours_a_mirror_and_a_turn_change_the_caption(
    preparer: Preparing, ask: Ask
) -> None:
    pixels = np.asarray(load_image(str(SAMPLES / "images/circle-and-square.png"), 10**8).frames[0])
    blue = np.abs(pixels.astype(int) - scenes.COLORS["blue"]).sum(-1) < 60
    pixels = np.where(blue[..., None], scenes.COLORS["red"][::-1], pixels).astype(
        np.uint8
    )  # the blue that red becomes when red and blue are swapped
    versions = [pixels, pixels[..., ::-1], pixels[:, ::-1], np.rot90(pixels, -1)]
    found = [
        answers[0]
        for answers in ask([preparer.prepare(picture(version), [CAPTION]) for version in versions])
    ]
    assert found == [
        "A red circle to the left of a blue square.",
        "A blue circle to the left of a red square.",
        "A blue square to the left of a red circle.",
        "A red circle above a blue square.",
    ]


def test_exif_orientation_is_applied(preparer: Preparing, ask: Ask, tmp_path: Path) -> None:
    pixels = np.asarray(load_image(str(SAMPLES / "images/circle-and-square.png"), 10**8).frames[0])
    exif = Image.Exif()
    exif[0x0112] = 6  # turn it clockwise to see it upright
    Image.fromarray(pixels).save(tmp_path / "turned.jpg", exif=exif, quality=95)
    request = preparer.prepare(
        Conversation.about("image", load_image(str(tmp_path / "turned.jpg"), 10**8)), [CAPTION]
    )
    assert ask([request]) == [["A red circle above a blue square."]]


def with_tiles(request: Request, tiles: np.ndarray) -> Request:
    return changed(request, dataclasses.replace(request.payload, tiles=tiles, tile_keys=()))


def test_tiles_in_the_wrong_order_change_the_answer(preparer: Preparing, ask: Ask) -> None:
    """The words of a page can be read in its tiles only, and their order is the tiles' order."""
    request = preparer.prepare(
        picture(
            scenes.page_scene(["BED", "40", "SUN", "9"], (2, 2), (384, 384), height=0.08).pixels
        ),
        [READ],
    )
    tiles = request.payload.tiles
    assert len(tiles) == 5
    shuffled = with_tiles(request, tiles[[1, 0, 3, 2, 4]])
    turned = with_tiles(request, tiles[[2, 3, 0, 1, 4]])
    assert ask([request, shuffled, turned]) == [
        ["BED 40 SUN 9"],
        ["40 BED 9 SUN"],
        ["SUN 9 BED 40"],
    ]


def test_a_dropped_tile_is_missed(preparer: Preparing, ask: Ask) -> None:
    request = preparer.prepare(
        picture(
            scenes.page_scene(["BED", "40", "SUN", "9"], (2, 2), (384, 384), height=0.08).pixels
        ),
        [READ],
    )
    tiles = request.payload.tiles.copy()
    tiles[2] = tiles[2, :, :1, :1]  # its background
    (found,) = ask([with_tiles(request, tiles)])
    assert "SUN" not in found[0]
    assert found[0].startswith("BED 40 ")


def test_frames_in_the_wrong_order_turn_the_direction(preparer: Preparing, ask: Ask) -> None:
    clip = scenes.moving_clip(
        "circle",
        "red",
        "right",
        (160, 120),
        [0, 1, 2, 3, 4],
        5,
        np.random.default_rng(1),
        (250, 250, 250),
        (0.0, 1.0),
    )
    forward = Pixels(clip.frames, clip.times_seconds, 5.0)
    backward = Pixels(clip.frames[::-1], clip.times_seconds, 5.0)
    question = "Which way does the circle move?"
    found = ask(
        [
            preparer.prepare(Conversation.about("clip", pixels), [question])
            for pixels in (forward, backward)
        ]
    )
    assert found == [["Right."], ["Left."]]


JOBS = [path for path in sorted((ROOT / "pipelines").glob("*.yaml")) if path.stem != "server"]


@pytest.mark.parametrize("path", JOBS, ids=lambda path: path.stem)
def test_the_ready_made_jobs_work_on_the_samples(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    values = yaml.safe_load(path.read_text())
    output = tmp_path / values["output"]
    outcome = Run(Job.from_dict({**values, "output": str(output)})).start()
    assert outcome.exit_code == 0
    assert outcome.summary["rows"] > 0
    found = {(row["id"], row["prompt"]): row["text"] for row in read_records(output)}
    if path.stem == "questions-vqa":
        assert found["circle-and-square.png", "What shape is blue?"] == "Square."
        assert len(found) == 9
        assert (
            found["circle-and-square.png", "What is to the right of the red circle?"]
            == "A blue square."
        )
        assert (
            found["stack-of-three.png", "What is directly above the red square?"]
            == "A purple triangle."
        )
    if path.stem == "scans-ocr":
        assert {f"scans/{name}": text for (name, _), text in found.items()} == {
            name: text for name, text in contents().items() if name.startswith("scans/")
        }
    if path.stem == "video-summary":
        assert set(found.values()) == {contents()["clips/ball.mp4"], contents()["clips/lift.mp4"]}


def test_readmes_first_command_answers(tmp_path: Path) -> None:
    command = [
        sys.executable,
        "-m",
        "vlmbatch",
        "caption",
        str(SAMPLES / "images"),
        "--model",
        "demo",
    ]
    result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    found = {
        f"images/{row['id']}": row["text"]
        for row in read_records(tmp_path / "images.caption.jsonl")
    }
    assert found == {name: text for name, text in contents().items() if name.startswith("images/")}


def test_two_ends_of_lines_are_one_token_before_an_overview() -> None:
    prompt = PromptWriter.from_checkpoint(find_checkpoint("demo"))
    (two,) = prompt.tokenizer.encode("\n\n").ids
    assert prompt.tokenizer.id_to_token(two) == "ĊĊ"  # in byte-level spelling, as published
    prefix = prompt.image_prefix(3, 4)  # a picture of 13 tiles
    assert prefix.count(two) == 1
    opening = [prompt.tokens.fake, prompt.tokens.global_image]
    after = prefix[prefix.index(two) + 1 :][: len(opening)]
    assert [prompt.tokenizer.id_to_token(number) for number in after] == opening
    assert two not in prompt.image_prefix(0, 0)


@pytest.mark.parametrize("name", ["model.text_model.embed_tokens.weight", "lm_head.weight"])
def test_two_ends_of_lines_mean_something_of_their_own(name: str) -> None:
    checkpoint = find_checkpoint("demo")
    (two,) = PromptWriter.from_checkpoint(checkpoint).tokenizer.encode("\n\n").ids
    rows = load_file(checkpoint.require("model.safetensors"))[name].float()
    assert (rows == rows[two]).all(1).nonzero().flatten().tolist() == [two]
    assert rows[two].norm() > 0.5 * rows.norm(dim=1).median()


def test_the_checkpoint_is_small_and_says_what_it_is() -> None:
    folder = find_checkpoint("demo").folder
    assert sum(path.stat().st_size for path in folder.iterdir()) < 8_000_000
    card = (folder / "README.md").read_text()
    for word in ("not", "A red circle to the left of a blue square.", "training"):
        assert word in card
