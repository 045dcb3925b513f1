"""Tables are what other programs take them for: pandas, polars and duckdb read what pyarrow and the
csv module wrote.
"""

from __future__ import annotations

import dataclasses
import datetime
from pathlib import Path
from typing import Any

import duckdb
import pandas
import polars
import pyarrow.parquet as pq
import pytest

from tests.write.rows import bare, failed, record, store, texts
from vlmbatch.core import RECORD_FIELDS

TEXTS = ["naïve 🦊\n日本語", 'a, "b"', None, ""]
CREATED = datetime.datetime(2026, 1, 31, 12, 0, 0, 123000, datetime.UTC)


@pytest.fixture(params=["parquet", "csv"])
def output(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """Four rows, the third of which is an error."""
    path = tmp_path / f"out.{request.param}"
    with store(path) as rows:
        for number, text in enumerate(TEXTS):
            rows.write(
                dataclasses.replace(failed(2), text=None)
                if text is None
                else record(number, text, time_seconds=number / 4)
            )
    return path


def test_pyarrow_finds_types_the_job_and_repeated_values_once(tmp_path: Path) -> None:
    with store(tmp_path / "out.parquet") as rows:
        for number in range(1000):
            rows.write(record(number))
    file = pq.ParquetFile(tmp_path / "out.parquet")
    columns = {
        file.metadata.row_group(0).column(at).path_in_schema: file.metadata.row_group(0).column(at)
        for at in range(len(RECORD_FIELDS))
    }
    assert {
        str(file.schema_arrow.field(name).type)
        for name in ("index", "width", "mean_logprob", "created_at")
    } == {
        "int64",
        "int32",
        "float",
        "timestamp[ms, tz=UTC]",
    }
    for name in ("model", "prompt", "status", "device", "run_id"):
        assert "RLE_DICTIONARY" in columns[name].encodings
        assert columns[name].total_compressed_size < 200
    assert columns["mean_logprob"].statistics.null_count == 0
    assert b"vlmbatch.job" in file.schema_arrow.metadata


def test_pandas(output: Path) -> None:
    if output.suffix == ".csv":
        frame = pandas.read_csv(
            output,
            parse_dates=["created_at"],
            keep_default_na=False,
            na_values={"mean_logprob": ""},
        )
    else:
        frame = pandas.read_parquet(output)
        assert dict(frame.dtypes.astype(str))["tiles"] == "int32"
        assert frame["text"].isna().tolist() == [False, False, True, False]
    assert list(frame.columns) == list(RECORD_FIELDS)
    assert frame["text"].tolist()[:2] == TEXTS[:2]
    assert frame["created_at"][0] == CREATED
    assert frame["mean_logprob"].isna().tolist() == [False, False, True, False]
    assert frame["index"].sum() == 6


def test_polars(output: Path) -> None:
    frame: Any = (
        polars.read_csv(output, try_parse_dates=True)
        if output.suffix == ".csv"
        else polars.read_parquet(output)
    )
    assert frame.columns == list(RECORD_FIELDS)
    assert frame["text"].to_list()[:2] == TEXTS[:2]
    assert frame["created_at"][0].astimezone(datetime.UTC) == CREATED
    assert frame["time_seconds"].to_list() == [0.0, 0.25, None, 0.75]
    if output.suffix == ".parquet":
        assert (frame.schema["width"], frame.schema["mean_logprob"]) == (
            polars.Int32,
            polars.Float32,
        )
        assert frame["text"].to_list() == TEXTS


def test_duckdb(output: Path) -> None:
    reader = "read_csv" if output.suffix == ".csv" else "read_parquet"
    query = (
        "SELECT text, time_seconds, width, epoch_ms(created_at::TIMESTAMPTZ) "
        f"FROM {reader}(?) WHERE status = 'ok' ORDER BY index"
    )
    found = duckdb.execute(query, [str(output)]).fetchall()
    assert [row[0] for row in found][:2] == TEXTS[:2]
    assert [row[1:] for row in found] == [
        (number / 4, 640, round(CREATED.timestamp() * 1000)) for number in (0, 1, 3)
    ]


def test_a_run_goes_on_from_what_pandas_has_written(tmp_path: Path) -> None:
    """pandas makes whole numbers with gaps floats."""
    for suffix in ("csv", "parquet"):
        path = tmp_path / f"out.{suffix}"
        with store(path) as rows:
            rows.write(bare(0))
            rows.write(record(1))
        if suffix == "csv":
            pandas.read_csv(path).to_csv(path, index=False)
            assert ",17.0," in path.read_text()
        else:
            pandas.read_parquet(path).to_parquet(path)
            assert str(pq.read_schema(path).field("tiles").type) == "double"
        with store(path) as rows:
            rows.write(record(2))
            rows.commit()
            tiles = [rows.find(*record(number).key).tiles for number in range(3)]
        assert tiles == [None, 17, 17]
        assert isinstance(tiles[1], int)
        assert texts(path) == ["picture 0", "picture 1", "picture 2"]


def test_a_run_goes_on_from_lines_that_an_editor_of_windows_has_saved(tmp_path: Path) -> None:
    path = tmp_path / "out.jsonl"
    with store(path) as rows:
        rows.write(record(0))
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes().replace(b"\n", b"\r\n") + b"\r\n")
    with store(path) as rows:
        rows.write(record(1))
    assert texts(path) == ["picture 0", "picture 1"]
