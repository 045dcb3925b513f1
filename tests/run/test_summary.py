"""Figures over rows: counts, sums and nearest-rank percentiles."""

from __future__ import annotations

import array
import dataclasses

import pytest

from tests.write.rows import record as make_record
from vlmbatch.job import Job
from vlmbatch.run.summary import RowStats, describe_run, phase_figures


def test_percentiles_are_ranks_of_what_was_seen() -> None:
    figures = phase_figures(array.array("f", range(1, 101)))
    assert figures == {"total": 5050, "p50": 50, "p95": 95, "p99": 99}
    assert phase_figures(array.array("f", [7])) == {"total": 7, "p50": 7, "p95": 7, "p99": 7}
    assert phase_figures(array.array("f")) == {"total": 0, "p50": 0, "p95": 0, "p99": 0}


def test_items_count_once_however_many_questions_they_have() -> None:
    stats = RowStats()
    row = dataclasses.replace(make_record(0), tiles=13, new_tokens=5, compute_seconds=0.5)
    stats.add(row, new_item=True)
    stats.add(row, new_item=False)
    failed = dataclasses.replace(
        row, status="error", error_type="ReadError", text=None, new_tokens=0
    )
    stats.add(failed, new_item=True)
    found = stats.describe()
    assert (found["items"], found["rows"], found["tiles"], found["new_tokens"]) == (2, 3, 26, 10)
    assert found["errors"] == {"ReadError": 1}
    assert stats.error_items == 1
    assert found["phases"]["compute_seconds"]["total"] == pytest.approx(1.5)


def test_the_first_three_items_of_each_kind_of_error_are_named() -> None:
    stats = RowStats()
    for number in range(5):
        row = dataclasses.replace(
            make_record(number), status="error", error_type="ReadError", error=f"no {number}"
        )
        stats.add(row, new_item=True)
        stats.add(row, new_item=False)  # another question about it
    named = stats.describe()["failures"]["ReadError"]
    assert [failure["error"] for failure in named] == ["no 0", "no 1", "no 2"]


def test_phases_that_an_engine_cannot_tell_are_left_out_of_the_figures() -> None:
    stats = RowStats()
    row = dataclasses.replace(make_record(0), vision_seconds=None, tiles=None, new_tokens=None)
    stats.add(dataclasses.replace(row, vision_seconds=2.0), new_item=True)
    stats.add(row, new_item=True)
    found = stats.describe()
    assert found["phases"]["vision_seconds"]["p50"] == 2.0
    assert (found["tiles"], found["new_tokens"]) == (0, 0)


@pytest.mark.parametrize(
    ("lengths", "begin"),
    [(1, "1 of 3 answers was cut off"), (2, "2 of 3 answers were cut off"), (0, None)],
)
def test_answers_that_were_cut_off_are_counted_and_a_way_out_is_named(
    lengths: int, begin: str | None
) -> None:
    stats = RowStats()
    row = make_record(0)
    for number in range(3):
        reason = "length" if number < lengths else "stop"
        stats.add(dataclasses.replace(row, finish_reason=reason), new_item=True)
    stats.add(dataclasses.replace(row, finish_reason=None, status="error"), new_item=True)
    found = describe_run(
        Job(inputs=("x",), max_new_tokens=40),
        stats,
        wall_seconds=1.0,
        engine={},
        identity={},
        revision="",
    )["cut_off"]
    assert found["answers"] == lengths
    if begin is None:
        assert found["hint"] is None
    else:
        assert found["hint"].startswith(begin)
        assert "at --max-new-tokens 40; --redo cut-off --max-new-tokens 160" in found["hint"]
