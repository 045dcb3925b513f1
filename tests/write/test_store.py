"""A finished OUTPUT: its order, what a later run does again, and what it refuses."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from tests.write.rows import (
    PROMPT,
    failed,
    ids,
    is_done,
    record,
    store,
    texts,
)
from vlmbatch.core import Record
from vlmbatch.write import read_records


def identity_of(path: Path) -> tuple[int, int, int]:
    """What changes when a file is written or replaced; reading it changes its access time only."""
    status = path.stat()
    return status.st_ino, status.st_size, status.st_mtime_ns


class TestOrder:
    def test_rows_are_in_input_order_then_in_question_order(self, output: Path) -> None:
        with store(output) as rows:
            for number in (2, 0, 1):
                for question in (1, 0):
                    rows.write(
                        record(number, f"{number} {question}", prompt=f"question {question}"),
                        question=question,
                    )
        assert texts(output) == ["0 0", "0 1", "1 0", "1 1", "2 0", "2 1"]

    def test_kept_rows_take_the_place_they_have_in_the_new_input(self, output: Path) -> None:
        with store(output) as rows:
            for number in range(4):
                rows.write(record(number))
        with store(output) as rows:
            for place, number in enumerate((3, 1, 0, 2)):
                rows.keep(*record(number).key, place)
            rows.write(record(9, index=4))
        assert ids(output) == [f"{number:05d}.jpg" for number in (3, 1, 0, 2, 9)]
        assert [row["index"] for row in read_records(output)] == [0, 1, 2, 3, 4]

    def test_rows_of_other_inputs_stay_and_come_after_those_of_this_run(self, output: Path) -> None:
        with store(output) as rows:
            for number in range(3):
                rows.write(record(number))
        with store(output) as rows:
            for number in range(2):
                rows.write(record(100 + number, index=number))
        assert ids(output) == [f"{number:05d}.jpg" for number in (100, 0, 101, 1, 2)]

    def test_questions_that_swapped_places_are_swapped_in_output(self, output: Path) -> None:
        with store(output) as rows:
            for question in range(2):
                rows.write(
                    record(0, str(question), prompt=f"question {question}"), question=question
                )
        with store(output) as rows:
            for question in range(2):
                rows.keep("00000.jpg", "caption", f"question {question}", 0, 1 - question)
        assert texts(output) == ["1", "0"]

    def test_a_row_written_twice_is_there_once(self, output: Path) -> None:
        with store(output) as rows:
            rows.write(record(0, "first"))
            rows.write(record(0, "second"))
        assert texts(output) == ["second"]


class TestResume:
    def test_finished_rows_are_done(self, output: Path) -> None:
        with store(output) as rows:
            assert not is_done(rows, record(0))
            rows.write(record(0), "1 kB")
            rows.write(record(1, status="similar", similar_to="00000.jpg"))
            assert is_done(rows, record(0))
        with store(output) as rows:
            assert is_done(rows, record(0), "1 kB")
            assert is_done(rows, record(1))
            assert not is_done(rows, record(2))
            assert not rows.done("00000.jpg", "ocr", PROMPT)
            assert not rows.done("00000.jpg", "caption", "another prompt")

    def test_a_changed_file_is_not(self, output: Path) -> None:
        with store(output) as rows:
            rows.write(record(0), "1 kB")
        for _ in range(2):
            with store(output) as rows:
                assert not is_done(rows, record(0), "2 kB")
                assert is_done(rows, record(0))
        with store(output) as rows:
            rows.write(record(0, "new"), "2 kB")
        with store(output) as rows:
            assert is_done(rows, record(0), "2 kB")
        assert texts(output) == ["new"]

    def test_rows_about_what_a_changed_file_no_longer_holds_are_left_out(
        self, output: Path
    ) -> None:
        def frame(seconds: int, **changes: Any) -> Record:
            return record(
                seconds, id=f"clip.mp4#t={seconds}.000", source="/data/clip.mp4", **changes
            )

        with store(output) as rows:
            for seconds in range(4):
                rows.write(frame(seconds), "4 s")
            rows.write(record(9), "x")
            rows.write(
                record(
                    10,
                    id="broken.mp4",
                    source="/data/broken.mp4",
                    status="error",
                    error_type="DecodeError",
                    text=None,
                ),
                "broken",
            )
        # The clip is shorter now and the broken one whole. 00009.jpg is not asked about this time.
        with store(output) as rows:
            assert not is_done(rows, frame(0), "2 s")
            rows.write(frame(0, text="new"), "2 s")
            rows.write(frame(1, text="new"), "2 s")
            rows.write(
                record(2, id="broken.mp4#t=0.000", source="/data/broken.mp4", text="whole"), "whole"
            )
        found = [(row["id"], row["text"]) for row in read_records(output)]
        assert found == [
            ("clip.mp4#t=0.000", "new"),
            ("clip.mp4#t=1.000", "new"),
            ("broken.mp4#t=0.000", "whole"),
            ("00009.jpg", "picture 9"),
        ]
        with store(output) as rows:
            assert is_done(rows, frame(1), "2 s")
            assert rows.totals() == {"rows": 4, "errors": 0}

    def test_a_changed_file_keeps_its_answers_to_other_questions(self, output: Path) -> None:
        with store(output) as rows:
            rows.write(record(0, prompt="Is it day?"), "1 kB")
        with store(output) as rows:
            rows.write(record(0, "new"), "2 kB")
        assert texts(output) == ["new", "picture 0"]

    def test_a_fingerprint_that_was_not_known_is_taken_over(self, output: Path) -> None:
        with store(output) as rows:
            rows.write(record(0))
        with store(output) as rows:
            assert is_done(rows, record(0), "1 kB")
        with store(output) as rows:
            assert not is_done(rows, record(0), "2 kB")

    def test_errors_are_done_again_only_when_asked(self, output: Path) -> None:
        with store(output) as rows:
            rows.write(failed(0), "1 kB")
            rows.write(record(1), "1 kB")
        with store(output) as rows:
            assert is_done(rows, failed(0), "1 kB")
            assert not is_done(rows, failed(0), "2 kB")
        with store(output, retry_errors=True) as rows:
            assert not is_done(rows, failed(0), "1 kB")
            assert is_done(rows, record(1), "1 kB")
            rows.write(record(0, "now it works"), "1 kB")
        assert texts(output) == ["now it works", "picture 1"]

    def test_when_nothing_changed_output_is_left_alone(self, output: Path) -> None:
        with store(output) as rows:
            for number in range(5):
                rows.write(record(number), "x")
        before, journal = identity_of(output), Path(f"{output}.journal").stat()
        with store(output) as rows:
            for number in range(5):
                assert is_done(rows, record(number), "x")
                rows.keep(*record(number).key, number)
        assert identity_of(output) == before
        assert Path(f"{output}.journal").stat().st_ino == journal.st_ino

    def test_an_output_that_nobody_touched_is_not_read_again(
        self, output: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        with store(output) as rows:
            for number in (3, 1, 4):
                rows.write(record(number), "x")
            rows.write(failed(2), "x")

        def not_again(*arguments: object) -> None:
            raise AssertionError("OUTPUT is read through")

        with monkeypatch.context() as patch:
            patch.setattr("vlmbatch.write.previous_output.PreviousOutput.scan", not_again)
            with store(output, retry_errors=True) as rows:
                assert [is_done(rows, record(number), "x") for number in range(6)] == [
                    False,
                    True,
                    False,
                    True,
                    True,
                    False,
                ]
                assert not is_done(rows, record(1), "y")
                assert rows.totals() == {"rows": 4, "errors": 1}
                assert rows.find(*record(4).key) == next(
                    Record(**row) for row in read_records(output) if row["id"] == "00004.jpg"
                )
                rows.write(record(0), "x")
                rows.keep(*record(4).key, -1)  # it comes first now
            assert texts(output) == [
                "picture 4",
                "picture 0",
                "picture 1",
                "picture 2",
                "picture 3",
            ]
            with store(output) as rows:
                assert rows.n_rows == 5
            os.utime(output)
            with pytest.raises(AssertionError, match="is read through"):
                store(output)
        with store(output) as rows:
            assert is_done(rows, record(4), "x")
        assert texts(output) == ["picture 4", "picture 0", "picture 1", "picture 2", "picture 3"]

    def test_a_journal_that_lost_a_line_has_output_read(
        self, output: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        with store(output) as rows:
            for number in range(4):
                rows.write(record(number), "x")
        journal = Path(f"{output}.journal")
        whole = journal.read_bytes().splitlines(keepends=True)
        for lines in (
            [*whole[:2], *whole[3:]],
            whole[:-1],
            [*whole[:2], whole[2].replace(b"ok", b"OK"), *whole[3:]],
            whole[:1],
        ):
            journal.write_bytes(b"".join(lines))
            with store(output) as rows:
                assert rows.n_rows == 4
                assert all(is_done(rows, record(number), "x") for number in range(4))
                assert rows.find(*record(3).key).text == "picture 3"
        assert caplog.text.count("damaged line") == 1
        assert texts(output) == [f"picture {number}" for number in range(4)]

    def test_a_deleted_output_is_made_anew_with_any_settings(self, output: Path) -> None:
        with store(output) as rows:
            rows.write(record(0))
        output.unlink()
        with store(output, detail="low") as rows:
            assert not is_done(rows, record(0))
            rows.write(record(1))
        assert ids(output) == ["00001.jpg"]

    def test_without_a_journal_the_rows_of_output_are_known(self, output: Path) -> None:
        with store(output) as rows:
            rows.write(record(0))
        Path(f"{output}.journal").unlink()
        with store(output) as rows:
            assert is_done(rows, record(0), "anything")
            rows.write(record(1))
        assert ids(output) == ["00000.jpg", "00001.jpg"]

    def test_the_rows_are_the_same_after_many_runs(self, output: Path) -> None:
        for number in range(4):
            with store(output) as rows:
                rows.write(record(number, 'a\n"b" 🦊', time_seconds=number / 7))
        found = list(read_records(output))
        assert found == [
            {**row, "time_seconds": number / 7, "text": 'a\n"b" 🦊', "mean_logprob": -0.123456}
            for number, row in enumerate(found)
        ]
        assert len(found) == 4

    def test_a_row_is_found_again_with_what_it_carries(self, output: Path) -> None:
        kept = {"keep": ("label", "none")}
        made = record(0, extra={"label": "red", "none": None})
        with store(output, **kept) as rows:
            rows.write(made)
            rows.commit()
            assert rows.find(*made.key) == made
        with store(output, **kept) as rows:
            assert rows.find(*made.key) == made
            assert rows.find(*record(1).key) is None

    def test_only_output_and_a_short_journal_remain(self, output: Path) -> None:
        with store(output) as rows:
            for number in range(50):
                rows.write(record(number), "x")
        assert sorted(os.listdir(output.parent)) == [output.name, f"{output.name}.journal"]
        assert Path(f"{output}.journal").stat().st_size < 50 * 107 + 400

    def test_an_output_without_rows_can_be_read_and_continued(self, output: Path) -> None:
        store(output).close()
        assert ids(output) == []
        with store(output, detail="low") as rows:
            rows.write(record(0))
        assert ids(output) == ["00000.jpg"]

    def test_a_symbolic_link_stays_one(self, output: Path) -> None:
        real = output.parent / "elsewhere" / output.name
        real.parent.mkdir()
        output.symlink_to(real)
        with store(output) as rows:
            rows.write(record(0))
        assert output.is_symlink()
        assert ids(real) == ["00000.jpg"]


def test_a_journal_with_a_lost_and_a_repeated_line_does_not_speak_for_output(
    tmp_path: Path,
) -> None:
    output = tmp_path / "out.jsonl"
    with store(output) as rows:
        for number in range(3):
            rows.write(record(number), "x")
    journal = Path(f"{output}.journal")
    lines = journal.read_bytes().splitlines(keepends=True)
    journal.write_bytes(b"".join([*lines[:2], lines[3], lines[3]]))  # as many lines as before
    with store(output) as rows:
        rows.write(record(9), "x")
    assert ids(output) == ["00000.jpg", "00001.jpg", "00002.jpg", "00009.jpg"]
