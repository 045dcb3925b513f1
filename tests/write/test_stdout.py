"""JSON Lines on a stream."""

from __future__ import annotations

import io
import json
import os
import sys

import pytest

from tests.write.rows import record
from vlmbatch.core import RECORD_FIELDS
from vlmbatch.errors import OutputError
from vlmbatch.job import Job
from vlmbatch.write import StdoutWriter, open_output


def indexes(stream: io.StringIO) -> list[int]:
    return [json.loads(line)["index"] for line in stream.getvalue().splitlines()]


def test_rows_come_out_in_order_as_soon_as_their_turn_comes() -> None:
    stream = io.StringIO()
    writer = StdoutWriter(stream)
    for number, out in ((2, []), (0, [0]), (1, [0, 1, 2]), (3, [0, 1, 2, 3])):
        writer.write(record(number), order=number)
        assert indexes(stream) == out


def test_closing_writes_what_waits_behind_a_gap() -> None:
    stream = io.StringIO()
    with StdoutWriter(stream) as writer:
        writer.write(record(5), order=5)
        writer.write(record(3), order=3)
    assert indexes(stream) == [3, 5]


def test_rows_without_an_order_come_out_as_they_come() -> None:
    stream = io.StringIO()
    with StdoutWriter(stream) as writer:
        writer.write(record(5))
        writer.write(record(3))
    assert indexes(stream) == [5, 3]


def test_nothing_is_ever_done_and_keys_are_those_of_a_record() -> None:
    stream = io.StringIO()
    with open_output(Job(inputs=("x",), output="-"), {}, stream=stream) as writer:
        writer.write(record(0, "two\nlines 🦊"), order=0)
        assert not writer.done(*record(0).key)
        writer.keep(*record(0).key, 0)
    row = json.loads(stream.getvalue())
    assert tuple(row) == RECORD_FIELDS
    assert row["text"] == "two\nlines 🦊"


def test_a_stream_of_another_encoding_becomes_utf8() -> None:
    raw = io.BytesIO()
    stream = io.TextIOWrapper(raw, encoding="ascii")
    with open_output(Job(inputs=("x",), output="-"), {}, stream=stream) as writer:
        writer.write(record(0, "🦊"), order=0)
    assert "🦊" in raw.getvalue().decode()


def test_a_closed_pipe_is_an_output_error() -> None:
    reading, writing = os.pipe()
    os.close(reading)
    stream = os.fdopen(writing, "w")
    writer = StdoutWriter(stream)
    with pytest.raises(OutputError, match="stdout was closed"):
        for number in range(100):
            writer.write(record(number), order=number)
            writer.commit()
    writer.close()
    with pytest.raises(BrokenPipeError):
        stream.close()


def test_a_process_that_was_started_without_stdout_hears_so(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(sys, "stdout", None)
    with pytest.raises(OutputError, match="it is closed"):
        open_output(Job(inputs=("x",), output="-"), {})


def test_it_flushes_once_a_second() -> None:
    now = [0.0]
    flushed: list[float] = []

    class Stream(io.StringIO):
        def flush(self) -> None:
            flushed.append(now[0])

    writer = StdoutWriter(Stream(), clock=lambda: now[0])
    for now[0] in (0.2, 0.9, 1.1, 1.2):
        writer.write(record(0), order=int(now[0] * 10))
    assert flushed == [1.1]
