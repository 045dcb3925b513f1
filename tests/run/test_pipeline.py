"""The pipeline: every item one row a question, whatever fails; order, resume, limits and memory, on
real files with a scripted engine.
"""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import vlmbatch
from tests.media import write_picture, write_video
from tests.run.jobs import job, rows, start
from vlmbatch.core import RECORD_FIELDS, Completion, Item
from vlmbatch.engine import RequestQueue
from vlmbatch.engine.scripted import ScriptedEngine
from vlmbatch.errors import EngineError, JobError, NothingFound, OutputError, TooManyErrors
from vlmbatch.job import Job
from vlmbatch.read import Reader, open_reader
from vlmbatch.run import intake
from vlmbatch.run.from_python import run
from vlmbatch.run.pipeline import Run
from vlmbatch.run.plan import count_items
from vlmbatch.run.progress import ProgressReporter


class WatchedEngine(ScriptedEngine):
    """Keeps the queue that it takes its requests from."""

    source: RequestQueue

    def run(self, source: RequestQueue) -> Iterator[Completion]:
        self.source = source
        yield from super().run(source)


def test_every_item_gets_one_row_in_input_order_and_errors_are_rows(photos: Path) -> None:
    outcome, _engine = start(job(photos))
    found = rows(job(photos))
    assert [row["id"] for row in found] == [f"{number:02d}.png" for number in range(20)]
    assert [row["index"] for row in found] == list(range(20))
    assert tuple(found[0]) == RECORD_FIELDS
    assert found[7]["status"] == "error"
    assert found[7]["error_type"] == "DecodeError"
    assert "\n" not in found[7]["error"]
    assert found[3]["text"] == f"03.png: {job(photos).instruction}"
    assert (found[3]["width"], found[3]["height"]) == (40, 30)
    assert outcome.exit_code == 3
    assert outcome.summary["status"] == {"ok": 19, "error": 1}
    assert outcome.summary["errors"] == {"DecodeError": 1}
    summary = json.loads((photos.parent / "out.jsonl.summary.json").read_text())
    assert summary["job"]["task"] == "caption"
    assert summary["phases"]["read_seconds"]["p95"] >= summary["phases"]["read_seconds"]["p50"]
    assert summary["versions"]["python"]
    assert summary["peak_host_bytes"] > 1e7


def test_the_same_command_again_does_nothing_twice(photos: Path) -> None:
    start(job(photos))
    before = (photos.parent / "out.jsonl").read_bytes()
    outcome, engine = start(job(photos))
    assert engine.prepared == []
    assert outcome.exit_code == 0  # one of them still is an error, which is not asked again
    assert outcome.summary["kept"] == {"items": 20, "rows": 20, "errors": 1}
    assert (photos.parent / "out.jsonl").read_bytes() == before


def test_errors_are_done_again_only_when_asked_for(photos: Path) -> None:
    start(job(photos))
    write_picture(photos / "extra.png")
    _, engine = start(job(photos))
    assert engine.prepared == ["extra.png"]
    failing = ScriptedEngine(fail=lambda key: key == "03.png")
    start(job(photos, overwrite=True), failing)
    _, engine = start(job(photos, retry_errors=True))
    assert engine.prepared == ["03.png"]


def test_a_changed_file_is_done_again(photos: Path) -> None:
    start(job(photos))
    write_picture(photos / "05.png", 64, 48, seed=99)
    _, engine = start(job(photos))
    assert engine.prepared == ["05.png"]
    assert rows(job(photos))[5]["width"] == 64


def test_new_files_move_the_others_and_nothing_is_lost(photos: Path) -> None:
    start(job(photos, limit=5))
    write_picture(photos / "00b.png")
    start(job(photos))
    found = rows(job(photos))
    assert [row["id"] for row in found] == sorted(path.name for path in photos.iterdir())
    assert [row["index"] for row in found] == list(range(21))


def test_other_settings_are_refused_by_name(photos: Path) -> None:
    start(job(photos))
    with pytest.raises(OutputError, match=r"detail: full there, low here.*--overwrite"):
        Run(job(photos, detail="low"), engine=ScriptedEngine())
    outcome, _ = start(job(photos, detail="low", overwrite=True))
    assert outcome.summary["rows"] == 20


def test_questions_about_an_item_are_rows_side_by_side(photos: Path) -> None:
    asked = ["Why?", "What?", "Why?"]
    _, engine = start(job(photos, task="vqa", questions=asked, limit=3))
    found = rows(job(photos, task="vqa", questions=asked))
    assert [(row["id"], row["prompt"]) for row in found] == [
        (f"0{n}.png", question) for n in range(3) for question in ("Why?", "What?")
    ]
    assert engine.prepared.count("01.png") == 1
    start(job(photos, task="vqa", questions=["Why?", "What?", "Who?"], limit=3), engine)
    assert sorted(engine.answered[6:]) == [(f"0{n}.png", "Who?") for n in range(3)]
    assert len(rows(job(photos, task="vqa", questions=asked))) == 9


def test_a_question_file_asks_each_item_its_own(photos: Path) -> None:
    file = photos.parent / "questions.jsonl"
    file.write_text(
        '{"id": "01.png", "question": "A?"}\n{"id": "01.png", "question": "B?"}\n'
        '"Everybody?"\n{"image": "02.png", "prompt": "C?"}\n'
    )
    start(job(photos, task="vqa", questions_file=str(file), limit=3))
    found = [
        (row["id"], row["prompt"])
        for row in rows(job(photos, task="vqa", questions_file=str(file)))
    ]
    assert found == [
        ("00.png", "Everybody?"),
        ("01.png", "Everybody?"),
        ("01.png", "A?"),
        ("01.png", "B?"),
        ("02.png", "Everybody?"),
        ("02.png", "C?"),
    ]


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("q.txt", "", "no questions"),
        ("q.jsonl", "{", "line 1: not JSON"),
        ("q.csv", "id,ask\na,b\n", "line 2: no text under question"),
        ("q.md", "x", "write it as"),
    ],
)
def test_a_bad_question_file_is_a_usage_error(
    photos: Path, name: str, text: str, message: str
) -> None:
    (photos.parent / name).write_text(text)
    with pytest.raises(JobError, match=message):
        Run(
            job(photos, task="vqa", questions_file=str(photos.parent / name)),
            engine=ScriptedEngine(),
        )


def about(photos: Path, *ids: str, **values: object) -> Job:
    file = photos.parent / "questions.jsonl"
    file.write_text("".join(json.dumps({"id": item, "question": "Why?"}) + "\n" for item in ids))
    return job(photos, task="vqa", questions_file=str(file), **values)


def test_ids_of_a_question_file_that_no_item_has_are_told(photos: Path) -> None:
    outcome, _ = start(about(photos, "gone.png", "01.png", "photos/02.png"))
    assert outcome.exit_code == 0
    found = outcome.summary["questions"]
    assert (found["ids"], found["missed"]) == (3, 2)
    assert found["hint"].endswith("questions.jsonl: no item has 2 of its 3 ids, such as 'gone.png'")
    assert (
        start(about(photos, "01.png", "19.png", limit=2))[0].summary["questions"] is None
    )  # the others may come after it
    assert start(about(photos, "01.png"))[0].summary["questions"] is None


def test_a_question_file_about_other_things_finds_nothing_and_takes_no_row_away(
    photos: Path,
) -> None:
    start(about(photos, "01.png"))
    wrong = about(photos, "photos/01.png", "photos/02.png")
    outcome, _ = start(wrong)
    assert outcome.exit_code == 66
    message = (
        "questions.jsonl: no item has any of its 2 ids: it asks about 'photos/01.png', "
        "and an item here is '00.png'"
    )
    assert str(outcome.error).endswith(message)
    assert [row["id"] for row in rows(wrong)] == ["01.png"]
    with pytest.raises(NothingFound, match="no item has any of its 2 ids"):
        count_items(wrong)
    outcome, _ = start(about(photos, "19.png", limit=2))
    assert outcome.exit_code == 0
    assert (
        "no item within --limit has its id: it asks about '19.png'"
        in outcome.summary["questions"]["hint"]
    )


def test_a_question_file_about_nothing_that_is_there_yet_is_not_blamed(photos: Path) -> None:
    outcome, _ = start(about(photos, "01.png", include=["*.webp"]))
    assert (outcome.exit_code, outcome.summary["found"], outcome.summary["questions"]) == (
        66,
        0,
        None,
    )


def test_an_item_that_the_engine_cannot_answer_is_an_error_row(photos: Path) -> None:
    outcome, _ = start(job(photos), ScriptedEngine(fail=lambda key: key.startswith("1")))
    assert outcome.summary["errors"] == {"DecodeError": 1, "GenerateError": 10}
    assert [row["id"] for row in rows(job(photos)) if row["error_type"] == "GenerateError"] == [
        f"{n}.png" for n in range(10, 20)
    ]


def test_a_dead_engine_ends_the_run_and_keeps_what_is_finished(photos: Path) -> None:
    outcome, engine = start(job(photos), ScriptedEngine(die_after=6))
    assert isinstance(outcome.error, EngineError)
    assert outcome.exit_code == 1
    kept = rows(job(photos))
    assert {row["id"] for row in kept if row["status"] == "ok"} == {
        key for key, _ in engine.answered
    }
    assert len(engine.answered) == 6
    outcome, again = start(job(photos))
    assert outcome.exit_code == 0
    assert len(again.answered) == 13
    assert [row["index"] for row in rows(job(photos))] == list(range(20))
    with pytest.raises(EngineError):
        run(job(photos, overwrite=True), engine=ScriptedEngine(die_after=0))


@pytest.mark.parametrize("limit", ["3", "30%"])
def test_too_many_errors_stop_a_hopeless_run(tmp_path: Path, limit: str) -> None:
    for number in range(300):
        (tmp_path / "bad" / f"{number:03d}.png").parent.mkdir(exist_ok=True)
        (tmp_path / "bad" / f"{number:03d}.png").write_text("no")
    outcome, _ = start(job(tmp_path / "bad", max_errors=limit))
    assert isinstance(outcome.error, TooManyErrors)
    assert outcome.exit_code == 4
    assert 3 < outcome.summary["rows"] < 300
    assert len(rows(job(tmp_path / "bad"))) == outcome.summary["rows"]


@pytest.mark.parametrize(("limit", "code"), [("10%", 4), ("50%", 3)])
def test_a_share_of_errors_is_judged_at_the_end_of_a_short_run_too(
    tmp_path: Path, limit: str, code: int
) -> None:
    folder = tmp_path / "some bad"
    for number in range(8):
        write_picture(folder / f"{number}.png")
    for number in range(2):
        (folder / f"{number}.png").write_text("no")
    outcome, _ = start(job(folder, max_errors=limit))
    assert outcome.exit_code == code
    assert not outcome.interrupted
    assert len(rows(job(folder))) == 8


def test_the_share_of_errors_is_that_of_this_run(photos: Path) -> None:
    start(job(photos))
    (photos / "98.png").write_text("no")
    write_picture(photos / "99.png")
    outcome, _ = start(job(photos, max_errors="50%"))
    assert outcome.exit_code == 3
    (photos / "98.png").write_text("no!")
    outcome, _ = start(job(photos, max_errors="50%"))
    assert (outcome.exit_code, str(outcome.error)) == (
        4,
        "1 of 1 items are errors, more than --max-errors 50%",
    )
    assert (
        start(job(photos, max_errors="0%"))[0].exit_code == 0
    )  # a run that does nothing is not judged


def test_a_number_of_errors_is_that_of_this_run(photos: Path) -> None:
    for number in range(3):
        (photos / f"9{number}.png").write_text("no")
        outcome, _ = start(job(photos, max_errors="2"))
        assert (outcome.exit_code, outcome.summary["status"]["error"]) == (
            3,
            2 if number == 0 else 1,
        )


def test_errors_are_counted_in_rows_when_they_are_made_and_when_they_are_kept(
    photos: Path,
) -> None:
    asked = job(photos, task="vqa", questions=["Who?", "Why?"])
    first, _ = start(asked)
    assert (first.summary["items"], first.summary["status"]) == (20, {"ok": 38, "error": 2})
    again, _ = start(asked)
    assert again.summary["kept"] == {"items": 20, "rows": 40, "errors": 2}


def test_a_stopped_run_keeps_what_is_finished_and_goes_on_later(photos: Path) -> None:
    def answer(key: str, question: str) -> str:
        if key == "04.png":
            stopped.stop()
            while not engine.source.stopped:
                threading.Event().wait(0.001)
        return key

    engine = WatchedEngine(answer, batch_size=1)
    stopped = Run(job(photos, read_workers=1), engine=engine)
    outcome = stopped.start()
    assert outcome.exit_code == 130
    assert outcome.summary["interrupted"]
    first = [row["id"] for row in rows(job(photos)) if row["status"] == "ok"]
    assert first == ["00.png", "01.png", "02.png", "03.png", "04.png"]
    _, again = start(job(photos))
    assert set(first).isdisjoint(again.prepared)
    assert len(rows(job(photos))) == 20


def test_out_of_memory_events_reach_the_summary(photos: Path) -> None:
    outcome, _ = start(job(photos), ScriptedEngine(batch_size=8, oom_above=2, seconds=0.01))
    assert outcome.summary["engine"]["oom_events"]
    assert outcome.summary["status"]["ok"] == 19


def test_shuffled_items_are_limited_and_come_out_in_input_order(photos: Path) -> None:
    _, engine = start(job(photos, shuffle=True, limit=8, seed=4))
    assert engine.prepared != sorted(engine.prepared)
    found = [row["id"] for row in rows(job(photos))]
    assert found == sorted(found)
    assert found != [f"{number:02d}.png" for number in range(8)]


def test_an_engine_gets_no_further_ahead_than_the_queues_allow(tmp_path: Path) -> None:
    for number in range(400):
        write_picture(tmp_path / "many" / f"{number:03d}.png", 8, 8)
    gate = threading.Event()
    engine = WatchedEngine(gate=gate)
    running = Run(job(tmp_path / "many", read_workers=4), engine=engine)
    thread = threading.Thread(target=running.start)
    thread.start()
    while not hasattr(engine, "source") or len(engine.source) < 64:
        threading.Event().wait(0.01)
    threading.Event().wait(0.3)
    assert len(engine.prepared) <= 64 + 4
    gate.set()
    thread.join()
    assert len(engine.answered) == 400


def test_video_frames_clips_and_windows_are_items(tmp_path: Path) -> None:
    (tmp_path / "v").mkdir()
    write_video(tmp_path / "v" / "clip.mp4", 50, fps=10)
    frames = job(tmp_path / "v", media="video", fps=1)
    outcome, _ = start(frames)
    found = rows(frames)
    assert [row["id"] for row in found] == [f"clip.mp4#t={t}.000" for t in range(5)]
    assert [row["end_seconds"] for row in found] == pytest.approx([1, 2, 3, 4, 5])
    assert {row["media"] for row in found} == {"frame"}
    assert outcome.exit_code == 0
    windows = job(tmp_path / "v", media="video", per="window", window=2, overwrite=True)
    start(windows)
    assert [(row["id"], row["time_seconds"], row["end_seconds"]) for row in rows(windows)][1] == (
        "clip.mp4#t=2.000-4.000",
        2.0,
        pytest.approx(4.0),
    )


def test_items_are_counted_for_the_progress_after_the_first_answer_not_before(
    photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = ScriptedEngine()
    answers_before_counting = []
    counting = threading.Event()

    def watched(job: Job, **settings: Any) -> Reader:
        if settings.get("names_only"):
            answers_before_counting.append(len(engine.answered))
            counting.set()
        return open_reader(job, **settings)

    with ProgressReporter(bar=False, lines=True) as reporter:
        running = Run(job(photos), engine=engine, reporter=reporter)
        items = list(running.reader)

        class LongListing:
            counts = running.reader.counts

            def __iter__(self) -> Iterator[Item]:
                yield from items[:10]
                assert counting.wait(60)
                yield from items[10:]

        running.reader = LongListing()
        monkeypatch.setattr(intake, "open_reader", watched)
        assert running.start().exit_code == 3
    assert len(answers_before_counting) == 1
    assert answers_before_counting[0] > 0


def test_an_unforeseen_exception_of_one_item_does_not_end_the_run(
    photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = ScriptedEngine()
    prepare = engine.prepare

    def odd(conversation: Any, questions: Any) -> Any:
        if conversation.key == "02.png":
            raise ZeroDivisionError("a bug")
        return prepare(conversation, questions)

    monkeypatch.setattr(engine, "prepare", odd)
    start(job(photos), engine)
    assert rows(job(photos))[2]["error"] == "ZeroDivisionError: a bug"
    assert rows(job(photos))[2]["error_type"] == "PrepareError"


def test_a_reader_that_dies_ends_the_run_after_committing(photos: Path) -> None:
    running = Run(job(photos), engine=ScriptedEngine())
    items = list(running.reader)

    class Dying:
        counts = running.reader.counts

        def __iter__(self) -> Any:
            yield from items[:5]
            while running.stats.rows < 3:
                threading.Event().wait(0.001)
            raise RuntimeError("the disk is gone")

        def estimate(self) -> None:
            return None

    running.reader = Dying()
    outcome = running.start()
    assert isinstance(outcome.error, RuntimeError)
    assert outcome.exit_code == 1
    assert 3 <= len(rows(job(photos))) <= 5
    assert not [
        thread
        for thread in threading.enumerate()
        if thread.name in ("reader", "writer") or thread.name.startswith("prepare")
    ]


def test_a_limit_ends_a_run_over_a_pipe_that_stays_open(tmp_path: Path) -> None:
    picture = write_picture(tmp_path / "a.png")
    reading, writing = os.pipe()
    os.write(writing, f"{picture}\n".encode())
    job = Job(inputs=("-",), limit=1, output=str(tmp_path / "out.jsonl"))
    with open(reading, "rb") as stdin:
        outcome = Run(job, engine=ScriptedEngine(), stdin=stdin).start()
    os.close(writing)
    assert (outcome.exit_code, outcome.summary["items"]) == (0, 1)


def test_a_run_can_be_called_by_the_name_of_its_package(tmp_path: Path) -> None:
    picture = write_picture(tmp_path / "a.png")
    for number in range(2):
        job = Job(inputs=[str(picture)], output=str(tmp_path / f"{number}.jsonl"))
        assert vlmbatch.run(job, engine=ScriptedEngine())["status"] == {"ok": 1}
