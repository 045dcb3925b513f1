"""The demo model's training sees what its engine sees, and goes on where it was stopped."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.checkpoints import build_tokenizer, write_tiny_checkpoint
from tests.engine.reference import run_all
from training import scenes
from training.checkpoint import PATCH, TILE
from training.examples import IGNORED, ExampleMaker, collate
from training.network import TOKEN_ROWS, Trainee
from training.optimizer import MuonWithAdamW, Schedule
from vlmbatch.checkpoint import find_checkpoint
from vlmbatch.core import Conversation, Pixels, Question
from vlmbatch.engine import open_engine
from vlmbatch.job import EngineOptions

ROOT = Path(__file__).parents[2]
PATCHES = TILE // PATCH
CHARACTERS = len(scenes.CHARACTERS)


@pytest.fixture(scope="module")
def maker() -> ExampleMaker:
    return ExampleMaker(find_checkpoint("demo"))


def test_packed_examples_are_answered_as_the_engine_answers(maker: ExampleMaker) -> None:
    rng = np.random.default_rng(11)
    drawn = [scenes.random_scene(rng, longest=(64, 400), reading=0.5) for _ in range(10)]
    asked = [
        [
            (scenes.CAPTION_PROMPTS[0], scene.caption),
            *scene.questions[:3],
            (scenes.OCR_PROMPTS[0], "XYZ"),
        ]
        for scene in drawn
    ]
    examples = []
    for scene, questions in zip(drawn, asked, strict=True):
        packed = maker.image(scene, rng, maker.full)
        packed.asked[:] = [(maker.prompt.image_question(q), maker._answer(a)) for q, a in questions]
        packed.kinds[:] = ["any"] * len(questions)
        examples.append(packed)
    batch, spans = collate(examples)
    with torch.no_grad():
        logits, labels, _ = Trainee(find_checkpoint("demo").folder)(batch, torch.float32)
    hit = torch.zeros(batch["labels"].shape, dtype=torch.bool)
    hit[batch["labels"] != IGNORED] = logits.argmax(-1) == labels
    foretold = [bool(hit[row, start:end].all()) for row, start, end, _ in spans]

    engine = open_engine(EngineOptions(model="demo", dtype="float32", device="cpu"))
    requests = [
        engine.prepare(Conversation.about("image", Pixels([s.pixels])), [Question(q) for q, _ in a])
        for s, a in zip(drawn, asked, strict=True)
    ]
    found = run_all(engine, requests)
    given = [
        found[row, number].text == answer
        for row, questions in enumerate(asked)
        for number, (_, answer) in enumerate(questions)
    ]
    assert foretold == given
    assert any(given)
    assert not all(given)


def test_patches_are_labelled_with_what_they_show_and_its_place(maker: ExampleMaker) -> None:
    scene = scenes.text_scene("AB", (192, 192), fill=0.9)
    example = maker.image(scene, np.random.default_rng(0), maker.full)
    left, right = (
        example.patches[-1, :, 2].reshape(PATCHES, PATCHES),
        example.patches[-1, :, 3].reshape(PATCHES, PATCHES),
    )
    first, second = (
        1 + 0 * CHARACTERS + 0,
        1 + 1 * CHARACTERS + 1,
    )  # A in the first place, B in the second
    assert set(np.unique(left)) == set(np.unique(right)) == {0, first, second}
    assert np.nonzero(left == first)[1].max() <= np.nonzero(left == second)[1].min()
    # In the tile at the upper right there is B alone, and it comes first.
    assert set(np.unique(example.patches[1, :, 2])) <= {0, 1 + 1, second - CHARACTERS}
    shapes = [scenes.Shape("circle", "red", 50, 50, 30), scenes.Shape("star", "white", 150, 50, 30)]
    example = maker.image(
        scenes.shape_scene(shapes, "to the left of", (200, 100), (75, 75, 75)),
        np.random.default_rng(0),
        maker.low,
    )
    assert set(np.unique(example.patches[0, :, 0])) == {0, 1, 1 + len(scenes.SHAPES) + 3}


def test_training_sees_more_long_words_and_rows_of_three_than_there_are() -> None:
    def shares(hard: float) -> tuple[float, float]:
        rng = np.random.default_rng(5)
        words = [
            len(scenes.random_scene(rng, longest=(128, 140), reading=1.0, hard=hard).text)
            for _ in range(200)
        ]
        rows = [
            len(scenes.random_scene(rng, longest=(64, 70), reading=0.0, hard=hard).things) - 1
            for _ in range(200)
        ]
        return float(np.mean(np.array(words) > 4)), float(np.mean(np.array(rows) == 3))

    (words, rows), (more_words, more_rows) = shares(0.0), shares(1.0)
    assert more_words > 1.3 * words
    assert more_rows > 1.3 * rows


def test_who_stands_where_is_always_asked(maker: ExampleMaker) -> None:
    rng = np.random.default_rng(0)
    for number in range(20):
        scene = scenes.random_scene(rng, longest=(64, 96), reading=0.0)
        kinds = maker.image(scene, rng, maker.low).kinds
        assert ("relation" in kinds) == (len(scene.things) > 2), number


def test_a_page_is_not_asked_about_as_a_whole(maker: ExampleMaker) -> None:
    example = maker.image(
        scenes.page_scene(["NO", "12"], (1, 2), (400, 190)), np.random.default_rng(0), maker.full
    )
    assert (example.patches[-1] == IGNORED).all()
    assert (example.patches[:-1] > 0).any()


def test_the_learning_rate_rises_twice_and_falls_once() -> None:
    schedule = Schedule(vision=1000, tiny=400, mixture=600, warmup=100)
    assert [schedule(step) for step in (0, 99, 500, 999)] == [0.02, 2.0, 2.0, 2.0]
    assert schedule(1000) == 0.01
    assert schedule(1100) == schedule(1700) == 1.0
    assert schedule(1700) > schedule(1850) > schedule(1990) > 0


def test_both_optimizers_go_on_from_their_state() -> None:
    def made() -> tuple[list[torch.Tensor], MuonWithAdamW]:
        torch.manual_seed(0)
        weights = [torch.nn.Parameter(torch.randn(8, 4)), torch.nn.Parameter(torch.randn(8))]
        return weights, MuonWithAdamW(weights[:1], weights[1:], lr=0.1)

    def step(weights: list[torch.Tensor], optimizer: MuonWithAdamW) -> None:
        optimizer.zero_grad()
        (weights[0].sum(dim=1) * weights[1]).square().sum().backward()
        optimizer.step()

    whole, optimizer = made()
    for _ in range(4):
        step(whole, optimizer)
    parts, optimizer = made()
    for _ in range(2):
        step(parts, optimizer)
    again, other = made()
    other.load_state_dict(optimizer.state_dict())
    assert (
        other.param_groups[0] is other.muon.param_groups[0]
    )  # a schedule that sets rates reaches both
    with torch.no_grad():
        for weight, trained in zip(again, parts, strict=True):
            weight.copy_(trained)
    for _ in range(2):
        step(again, other)
    assert all(torch.equal(a, b) for a, b in zip(whole, again, strict=True))


def test_a_start_from_another_vocabulary_leaves_each_token_its_rows(tmp_path: Path) -> None:
    letters, words = build_tokenizer((), 0), build_tokenizer(["\n\n", "the", "the"], 3)
    assert words.get_vocab_size() == letters.get_vocab_size() + 3
    start = write_tiny_checkpoint(tmp_path / "start", tokenizer=letters)
    model = Trainee(write_tiny_checkpoint(tmp_path / "new", seed=1, tokenizer=words))
    drawn = {name: weight.detach().clone() for name, weight in model.named().items()}
    model.start_from(start)
    earlier = Trainee(start).named()
    for name, weight in model.named().items():
        if name not in TOKEN_ROWS:
            assert torch.equal(weight, earlier[name])
            continue
        for number, row in enumerate(weight):
            before = letters.token_to_id(words.id_to_token(number))
            if before is None:
                spelled = letters.encode(words.decode([number])).ids
                assert len(spelled) > 1
                mean = earlier[name][spelled].mean(0)
                assert torch.allclose(row, mean + TOKEN_ROWS[name] * drawn[name][number])
            else:
                assert torch.equal(row, earlier[name][before])


@pytest.mark.slow
def test_a_stopped_training_goes_on_and_is_exported(tmp_path: Path) -> None:
    folder, out = tmp_path / "training", tmp_path / "out"
    command = [sys.executable, "-m", "training.train_demo", str(folder)]
    sizes = [
        "--vision-steps",
        "3",
        "--tiny-steps",
        "3",
        "--mixture-steps",
        "20",
        "--batch-size",
        "2",
        "--tiles",
        "6",
        "--save-every",
        "2",
        "--eval-every",
        "1000",
    ]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    with subprocess.Popen([*command, *sizes], cwd=ROOT, env=environment) as process:
        while not list(folder.glob("checkpoints/checkpoint-4")) and process.poll() is None:
            time.sleep(0.05)
        process.send_signal(signal.SIGTERM)
        assert process.wait(120) == 130
    begun = sorted(
        int(path.name.split("-")[1]) for path in folder.glob("checkpoints/checkpoint-*")
    )[-1]
    assert 4 <= begun < 26
    subprocess.run([*command, *sizes], cwd=ROOT, env=environment, check=True)
    assert (
        json.loads((folder / "checkpoints/checkpoint-26/trainer_state.json").read_text())[
            "global_step"
        ]
        == 26
    )
    assert "eval_answer_accuracy" in (folder / "training.jsonl").read_text()
    subprocess.run([*command, "--export", str(out)], cwd=ROOT, check=True)
    trained = Trainee(find_checkpoint(str(out)).folder)
    untrained = Trainee(folder / "untrained")
    assert not torch.equal(trained.named()["lm_head.weight"], untrained.named()["lm_head.weight"])
