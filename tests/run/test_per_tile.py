"""``--per tile``: one page, a question about each of its tiles, one row."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.engine.reference import run_all
from tests.media import picture, write_picture
from vlmbatch.checkpoint import find_checkpoint
from vlmbatch.core import Completion, Conversation, Pixels, Question, Request, Timing
from vlmbatch.engine import open_engine
from vlmbatch.engine.options import make_question
from vlmbatch.engine.scripted import ScriptedEngine
from vlmbatch.engine.torch.engine import TorchEngine
from vlmbatch.errors import GenerateError, JobError
from vlmbatch.job import Job
from vlmbatch.prepare import Preparer
from vlmbatch.run.pipeline import Run
from vlmbatch.run.task import join_completions
from vlmbatch.write import read_records

READ = [Question("Read.")]


def job(tmp_path: Path, model: Path, **values: Any) -> Job:
    settings = {
        "inputs": [str(tmp_path / "pages")],
        "output": str(tmp_path / "out.jsonl"),
        "model": str(model),
        "task": "ocr",
        "per": "tile",
    }
    return Job.from_dict({**settings, "max_new_tokens": 4, **values})


def test_tiles_are_those_of_the_whole_picture_in_reading_order(tiny: Path) -> None:
    preparer = Preparer.from_checkpoint(find_checkpoint(str(tiny)))
    page = Conversation.about("image", Pixels((picture(150, 90),)), "page.png")
    whole = preparer.prepare(page, READ).payload
    parts = [preparer.prepare(part, READ).payload for part in preparer.cut(page)]
    assert len(parts) == len(whole.tiles) - 1 > 1
    assert np.array_equal(np.concatenate([part.tiles for part in parts]), whole.tiles[:-1])
    low = Preparer.from_checkpoint(find_checkpoint(str(tiny)), "low")
    alone = low.prepare(page, READ).payload
    assert all(
        (part.prefix_ids, part.question_ids) == (alone.prefix_ids, alone.question_ids)
        for part in parts
    )
    assert len({seed for part in parts for seed in part.seeds}) == len(parts)
    (only,) = low.cut(page)
    assert np.array_equal(low.prepare(only, READ).payload.tiles, alone.tiles)


def test_empty_tiles_are_not_asked_about_unless_all_are(tiny: Path) -> None:
    preparer = Preparer.from_checkpoint(find_checkpoint(str(tiny)))
    paper = np.full((90, 150, 3), 250, np.uint8)
    paper[::7, ::7] -= 3
    assert len(preparer.cut(Conversation.about("image", Pixels((paper,))))) == 1
    paper[:10, :10] = 0
    corner = preparer.cut(Conversation.about("image", Pixels((paper,))))
    page = preparer.prepare(Conversation.about("image", Pixels((paper,))), READ)
    whole = page.payload.tiles[:-1]
    (tile,) = preparer.prepare(corner[0], READ).payload.tiles
    assert len(corner) == 1 < len(whole)
    assert (tile == 0).sum() == (whole == 0).sum() > 0


def test_a_row_has_the_answers_about_its_tiles_one_below_the_other(
    tmp_path: Path, tiny: Path
) -> None:
    for number in range(2):
        write_picture(tmp_path / "pages" / f"{number}.png", 150, 90, seed=number)
    (tmp_path / "pages" / "bad.png").write_text("no picture")
    asked = job(tmp_path, tiny)
    outcome = Run(asked).start()
    assert outcome.exit_code == 3, outcome.error
    found = list(read_records(tmp_path / "out.jsonl"))
    assert [(row["id"], row["status"], row["index"]) for row in found] == [
        ("0.png", "ok", 0),
        ("1.png", "ok", 1),
        ("bad.png", "error", 2),
    ]
    engine = open_engine(asked)
    assert isinstance(engine, TorchEngine)
    for number, row in enumerate(found[:2]):
        page = Conversation.about("image", Pixels((picture(150, 90, number),)), f"{number}.png")
        asks = [make_question(row["prompt"], asked)]
        requests = [engine.prepare(part, asks) for part in engine.cut(page)]
        texts = [completion.text or "" for completion in run_all(engine, requests).values()]
        assert row["text"] == "\n".join(text.strip() for text in texts if text.strip())
        assert row["tiles"] == len(texts)
        assert row["new_tokens"] == 4 * len(texts)
    engine.close()
    busy = outcome.summary["engine"]["busy_seconds"]
    assert sum(row["compute_seconds"] for row in found) == pytest.approx(busy, rel=0.05)
    assert outcome.summary["full_tiles"] == 0
    assert Run(asked).start().summary["kept"]["rows"] == 3


def completion(number: int, text: str | None, **values: Any) -> Completion:
    return Completion(Request(Conversation(), READ, None), 0, text, **values)


def test_figures_of_parts_are_joined() -> None:
    whole = join_completions(
        [
            completion(
                0,
                " one \n",
                new_tokens=3,
                mean_logprob=-1.0,
                finish_reason="stop",
                batch_size=2,
                timing=Timing(wait_seconds=2, decode_seconds=1, compute_seconds=0.25),
            ),
            completion(
                1,
                " ",
                new_tokens=1,
                mean_logprob=-3.0,
                finish_reason="length",
                batch_size=4,
                timing=Timing(wait_seconds=1, decode_seconds=2),
            ),
            completion(
                2,
                "two",
                new_tokens=0,
                finish_reason="stop",
                prompt_tokens=5,
                timing=Timing(wait_seconds=3, compute_seconds=0.5),
            ),
        ]
    )
    assert (
        whole.text,
        whole.new_tokens,
        whole.mean_logprob,
        whole.finish_reason,
        whole.batch_size,
        whole.prompt_tokens,
    ) == (
        "one\ntwo",
        4,
        -1.5,
        "length",
        4,
        5,
    )
    assert whole.timing == Timing(wait_seconds=1, decode_seconds=2, compute_seconds=0.75)


def test_a_part_without_an_answer_makes_the_whole_an_error() -> None:
    whole = join_completions(
        [completion(0, "one", finish_reason="stop"), completion(1, None, error=GenerateError("no"))]
    )
    assert (whole.text, whole.finish_reason) == (None, None)
    assert isinstance(whole.error, GenerateError)


def test_an_output_made_by_pages_is_not_continued_by_tiles(tmp_path: Path, tiny: Path) -> None:
    assert job(tmp_path, tiny).identity() != job(tmp_path, tiny, per="page").identity()
    assert job(tmp_path, tiny, per=None).identity() == job(tmp_path, tiny, per="page").identity()
    assert "per" not in job(tmp_path, tiny, per="page").identity()


def test_counts_that_the_engine_cannot_tell_stay_unknown() -> None:
    whole = join_completions(
        [completion(0, "a", prompt_tokens=None, new_tokens=None, batch_size=None)] * 2
    )
    assert (whole.text, whole.prompt_tokens, whole.new_tokens) == ("a\na", None, None)


def test_tiles_need_an_engine_that_cuts_pictures(tmp_path: Path, tiny: Path) -> None:
    write_picture(tmp_path / "pages" / "0.png")
    with pytest.raises(JobError, match="the engine scripted does not cut pictures"):
        Run(job(tmp_path, tiny), engine=ScriptedEngine())
