"""When OUTPUT is committed and published, and what other programs do to it meanwhile."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import pytest

from tests.write.rows import (
    ONLY_WHEN_ASKED,
    ids,
    record,
    store,
)
from vlmbatch.errors import OutputError
from vlmbatch.write import CommitPolicy


class TestCommitPolicy:
    def test_commits_by_count_and_by_time_and_publishes_now_and_then(self, output: Path) -> None:
        now = [0.0]
        rows = store(output, policy=CommitPolicy(), clock=lambda: now[0])
        journal = Path(f"{output}.journal")
        empty = journal.stat().st_size
        for number in range(255):
            rows.write(record(number))
        assert journal.stat().st_size == empty
        rows.write(record(255))
        at_256 = journal.stat().st_size
        assert at_256 > empty
        rows.write(record(256))
        now[0] = 9.9
        rows.tick()
        assert journal.stat().st_size == at_256
        assert not output.exists()
        now[0] = 10.0
        rows.tick()
        assert journal.stat().st_size > at_256
        assert len(ids(output)) == 257
        rows.close()
        assert len(ids(output)) == 257

    def test_publishing_that_takes_long_is_rarer(self, tmp_path: Path) -> None:
        now = [0.0]
        output = tmp_path / "out.jsonl"

        def clock() -> float:
            return now[0] + 2 * output.exists()  # the first publishing takes two seconds

        rows = store(output, policy=CommitPolicy(rows=1, publish_share=0.05), clock=clock)
        for seconds, n_published in ((9.0, 0), (10.0, 2), (49.0, 2), (52.0, 4)):
            now[0] = seconds
            rows.write(record(int(seconds)))
            assert (len(ids(output)) if output.exists() else 0) == n_published
        rows.close()

    def test_a_snapshot_goes_on_with_earlier_rows(self, output: Path) -> None:
        with store(output) as rows:
            for number in range(0, 10, 2):
                rows.write(record(number))
        rows = store(
            output, policy=CommitPolicy(rows=1, publish_seconds=0, publish_share=float("inf"))
        )
        for number in range(9, 0, -2):
            rows.write(record(number))
            assert ids(output) == sorted(ids(output))
        assert len(ids(output)) == 10
        rows.abandon()
        with store(output, policy=ONLY_WHEN_ASKED) as rows:
            assert rows.n_rows == 10
        assert ids(output) == [f"{number:05d}.jpg" for number in range(10)]

    def test_an_interrupted_run_publishes_what_it_has(self, output: Path) -> None:
        with pytest.raises(KeyboardInterrupt), store(output) as rows:
            rows.write(record(0))
            raise KeyboardInterrupt
        assert ids(output) == ["00000.jpg"]


def test_an_output_that_another_program_changed_is_replaced_with_a_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    output = tmp_path / "out.jsonl"
    with store(output) as rows:
        rows.write(record(0))
    with caplog.at_level(logging.WARNING), store(output) as rows:
        output.unlink()
        rows.write(record(1))
    assert "its changes are replaced" in caplog.text
    assert ids(output) == ["00000.jpg", "00001.jpg"]


def test_an_output_that_another_program_writes_into_ends_the_run_and_costs_no_row(
    output: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with store(output) as rows:
        rows.write(record(0))
    whole = output.read_bytes()
    rows = store(output)
    rows.write(record(1))
    output.write_bytes(whole + b"\n")
    with (
        caplog.at_level(logging.WARNING),
        pytest.raises(OutputError, match=r"changed by another program .* is kept in .*journal"),
    ):
        rows.close()
    assert not caplog.records
    assert output.read_bytes() == whole + b"\n"
    output.write_bytes(whole)
    store(output).close()
    assert ids(output) == ["00000.jpg", "00001.jpg"]


def test_a_closed_store_takes_no_rows(tmp_path: Path) -> None:
    rows = store(tmp_path / "out.jsonl")
    rows.close()
    rows.close()
    with pytest.raises(OutputError, match="is closed"):
        rows.write(record(0))


def test_the_permissions_of_output_are_kept(tmp_path: Path) -> None:
    output = tmp_path / "out.jsonl"
    store(output).close()
    output.chmod(0o604)
    with store(output) as rows:
        rows.write(record(0))
    assert output.stat().st_mode & 0o777 == 0o604


def test_the_journal_begins_with_the_settings(tmp_path: Path) -> None:
    output = tmp_path / "out.jsonl"
    store(output).close()
    header = json.loads(Path(f"{output}.journal").read_text().splitlines()[0][9:])
    assert header["vlmbatch_journal"] == 2
    assert header["identity"]["revision"] == "r1"
