"""Log lines of the progress, by a scripted clock: the first within five seconds, then one every 30,
whatever the run does; and the time that is left.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest

from tests.run.jobs import job, start
from vlmbatch.run.progress import ProgressReporter, time_left
from vlmbatch.run.reporter import Activity

WORK = Activity(
    items_prepared=4,
    tiles_prepared=40,
    tiles=30,
    tokens=60,
    encode_seconds=6.0,
    decode_seconds=3.0,
    in_work=3,
)


class Lines:
    """A reporter without its thread, its clock, and the lines that it logs with their seconds."""

    def __init__(self, caplog: pytest.LogCaptureFixture) -> None:
        caplog.set_level(logging.INFO, "vlmbatch.report")
        self.now = 100.0
        self.reporter = ProgressReporter(bar=False, lines=True, clock=lambda: self.now)
        self._log = caplog

    def wait(self, seconds: int) -> list[tuple[float, str, dict[str, Any]]]:
        """Let the clock run, a beat a second; return the lines."""
        found = []
        for _ in range(seconds):
            self.now += 1
            self._log.clear()
            self.reporter.beat()
            found += [
                (self.now - 100, record.getMessage(), record.__dict__["fields"])
                for record in self._log.records
            ]
        return found


@pytest.fixture
def lines(caplog: pytest.LogCaptureFixture) -> Lines:
    return Lines(caplog)


def test_a_sign_of_life_comes_within_five_seconds_and_every_thirty(lines: Lines) -> None:
    said = lines.wait(100)
    assert [seconds for seconds, _, _ in said] == [3, 33, 63, 93]
    assert said[0][1] == "0/? items, starting, 3 s"
    assert {fields["event"] for _, _, fields in said} == {"progress"}


def test_loading_and_encoding_are_covered(lines: Lines) -> None:
    lines.wait(1)
    lines.reporter.loading("big")
    (first, second) = lines.wait(40)
    assert (first[0], first[1]) == (3, "0/? items, loading big, 3 s")
    assert second[2]["stage"] == "loading big"
    work = [WORK]
    lines.reporter.started(lambda: work[0])
    lines.reporter.total(10)
    (third,) = lines.wait(30)
    assert third[1] == "0/10 items, 30 tiles, 3 tokens/s, 3 in work, time left ?"
    assert third[2]["tiles"] == 30
    assert third[2]["seconds_left"] is None


def test_a_line_says_the_units_of_what_it_counts(lines: Lines) -> None:
    lines.reporter.started(lambda: WORK)
    lines.reporter.total(10)
    lines.reporter.item(error=False, kept=True, new_tokens=0)
    lines.reporter.item(error=True, kept=False, new_tokens=20)
    ((_, text, fields),) = lines.wait(10)
    assert text.startswith("2/10 items, 1 with errors, 30 tiles, 20 tokens/s, 3 in work, ")
    assert text.endswith(" s left")
    assert (fields["items"], fields["items_done_before"], fields["items_with_errors"]) == (2, 1, 1)
    assert fields["seconds_left"] > 0


def test_time_left_knows_tiles_from_tokens() -> None:
    assert time_left(WORK, 0, 0, 9, 9.0) is None  # nothing tells how long answers are
    assert time_left(WORK, 1, 20, None, 9.0) is None
    # Ten items: 30 of 100 tiles took 6 s, 60 of 200 tokens 3 s.
    assert time_left(WORK, 1, 20, 9, 9.0) == pytest.approx(14 + 7)
    # The engine waited half of the time.
    assert time_left(WORK, 1, 20, 9, 18.0) == pytest.approx(2 * (14 + 7))


def test_pictures_that_are_all_encoded_leave_only_tokens() -> None:
    work = Activity(10, 100, 100, 100, encode_seconds=9.0, decode_seconds=1.0, in_work=9)
    # One answer of 50 tokens is there, and nine more are to come: 400 of 500 tokens.
    assert time_left(work, 1, 50, 9, 10.0) == pytest.approx(4.0)


def test_an_engine_that_tells_no_times_is_judged_by_its_items() -> None:
    work = Activity(4, 0, 0, 0, encode_seconds=0.0, decode_seconds=0.0, in_work=3)
    assert time_left(work, 2, 0, 6, 10.0) == pytest.approx(30.0)


def test_a_run_tells_its_events(photos: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "vlmbatch.events")
    outcome, _ = start(job(photos))
    told = [record.__dict__["fields"] for record in caplog.records if "fields" in record.__dict__]
    assert [fields["event"] for fields in told] == ["run_started", "engine_ready", "item_error"]
    assert told[0]["rows_before"] == 0
    assert told[2]["id"] == "07.png"
    assert (told[2]["error_type"], told[2]["source"]) == ("DecodeError", str(photos / "07.png"))
    assert outcome.exit_code == 3
