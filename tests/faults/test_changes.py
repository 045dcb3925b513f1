"""The world changes while a run goes on: files come, go and change, other programs write to OUTPUT,
the clock is set back.
"""

from __future__ import annotations

import datetime
import json
import os
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.media import write_picture, write_video
from tests.write.rows import SUFFIXES, ids, is_done, record, store, texts
from vlmbatch.core import record as records
from vlmbatch.engine.scripted import ScriptedEngine
from vlmbatch.errors import JobError, OutputError, ReadError
from vlmbatch.job import Job
from vlmbatch.read import open_reader
from vlmbatch.read.files import walk
from vlmbatch.run.pipeline import Outcome, Run
from vlmbatch.write import CommitPolicy, read_records


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Two folders of a hundred pictures."""
    for number in range(200):
        write_picture(
            tmp_path / "photos" / ("a" if number < 100 else "b") / f"{number:03d}.png",
            8,
            8,
            seed=number,
        )
    return tmp_path / "photos"


def run(
    folder: Path, at: str = "", change: Callable[[], object] = lambda: None, **values: Any
) -> tuple[Outcome, list[dict[str, Any]]]:
    """Runs a job in which something happens while an item is answered; gives its outcome and its
    rows.
    """

    def answer(key: str, question: str) -> str:
        if key == at:
            change()
        return key

    job = Job.from_dict(
        {
            "inputs": [str(folder)],
            "output": str(folder.parent / "out.jsonl"),
            "read_workers": 1,
            **values,
        }
    )
    outcome = Run(job, engine=ScriptedEngine(answer, batch_size=1)).start()
    rows = list(read_records(Path(job.output_path)))
    assert [row["index"] for row in rows] == sorted(row["index"] for row in rows)
    assert [
        key
        for key, count in Counter((row["id"], row["prompt"]) for row in rows).items()
        if count > 1
    ] == []
    return outcome, rows


def test_files_that_are_gone_when_it_is_their_turn_are_error_rows(photos: Path) -> None:
    def change() -> None:
        for number in range(
            80, 100
        ):  # a folder is listed as a whole, and the queues hold fewer than eighty
            (photos / "a" / f"{number:03d}.png").unlink()

    outcome, rows = run(photos, "a/000.png", change)
    assert outcome.exit_code == 3
    assert [row["id"] for row in rows] == [
        f"{'a' if number < 100 else 'b'}/{number:03d}.png" for number in range(200)
    ]
    assert {row["id"] for row in rows if row["error"] == "No such file or directory"} == {
        f"a/{number:03d}.png" for number in range(80, 100)
    }


def test_a_folder_that_is_gone_when_it_is_its_turn_is_an_error_row(photos: Path) -> None:
    for number in range(2000):  # more than the queues hold
        (photos / "a" / f"more-{number:04d}.png").hardlink_to(photos / "a" / "000.png")

    def change() -> None:
        os.rename(photos / "b", photos.parent / "elsewhere")

    outcome, rows = run(photos, "a/000.png", change)
    assert outcome.exit_code == 3
    assert len(rows) == 2101
    assert [
        (row["id"], row["error_type"], row["error"]) for row in rows if row["status"] == "error"
    ] == [("b", "ReadError", "folder not listed: No such file or directory")]
    os.rename(photos.parent / "elsewhere", photos / "b")
    outcome, rows = run(photos)
    assert len([row for row in rows if row["status"] == "ok"]) == 2200


def test_a_pattern_in_a_folder_that_may_not_be_listed_is_a_usage_error_and_later_an_error_row(
    photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = Job(inputs=(f"{photos}/a/*.png",))
    reader = open_reader(job)
    list(reader)  # what the look at the pattern has listed; from now on it is listed anew

    def refused(folder: str) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(walk, "_names", refused)
    (item,) = reader
    with pytest.raises(ReadError, match="folder not listed: Permission denied"):
        item.load()
    with pytest.raises(JobError, match=r"cannot list the folder .*/photos/a: Permission denied"):
        open_reader(job)


def test_a_folder_that_grows_while_it_is_read_has_no_row_twice_and_the_next_run_has_all(
    photos: Path,
) -> None:
    def change() -> None:
        for number in range(40):
            write_picture(photos / ("a", "b", "c")[number % 3] / f"{number * 5:03d}-new.png", 8, 8)

    outcome, rows = run(photos, "a/005.png", change)
    assert outcome.exit_code == 0
    assert {row["id"] for row in rows} >= {
        f"{'a' if number < 100 else 'b'}/{number:03d}.png" for number in range(200)
    }
    _, rows = run(photos)
    assert [row["id"] for row in rows] == sorted(
        str(path.relative_to(photos)) for path in photos.rglob("*.png")
    )


def test_a_file_that_changes_between_listing_and_reading_is_done_again_by_the_next_run(
    photos: Path,
) -> None:
    outcome, rows = run(photos, "a/000.png", lambda: write_picture(photos / "b" / "199.png", 64, 8))
    assert outcome.exit_code == 0
    before = rows[199]["run_id"], rows[198]["run_id"]
    _, rows = run(photos)
    assert rows[199]["width"] == 64
    assert (rows[199]["run_id"] != before[0], rows[198]["run_id"] == before[1]) == (
        True,
        True,
    ) or rows[199]["run_id"] == before[0]


def test_a_video_that_is_cut_while_it_is_read_gives_rows(tmp_path: Path) -> None:
    path = write_video(tmp_path / "v" / "a.ts", 200)
    write_video(tmp_path / "v" / "b.mp4", 20)
    size = path.stat().st_size
    outcome, rows = run(
        tmp_path / "v", "a.ts#t=0.200", lambda: os.truncate(path, size // 3), media="video", every=1
    )
    assert outcome.exit_code in (0, 3)
    assert len([row for row in rows if row["id"].startswith("b.mp4#")]) == 20
    assert 20 < len([row for row in rows if row["id"].startswith("a.ts#")]) < 200


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_another_programs_file_in_the_place_of_output_is_replaced_and_no_row_is_lost(
    photos: Path, suffix: str
) -> None:
    output = photos.parent / f"out.{suffix}"
    run(photos / "a", output=str(output))

    def change() -> None:
        (photos.parent / "foreign").write_text("not ours")
        os.replace(photos.parent / "foreign", output)

    outcome, rows = run(
        photos, "100.png", change, output=str(output), inputs=[str(photos / "a"), str(photos / "b")]
    )
    assert outcome.exit_code == 0
    assert len(rows) == 200


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("change", ["emptied", "rewritten", "shortened"])
def test_an_output_that_another_program_writes_into_is_not_built_upon(
    tmp_path: Path, suffix: str, change: str
) -> None:
    output = tmp_path / f"out.{suffix}"
    with store(output) as rows:
        for number in range(5):
            rows.write(record(number), "x")
    before = output.read_bytes()
    rows = store(output)
    rows.write(record(5), "x")
    lines = before.splitlines(keepends=True)
    output.write_bytes(
        {"emptied": b"", "rewritten": b"not ours\n", "shortened": b"".join([lines[0], *lines[2:]])}[
            change
        ]
    )
    written = output.read_bytes()
    with pytest.raises(OutputError, match="was changed by another program during the run"):
        rows.close()
    assert output.read_bytes() == written
    output.write_bytes(before)
    with store(output) as rows:
        assert is_done(rows, record(5), "x")
    assert ids(output) == [f"{number:05d}.jpg" for number in range(6)]


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_an_output_with_half_a_row_at_its_end_is_refused_and_left_alone(
    photos: Path, suffix: str
) -> None:
    output = photos.parent / f"out.{suffix}"
    run(photos / "a", output=str(output))
    whole = output.read_bytes()
    for cut in (60, 200):  # within the last row
        output.write_bytes(whole[:-cut])
        with pytest.raises(OutputError, match=r"was not written by vlmbatch .*--overwrite"):
            run(photos / "a", output=str(output))
        assert output.read_bytes() == whole[:-cut]
    output.write_bytes(whole)
    assert run(photos / "a", output=str(output))[0].summary["kept"]["rows"] == 100


def test_the_clock_of_the_day_may_be_set_back(
    photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(photos, inputs=[str(photos / "a")])
    real = datetime.datetime

    class Earlier(real):  # type: ignore[misc, valid-type]
        @classmethod
        def now(cls, tz: Any = None) -> Any:
            return real.now(tz) - datetime.timedelta(days=4000)

    monkeypatch.setattr(records.datetime, "datetime", Earlier)
    outcome, rows = run(photos, inputs=[str(photos / "a"), str(photos / "b")])
    assert outcome.exit_code == 0
    assert outcome.summary["wall_seconds"] > 0
    assert outcome.summary["kept"]["rows"] == 100
    assert [row["created_at"] > rows[0]["created_at"] for row in rows[100:]] == [False] * 100
    assert (
        len(json.loads((photos.parent / "out.jsonl").read_text().splitlines()[-1])["created_at"])
        == 24
    )


def test_rows_are_committed_by_their_number_when_the_stores_clock_runs_backwards(
    tmp_path: Path,
) -> None:
    output = tmp_path / "out.jsonl"
    times = iter(range(1_000_000, 0, -1_000))
    rows = store(output, policy=CommitPolicy(rows=10, seconds=10), clock=lambda: float(next(times)))
    for number in range(95):
        rows.write(record(number), "x")
    rows.abandon()
    with store(output) as rows:
        assert rows.n_rows >= 90
        for number in range(rows.n_rows, 95):
            rows.write(record(number), "x")
    assert texts(output) == [f"picture {number}" for number in range(95)]
