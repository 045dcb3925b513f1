"""``--skip-similar`` through the whole pipeline: whose answers a row gets, what a resumed run does,
and what happens to errors.
"""

from __future__ import annotations

import io
import json
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.media import HEIGHT, WIDTH, write_video
from vlmbatch.core import UInt8Array
from vlmbatch.engine.scripted import ScriptedEngine
from vlmbatch.errors import OutputError
from vlmbatch.job import Job
from vlmbatch.read.video.file import VideoFile
from vlmbatch.run.pipeline import Outcome, Run
from vlmbatch.run.reporter import Silent
from vlmbatch.write import read_records

SHOTS = [0, 0, 0, 1, 1, 2, 0, 0]
"""What the video shows in each of its seconds."""


def shot(number: int) -> UInt8Array:
    """A frame of one of three pictures, ten frames a second."""
    level = (40, 120, 220)[SHOTS[number // 10]]
    return np.full((HEIGHT, WIDTH, 3), level, np.uint8)


@pytest.fixture
def film(tmp_path: Path) -> Path:
    (tmp_path / "v").mkdir()
    write_video(tmp_path / "v" / "a.mp4", 80, draw=shot)
    return tmp_path / "v"


def job(folder: Path, **values: object) -> Job:
    return Job.from_dict(
        {
            "inputs": [str(folder)],
            "output": str(folder.parent / "out.jsonl"),
            "media": "video",
            "fps": 1,
            "skip_similar": True,
            **values,
        }
    )


def start(job: Job, engine: ScriptedEngine | None = None) -> tuple[Outcome, ScriptedEngine]:
    engine = engine or ScriptedEngine()
    return Run(job, engine=engine).start(), engine


def rows(job: Job) -> list[dict[str, Any]]:
    return list(read_records(Path(job.output_path)))


def second(row: dict[str, Any]) -> int:
    return int(float(row["id"].partition("#t=")[2]))


ORIGINALS = [None, 0, 0, None, 3, None, None, 6]
"""For each second the one that it takes its answers from."""


def check(found: list[dict[str, Any]]) -> None:
    """Every frame has its row once, in order, with the right answer."""
    assert [second(row) for row in found] == list(range(8))
    for row, original in zip(found, ORIGINALS, strict=True):
        assert row["similar_to"] == (None if original is None else f"a.mp4#t={original}.000")
        assert row["status"] == ("ok" if original is None else "similar")
        assert row["text"].startswith(
            f"a.mp4#t={second(row) if original is None else original}.000: "
        )


def test_a_frame_like_the_last_one_asked_about_gets_its_answer(film: Path) -> None:
    outcome, engine = start(job(film))
    found = rows(job(film))
    check(found)
    assert sorted(engine.prepared) == [f"a.mp4#t={number}.000" for number in (0, 3, 5, 6)]
    assert [row["time_seconds"] for row in found] == pytest.approx(range(8))
    assert [row["end_seconds"] for row in found] == pytest.approx(range(1, 9))
    assert {(row["width"], row["height"], row["engine"]) for row in found} == {
        (WIDTH, HEIGHT, "scripted")
    }
    assert [row["tiles"] for row in found] == [int(original is None) for original in ORIGINALS]
    assert (
        sum(
            row["compute_seconds"] + row["read_seconds"]
            for row in found
            if row["status"] == "similar"
        )
        == 0
    )
    assert outcome.exit_code == 0
    assert outcome.summary["status"] == {"ok": 4, "similar": 4}
    assert (outcome.summary["items"], outcome.summary["similar_items"]) == (8, 4)
    assert outcome.summary["finish_reason"] == {"stop": 4}


def test_without_it_every_frame_is_asked_about(film: Path) -> None:
    _, engine = start(job(film, skip_similar=None))
    assert len(engine.prepared) == 8


def test_answers_that_come_late_are_waited_for_and_stdout_stays_in_order(film: Path) -> None:
    gate, out = threading.Event(), io.StringIO()

    class OpenTheGate(Silent):
        def total(self, items: int) -> None:
            gate.set()  # the listing has ended, and nothing is answered yet

    engine = ScriptedEngine(gate=gate, batch_size=8)
    Run(job(film, output="-"), engine=engine, reporter=OpenTheGate(), stdout=out).start()
    check([json.loads(line) for line in out.getvalue().splitlines()])


def test_every_question_has_its_own_answer_to_copy(film: Path) -> None:
    asked = job(film, task="vqa", questions=["Who?", "Why?"])
    _, engine = start(asked)
    found = rows(asked)
    assert len(engine.answered) == 8
    assert [(second(row), row["prompt"]) for row in found] == [
        (number, question) for number in range(8) for question in ("Who?", "Why?")
    ]
    assert all(row["text"].endswith(row["prompt"]) for row in found)
    more = job(film, task="vqa", questions=["Who?", "Why?", "How?"])
    _, engine = start(more)
    assert {question for _, question in engine.answered} == {"How?"}
    assert len(engine.answered) == 4
    assert [row["status"] for row in rows(more)].count("similar") == 12


def test_a_frame_with_questions_of_its_own_is_asked_them(film: Path) -> None:
    questions = film.parent / "q.jsonl"
    questions.write_text('"Who?"\n{"id": "a.mp4#t=1.000", "question": "Why?"}\n')
    asked = job(film, task="vqa", questions_file=str(questions))
    _, engine = start(asked)
    assert [question for key, question in engine.answered if key == "a.mp4#t=1.000"] == [
        "Who?",
        "Why?",
    ]
    found = [(row["status"], row["similar_to"]) for row in rows(asked) if second(row) in (1, 2)]
    assert found[:2] == [("ok", None), ("ok", None)]
    assert len(rows(asked)) == 9


def test_frames_like_one_that_failed_are_errors_and_are_done_again_with_it(film: Path) -> None:
    outcome, _ = start(job(film), ScriptedEngine(fail=lambda key: key == "a.mp4#t=0.000"))
    found = rows(job(film))
    assert [row["status"] for row in found[:4]] == ["error", "error", "error", "ok"]
    assert [row["error_type"] for row in found[:3]] == ["GenerateError"] * 3
    assert [row["similar_to"] for row in found[:3]] == [None, "a.mp4#t=0.000", "a.mp4#t=0.000"]
    assert outcome.exit_code == 3
    outcome, engine = start(job(film))
    assert (engine.prepared, outcome.exit_code) == ([], 0)
    outcome, engine = start(job(film, retry_errors=True))
    assert (engine.prepared, outcome.exit_code) == (["a.mp4#t=0.000"], 0)
    check(rows(job(film)))


@pytest.mark.parametrize("name", ["out.jsonl", "out.parquet", "out.csv"])
def test_a_run_that_is_stopped_goes_on_with_answers_of_before(film: Path, name: str) -> None:
    """The first answer is there, what resembles it is not: it is copied from OUTPUT."""
    output = {"output": str(film.parent / name)}
    engine = ScriptedEngine(batch_size=1)
    stopped = Run(job(film, read_workers=1, limit=1, **output), engine=engine)
    stopped.start()
    assert len(rows(job(film, **output))) == 1
    _, engine = start(job(film, **output))
    assert len(engine.prepared) == 3
    check(rows(job(film, **output)))


@pytest.mark.parametrize("die_after", [0, 1, 2, 3])
def test_an_engine_that_dies_loses_and_doubles_nothing(film: Path, die_after: int) -> None:
    outcome, _ = start(job(film), ScriptedEngine(die_after=die_after, batch_size=2))
    assert outcome.exit_code == 1
    found = rows(job(film)) if Path(job(film).output_path).exists() else []
    assert len({row["id"] for row in found}) == len(found)
    _, again = start(job(film))
    assert len(again.prepared) == 4 - die_after
    check(rows(job(film)))


def test_another_threshold_is_another_output(film: Path) -> None:
    start(job(film))
    with pytest.raises(OutputError, match=r"skip_similar: 0.05 there, 0.2 here"):
        Run(job(film, skip_similar=0.2), engine=ScriptedEngine())


def test_a_finished_video_is_not_decoded_again(film: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for ways in (
        {},
        {"fps": None, "every": 7},
        {"fps": None, "num_frames": 5},
        {"fps": None, "at": [0.5, 3]},
        {"fps": None, "keyframes": True},
    ):
        asked = job(film, overwrite=True, **ways)
        start(asked)
        before = Path(asked.output_path).read_bytes()
        with monkeypatch.context() as patched:
            patched.setattr(VideoFile, "frames", lambda *args: pytest.fail("it is decoded"))
            patched.setattr(VideoFile, "key_frames", lambda *args: pytest.fail("it is decoded"))
            outcome, engine = start(job(film, **ways))
        assert engine.prepared == []
        assert (
            outcome.summary["kept"]["rows"] == outcome.summary["found"] == len(before.splitlines())
        )
        assert Path(asked.output_path).read_bytes() == before


def test_a_video_with_one_frame_missing_is_decoded(film: Path) -> None:
    start(job(film, limit=7))
    _, engine = start(job(film))
    assert engine.prepared == []  # the last one resembles the one before it
    check(rows(job(film)))


def test_a_damaged_video_keeps_its_error_row(film: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    content = bytearray(
        write_video(
            film / "a.mp4", 80, codec="mpeg4", b_frames=0, key_every=5, draw=shot
        ).read_bytes()
    )
    middle = content.index(b"mdat") + 1000
    content[middle : middle + 400] = bytes(400)
    (film / "a.mp4").write_bytes(content)
    first, _ = start(job(film, fps=10, skip_similar=None))
    again, engine = start(job(film, fps=10, skip_similar=None))
    assert engine.prepared == []
    assert (first.exit_code, again.exit_code) == (3, 0)
    assert again.summary["kept"]["rows"] == first.summary["rows"]
