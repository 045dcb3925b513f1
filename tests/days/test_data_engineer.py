"""A day of a data engineer: a catalogue in, typed tables out, joined and compared."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import duckdb
import pyarrow.parquet as pq

from tests.days.conftest import Work, rows, shape

COLOURS = ("red", "blue", "green")


def test_a_day_of_a_data_engineer(work: Work, tool: Work, tmp_path: Path) -> None:
    with open(tmp_path / "catalogue.csv", "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["sku", "path", "price"])
        for number, colour in enumerate(COLOURS):
            shape(tmp_path / "img" / f"{colour}.png", colour)
            writer.writerow([f"S{number}", f"img/{colour}.png", 10 + number])
    ask = (
        *("vqa", "catalogue.csv", "-o", "facts.parquet", "--keep", "price"),
        *("-q", "color=What color is the circle?", "-q", "number=How many shapes are there?"),
    )

    # A column that the catalogue has not is refused before a model is loaded.
    assert "article" in work(*ask, "--id-column", "article", code=2).stderr
    # So is a filter that leaves nothing, with the numbers.
    assert "0 of 3" in work(*ask, "--id-column", "sku", "--include", "*.gif", code=66).stderr

    # Two named questions about each article; its price comes along.
    assert "6 answers ok" in work(*ask, "--id-column", "sku").stderr
    table = pq.read_table(tmp_path / "facts.parquet")
    assert table["id"].to_pylist() == ["S0", "S0", "S1", "S1", "S2", "S2"]
    assert table["question_name"].to_pylist()[:2] == ["color", "number"]

    # One row an article for the warehouse, with types.
    tool("export", "facts.parquet", "--to", "parquet", "--wide", "-o", "wide.parquet")
    wide = pq.read_table(tmp_path / "wide.parquet", columns=["id", "price", "color", "number"])
    assert wide.column_names == ["id", "price", "color", "number"]
    assert wide["price"].to_pylist() in ([10, 11, 12], ["10", "11", "12"])
    query = f"select count(*) from '{tmp_path / 'wide.parquet'}' where color is not null"
    assert duckdb.sql(query).fetchall() == [(3,)]

    # A caption each, as JSON lines through a pipe, and as an OUTPUT of its own.
    done = work("caption", "catalogue.csv", "--id-column", "sku", "-o", "-")
    assert [json.loads(line)["id"] for line in done.stdout.splitlines()] == ["S0", "S1", "S2"]
    work("caption", "catalogue.csv", "--id-column", "sku", "-o", "captions.jsonl")
    # Both in one table; nothing stands in both.
    both = ("facts.parquet", "captions.jsonl", "--wide", "--to", "jsonl", "-o", "all.jsonl")
    done = tool("export", *both, "--columns", "id,caption,color,number,price")
    assert "several OUTPUTs" not in done.stderr
    assert list(rows(tmp_path / "all.jsonl")[0]) == ["id", "caption", "color", "number", "price"]

    # Another wording, compared with the first one: where do they differ?
    other = ("--prompt", "What is in this picture?", "-o", "other.jsonl")
    work("caption", "catalogue.csv", "--id-column", "sku", *other)
    with open(tmp_path / "right.csv", "w", newline="") as file:
        csv.writer(file).writerows(
            [("id", "answer"), *((f"S{n}", f"A {c} circle.") for n, c in enumerate(COLOURS))]
        )
    compare = ("--reference", "right.csv", "--against", "other.jsonl", "--ignore-prompt")
    done = tool("eval", "captions.jsonl", *compare, "--fail-under", "coverage=1")
    assert "3 rows scored" in done.stdout

    # The answers that the model was unsure of are asked again, and rows say with what.
    done = work(
        *("caption", "catalogue.csv", "--id-column", "sku", "-o", "captions.jsonl"),
        *("--redo", "unsure:0", "--max-new-tokens", 32),
    )
    assert "3 answers ok" in done.stderr
    settings = json.loads(rows(tmp_path / "captions.jsonl")[0]["settings"])
    assert settings["max_new_tokens"] == 32
