"""What goes into a file comes out of it, in every format."""

from __future__ import annotations

import csv
import io
import json
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.write.rows import SUFFIXES, bare, failed, record, store
from vlmbatch.core import RECORD_FIELDS
from vlmbatch.errors import OutputError
from vlmbatch.write import read_records
from vlmbatch.write.columns import COLUMNS, row_of
from vlmbatch.write.formats import FORMATS

AWKWARD = [
    "",
    " ",
    "two\nlines",
    "a\r\nb\rc",
    'say "hi", please',
    "naïve 🦊 日本語",
    "a,b;c\td",
    "\u2028 and \u0085",
    "'; DROP",
    "null",
    "\\n",
    '"',
    "x" * 200_000,
    "=1+1",
    "'=1+1",
    "''@x",
    "'quoted'",
    "'",
    "- item",
    "-1",
    "\t=x",
    "\n+x",
]


def round_trip(suffix: str, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    file = io.BytesIO()
    FORMATS[suffix].write_rows(file, rows)
    assert not file.closed
    file.seek(0)
    return list(FORMATS[suffix].read_rows(file))


def test_columns_are_the_fields_of_a_record() -> None:
    assert tuple(COLUMNS) == RECORD_FIELDS


@pytest.mark.parametrize("suffix", FORMATS)
class TestRoundTrip:
    def test_awkward_text_and_every_value_survive(self, suffix: str) -> None:
        rows = [
            row_of(record(number, text, time_seconds=number / 3, end_seconds=1e-9))
            for number, text in enumerate(AWKWARD)
        ]
        assert round_trip(suffix, rows) == rows

    def test_null_and_empty_text_are_told_apart(self, suffix: str) -> None:
        error = failed(1)
        error.text = None
        rows = [
            row_of(record(0, "")),
            row_of(error),
            row_of(record(2, "", status="similar", similar_to="00000.jpg")),
        ]
        found = round_trip(suffix, rows)
        assert found == rows
        assert [row["text"] for row in found] == ["", None, ""]
        assert found[0]["error"] is None

    def test_rows_of_engines_that_know_little_survive_beside_others(self, suffix: str) -> None:
        rows = [row_of(bare(0)), row_of(record(1)), row_of(bare(2, text=""))]
        assert round_trip(suffix, rows) == rows
        assert rows[0]["tiles"] is rows[0]["compute_seconds"] is None

    def test_no_rows_are_a_file_that_can_be_read(self, suffix: str) -> None:
        assert round_trip(suffix, []) == []

    def test_only_the_columns_asked_for_are_given(self, suffix: str) -> None:
        file = io.BytesIO()
        FORMATS[suffix].write_rows(file, [row_of(record(3))])
        file.seek(0)
        assert list(FORMATS[suffix].read_rows(file, ("status", "index"))) == [
            {"status": "ok", "index": 3}
        ]

    def test_what_is_no_record_file_is_refused(self, suffix: str) -> None:
        for content in (
            b"hello\nworld\n",
            b'{"a": 1}\n',
            b"\xff\xfe\x00",
            b"[1]\n",
            b"id,text\n1,2\n",
        ):
            with pytest.raises(OutputError):
                list(FORMATS[suffix].read_rows(io.BytesIO(content)))

    @settings(max_examples=30)
    @given(
        text=st.text(st.characters(exclude_categories=["Cs"])),
        number=st.floats(allow_nan=False, allow_infinity=False),
        part=st.floats(1e-9, 1e30),
    )
    def test_any_text_and_number_survive(
        self, suffix: str, text: str, number: float, part: float
    ) -> None:
        rows = [row_of(record(0, text, time_seconds=number, read_seconds=part, prompt=text))]
        assert round_trip(suffix, rows) == rows


def test_numbers_that_are_not_finite_become_null() -> None:
    row = row_of(record(0, mean_logprob=math.nan, time_seconds=math.inf, read_seconds=-math.inf))
    assert (row["mean_logprob"], row["time_seconds"], row["read_seconds"]) == (None, None, None)
    json.dumps(row, allow_nan=False)


def test_numpy_numbers_become_plain_ones() -> None:
    row = row_of(
        record(
            0,
            index=np.int64(5),
            mean_logprob=np.float32(-0.1),
            tiles=np.int32(3),
            width=np.int64(7),
        )
    )
    assert [type(row[name]) for name in ("index", "mean_logprob", "tiles", "width")] == [
        int,
        float,
        int,
        int,
    ]
    assert row["mean_logprob"] == -0.1


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_file_name_that_is_not_utf8_can_be_written_and_found_again(
    tmp_path: Path, suffix: str
) -> None:
    output = tmp_path / f"out.{suffix}"
    made = record(0, id="caf\udce9.jpg")
    with store(output) as rows:
        rows.write(made)
    assert [row["id"] for row in read_records(output)] == ["caf\\udce9.jpg"]
    with store(output) as rows:
        assert rows.done(*made.key)


def test_parquet_columns_have_the_types_of_the_contract(tmp_path: Path) -> None:
    pq = pytest.importorskip("pyarrow.parquet")
    output = tmp_path / "out.parquet"
    with store(output) as rows:
        rows.write(record(0))
    schema = pq.read_schema(output)
    assert schema.names == list(RECORD_FIELDS)
    types = {name: str(schema.field(name).type) for name in schema.names}
    assert types["id"] == "string"
    assert types["index"] == "int64"
    assert types["time_seconds"] == "double"
    assert types["width"] == types["tiles"] == "int32"
    assert types["mean_logprob"] == types["compute_seconds"] == "float"
    assert types["created_at"] == "timestamp[ms, tz=UTC]"
    assert [name for name in schema.names if schema.field(name).nullable] == [
        name for name, column in COLUMNS.items() if column.nullable
    ]
    assert json.loads(schema.metadata[b"vlmbatch.job"])["output"] == str(output)
    assert (
        pq.read_table(output).column("created_at")[0].as_py().isoformat()
        == "2026-01-31T12:00:00.123000+00:00"
    )


def test_csv_is_rfc_4180(tmp_path: Path) -> None:
    output = tmp_path / "out.csv"
    with store(output) as rows:
        rows.write(record(0, 'a "b"\nc'))
    content = output.read_bytes()
    assert content.startswith(b"id,source,index,")
    assert b',"a ""b""\nc",' in content
    assert content.endswith(b"\r\n")


@pytest.mark.parametrize(
    "text", ["=HYPERLINK(1)", "+1", "-1", "- item", "@SUM(A1)", "\t=1", "\r=1", "\n=1", "'=1"]
)
def test_no_text_in_a_csv_is_a_formula_and_numbers_stay_numbers(text: str) -> None:
    file = io.BytesIO()
    FORMATS[".csv"].write_rows(
        file, [row_of(record(0, text, id=text, prompt=text, mean_logprob=-0.5))]
    )
    fields = dict(zip(*csv.reader(io.StringIO(file.getvalue().decode(), newline="")), strict=True))
    assert fields["text"] == fields["id"] == fields["prompt"] == f"'{text}"
    assert fields["mean_logprob"] == "-0.5"


def test_a_csv_that_a_spreadsheet_saved_with_a_byte_order_mark_is_read() -> None:
    file = io.BytesIO()
    FORMATS[".csv"].write_rows(file, [row_of(record(0, "naïve"))])
    rows = FORMATS[".csv"].read_rows(io.BytesIO(b"\xef\xbb\xbf" + file.getvalue()))
    assert [row["text"] for row in rows] == ["naïve"]


def test_writing_other_formats_does_not_load_pyarrow() -> None:
    code = "import sys, vlmbatch.write; sys.exit('pyarrow' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_reading_says_what_is_wrong(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="No such file"):
        read_records(tmp_path / "none.jsonl")
    with pytest.raises(OutputError, match="is none of"):
        read_records(tmp_path / "none.txt")
    (tmp_path / "bad.jsonl").write_text("{}\n")
    with pytest.raises(OutputError, match="line 1 is not a record"):
        list(read_records(tmp_path / "bad.jsonl"))
