"""Batches of a training have the pixels and words of the engine's requests."""

from __future__ import annotations

import dataclasses
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from PIL import Image

from tests.checkpoints import write_tiny_checkpoint
from tests.engine.reference import Reference
from tests.media import number_of, picture, write_picture, write_video
from vlmbatch.checkpoint import find_checkpoint
from vlmbatch.core import Conversation, Pixels, Question, Request
from vlmbatch.engine.torch.weights import pixel_normalization
from vlmbatch.errors import JobError, PrepareError
from vlmbatch.finetune.examples import IGNORED, ExampleDataset, ExampleMaker, PadRight
from vlmbatch.finetune.rows import TrainingRow
from vlmbatch.finetune.trainer import AnswerTrainer, pixel_values, score_rows, sum_scores
from vlmbatch.job import Job
from vlmbatch.prepare import Preparer

PAD = 2
CLIPS = Job(inputs=("x",), media="video", per="clip", fps=2.0)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("media")
    write_picture(folder / "small.png", 30, 20)
    write_picture(folder / "wide.png", 200, 50, seed=1)
    write_video(folder / "v.mp4", 30, fps=10)
    return folder


@pytest.fixture(scope="module")
def maker(tiny: Path) -> ExampleMaker:
    return ExampleMaker(find_checkpoint(str(tiny)), "full", CLIPS, 10**8)


def rows_of(folder: Path) -> list[TrainingRow]:
    return [
        TrainingRow("line 1", "image", str(folder / "small.png"), "What?", "A cat."),
        TrainingRow(
            "line 2",
            "image",
            str(folder / "wide.png"),
            "Describe this image at length, please.",
            "Nothing but noise, in colours that nobody chose.",
        ),
        TrainingRow("line 3", "clip", str(folder / "v.mp4"), "What happens?", "Numbers go by."),
        TrainingRow("line 4", "frame", str(folder / "v.mp4"), "Which number?", "Fourteen", 1.4),
    ]


def request_of(row: TrainingRow, maker: ExampleMaker) -> Request:
    return Preparer.from_checkpoint(maker.checkpoint).prepare(
        Conversation.about(row.media, maker.load(row), "x"), [Question(row.prompt)]
    )


def test_a_batch_holds_the_engines_pixels_and_words_and_the_answer(
    folder: Path, maker: ExampleMaker
) -> None:
    rows = rows_of(folder)
    batch = PadRight(PAD)([maker.make(row) for row in rows])
    assert len({int(count) for count in batch["n_tiles"]}) > 2
    tokenizer = maker.preparer.writer.tokenizer
    for number, row in enumerate(rows):
        payload = request_of(row, maker).payload
        prompt = [*payload.prefix_ids, *payload.question_ids[0]]
        answer = tokenizer.encode(f" {row.answer}<end_of_utterance>", add_special_tokens=False).ids
        length = len(prompt) + len(answer)
        assert batch["input_ids"][number, :length].tolist() == prompt + answer
        assert batch["attention_mask"][number].tolist() == [1] * length + [0] * (
            batch["input_ids"].shape[1] - length
        )
        assert set(batch["input_ids"][number, length:].tolist()) <= {PAD}
        assert batch["labels"][number].tolist() == [IGNORED] * len(prompt) + answer + [IGNORED] * (
            batch["input_ids"].shape[1] - length
        )
        assert np.array_equal(batch["tiles"][number, : len(payload.tiles)].numpy(), payload.tiles)
        assert not batch["tiles"][number, len(payload.tiles) :].any()


def test_prompt_and_answer_are_what_the_chat_template_writes(
    folder: Path, maker: ExampleMaker
) -> None:
    import jinja2

    row = rows_of(folder)[0]
    content = [{"type": "image"}, {"type": "text", "text": row.prompt}]
    messages = [
        {"role": "user", "content": content},
        {"role": "assistant", "content": [{"type": "text", "text": row.answer}]},
    ]
    written = jinja2.Template(
        maker.checkpoint.chat_template(), trim_blocks=True, lstrip_blocks=True
    ).render(messages=messages)
    words = maker.preparer.writer.tokenizer.decode(
        maker.make(row).input_ids, skip_special_tokens=False
    )
    before, _, after = words.partition("<row_1_col_1>")
    assert written.startswith(before.removesuffix("<fake_token_around_image>") + "<image>")
    assert written.removesuffix("\n").endswith(after.rpartition("<fake_token_around_image>")[2])
    assert after.endswith(f"Assistant: {row.answer}<end_of_utterance>")


def test_pixel_values_are_what_the_model_is_given_when_it_answers(
    folder: Path, maker: ExampleMaker
) -> None:
    rows = rows_of(folder)
    batch = PadRight(PAD)([maker.make(row) for row in rows])
    values = pixel_values(batch["tiles"], batch["n_tiles"], *pixel_normalization(maker.checkpoint))
    for number, row in enumerate(rows):
        tiles = torch.from_numpy(request_of(row, maker).payload.tiles)
        wanted = (tiles.float() / 255 - 0.5) / 0.5
        torch.testing.assert_close(values[number, : len(tiles)], wanted, rtol=0, atol=1e-6)
        assert not values[number, len(tiles) :].any()


def test_a_tile_of_zeros_is_not_taken_for_padding(folder: Path, tiny: Path) -> None:
    tiles = torch.zeros(1, 2, 3, 32, 32, dtype=torch.uint8)
    values = pixel_values(tiles, torch.tensor([1]), torch.ones(3), torch.zeros(3))
    assert (values[0, 0] != 0).all()
    assert values[0, 0].abs().max() < 1e-20
    assert not values[0, 1].any()
    assert (values.to(torch.bfloat16)[0, 0] != 0).all()


class Forward(AnswerTrainer):
    """The trainer's view of batches, without a training."""

    def __init__(self, normalization: tuple[torch.Tensor, torch.Tensor]) -> None:
        self.normalization = normalization


def test_the_best_guesses_that_the_loss_sees_are_what_generate_says(
    folder: Path, maker: ExampleMaker
) -> None:
    """Trained on the model's own greedy answers, every token's best guess is the label: nothing is
    shifted, padded or masked wrongly.
    """
    reference = Reference(maker.checkpoint.folder)
    model = transformers.AutoModelForImageTextToText.from_pretrained(
        maker.checkpoint.folder, dtype=torch.float32
    ).eval()
    trainer = Forward(pixel_normalization(maker.checkpoint))
    examples = []
    for row in rows_of(folder):
        request = request_of(row, maker)
        about = Conversation.about(row.media, maker.load(row), "x")
        question = Question(row.prompt, max_new_tokens=7 + len(row.answer))
        answer = reference.answer(about, [question])[0].token_ids
        prompt = [*request.payload.prefix_ids, *request.payload.question_ids[0]]
        examples.append(
            dataclasses.replace(
                maker.make(row), input_ids=[*prompt, *answer], answer_start=len(prompt)
            )
        )
    batch = PadRight(PAD)(examples)
    with torch.inference_mode():
        together = model(**trainer.model_inputs(batch))
        alone = [model(**trainer.model_inputs(PadRight(PAD)([example]))) for example in examples]
    scores = score_rows(together.logits, batch["labels"])
    assert (
        scores[:, 2].tolist()
        == scores[:, 1].tolist()
        == [float(len(e.input_ids) - e.answer_start) for e in examples]
    )
    assert scores[:, 3].tolist() == [1.0] * len(examples)
    # The loss is the mean over the answers' tokens, and a row's share does not depend on what it is
    # padded for.
    assert float(together.loss) == pytest.approx(
        float(scores[:, 0].sum() / scores[:, 1].sum()), rel=1e-5
    )
    for number, output in enumerate(alone):
        assert float(output.loss) == pytest.approx(
            float(scores[number, 0] / scores[number, 1]), rel=1e-4
        )


def test_scores_count_tokens_and_whole_answers() -> None:
    labels = torch.tensor([[IGNORED, IGNORED, 1, 2], [IGNORED, IGNORED, 1, IGNORED]])
    logits = torch.full((2, 3, 4), 0.0)
    for row, place, guess in ((0, 0, 1), (0, 1, 3), (1, 0, 1)):
        logits[row, place, guess] = 5.0
    scores = score_rows(logits, labels)
    assert scores[:, 1:].tolist() == [[2.0, 1.0, 0.0], [1.0, 1.0, 1.0]]
    found = sum_scores(type("Prediction", (), {"predictions": scores.numpy()})())  # type: ignore[arg-type]
    assert (found["token_accuracy"], found["answer_accuracy"], found["answers"]) == (
        pytest.approx(2 / 3),
        0.5,
        2,
    )


def test_frames_and_clips_are_those_that_the_row_names(folder: Path, maker: ExampleMaker) -> None:
    frame, clip = rows_of(folder)[3], rows_of(folder)[2]
    assert [number_of(pixels) for pixels in maker.load(frame).frames] == [14]
    assert len(maker.load(clip).frames) == 6  # three seconds at two a second
    window = dataclasses.replace(
        maker, video_job=dataclasses.replace(CLIPS, per="window", window=1.0)
    )
    second = window.load(dataclasses.replace(clip, time_seconds=1.0))
    assert [number_of(pixels) for pixels in second.frames] == [10, 15]


def test_a_row_longer_than_the_context_is_bad(folder: Path, tmp_path: Path) -> None:
    short = write_tiny_checkpoint(tmp_path / "short", context=200)
    maker = ExampleMaker(find_checkpoint(str(short)), "low", CLIPS, 10**8)
    row = rows_of(folder)[0]
    length = len(maker.make(row).input_ids)
    fits = dataclasses.replace(row, answer=row.answer + "x" * (200 - length))
    assert len(maker.make(fits).input_ids) == 200
    with pytest.raises(PrepareError, match="the model's context is 200"):
        maker.make(dataclasses.replace(fits, answer=fits.answer + "x"))
    with pytest.raises(PrepareError, match="stands for pixels"):
        maker.make(dataclasses.replace(row, answer="an <image>"))


def test_rows_go_to_other_processes_and_say_when_a_file_has_changed(
    tmp_path: Path, maker: ExampleMaker
) -> None:
    Image.fromarray(picture()).save(tmp_path / "a.png")
    rows = ExampleDataset(
        [TrainingRow("line 1", "image", str(tmp_path / "a.png"), "What?", "A.")], maker
    )
    there = pickle.loads(pickle.dumps(rows))
    assert there[0].input_ids == rows[0].input_ids
    (tmp_path / "a.png").unlink()
    with pytest.raises(JobError, match=r"line 1: .*a\.png has changed since it was checked"):
        there[0]


def test_pixels_that_are_loaded_already_are_used(folder: Path, maker: ExampleMaker) -> None:
    row = rows_of(folder)[0]
    example = maker.make(row, Pixels([np.zeros((20, 30, 3), np.uint8)]))
    assert not example.tiles.any()
    assert maker.make(row).tiles.any()
