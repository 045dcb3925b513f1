"""What holds for every writer."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.write.rows import COUNTS, SECONDS, SUFFIXES, bare, failed, record
from vlmbatch.core import RECORD_FIELDS, Record
from vlmbatch.job import Job
from vlmbatch.write import Writer, open_output, read_records

Rows = list[dict[str, Any]]


@pytest.fixture(params=[*SUFFIXES, "-"])
def opened(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Writer, Callable[[], Rows]]:
    """A writer, and what reads back everything it wrote."""
    job = Job(
        inputs=("x",),
        output="-" if request.param == "-" else str(tmp_path / f"out.{request.param}"),
        model="demo",
    )
    stream = io.StringIO()
    writer = open_output(job, job.identity(), stream=stream)
    if request.param == "-":
        return writer, lambda: [json.loads(line) for line in stream.getvalue().splitlines()]
    return writer, lambda: list(read_records(Path(job.output_path)))


class TestWriter:
    def test_rows_come_back_whole_and_in_input_order(
        self, opened: tuple[Writer, Callable[[], Rows]]
    ) -> None:
        writer, read = opened
        with writer:
            for number in (1, 0, 3, 2):
                writer.write(record(number, f'{number}\n"🦊"'), "fingerprint", order=number)
        assert [row["index"] for row in read()] == [0, 1, 2, 3]
        assert [row["text"] for row in read()] == [f'{number}\n"🦊"' for number in range(4)]
        assert all(tuple(row) == RECORD_FIELDS for row in read())

    def test_error_rows_are_rows_like_others(
        self, opened: tuple[Writer, Callable[[], Rows]]
    ) -> None:
        writer, read = opened
        with writer:
            writer.write(failed(0), order=0)
            writer.write(record(1), order=1)
        assert [(row["status"], row["error_type"], row["error"]) for row in read()] == [
            ("error", "DecodeError", "not a picture"),
            ("ok", None, None),
        ]

    def test_a_row_that_was_never_written_is_not_done(
        self, opened: tuple[Writer, Callable[[], Rows]]
    ) -> None:
        writer, read = opened
        with writer:
            assert not writer.done("a.jpg", "caption", "Describe.", "/data/a.jpg", "x")
            writer.keep("a.jpg", "caption", "Describe.", 0)
        assert read() == []

    def test_committing_and_closing_again_is_harmless(
        self, opened: tuple[Writer, Callable[[], Rows]]
    ) -> None:
        writer, read = opened
        writer.commit()
        writer.write(record(0), order=0)
        writer.tick()
        writer.commit()
        writer.commit()
        writer.close()
        writer.close()
        assert len(read()) == 1

    def test_a_run_that_fails_keeps_what_it_finished(
        self, opened: tuple[Writer, Callable[[], Rows]]
    ) -> None:
        writer, read = opened
        with pytest.raises(RuntimeError, match="engine"), writer:
            writer.write(record(0), order=0)
            raise RuntimeError("the engine died")
        assert [row["id"] for row in read()] == ["00000.jpg"]

    def test_what_is_not_a_number_is_null(self, opened: tuple[Writer, Callable[[], Rows]]) -> None:
        writer, read = opened
        odd: Record = record(0, mean_logprob=float("nan"))
        with writer:
            writer.write(odd, order=0)
        assert read()[0]["mean_logprob"] is None

    def test_what_an_engine_does_not_know_is_null(
        self, opened: tuple[Writer, Callable[[], Rows]]
    ) -> None:
        writer, read = opened
        with writer:
            writer.write(bare(0), order=0)
            writer.write(record(1), order=1)
        empty, full = read()
        assert [empty[name] for name in (*COUNTS, *SECONDS)] == [None] * 11
        assert [empty[name] for name in ("revision", "device", "dtype")] == ["", "", ""]
        assert (full["tiles"], full["read_seconds"]) == (17, 0.0123456)
