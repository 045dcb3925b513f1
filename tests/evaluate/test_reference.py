"""References in three formats and several styles are read; others end with an explanation."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.write.rows import SUFFIXES, failed, record, store
from vlmbatch.errors import JobError
from vlmbatch.evaluate.options import Columns
from vlmbatch.evaluate.reference import Reference, read_reference

Answers = dict[tuple[str, str | None], list[str]]


def read(
    path: Path,
    *,
    id: str | None = None,
    prompt: str | None = None,
    answers: tuple[str, ...] = (),
    ignore_prompt: bool = False,
) -> Answers:
    return content(read_reference(path, Columns(id, prompt, answers), ignore_prompt=ignore_prompt))


def content(reference: Reference) -> Answers:
    return {key: entry.answers for key, entry in reference.entries.items()}


def write(path: Path, rows: list[dict[str, object]]) -> Path:
    if path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    elif path.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(rows), path)
    else:
        import csv

        with open(path, "w", newline="", encoding="utf-8-sig") as file:
            writer = csv.DictWriter(file, list(rows[0]))
            writer.writeheader()
            writer.writerows(
                {
                    key: json.dumps(value) if isinstance(value, list) else value
                    for key, value in row.items()
                }
                for row in rows
            )
    return path


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_the_three_formats_say_the_same(suffix: str, tmp_path: Path) -> None:
    rows: list[dict[str, object]] = [
        {"id": "./a.png", "question": " Why? ", "answers": ["so", "thus "]},
        {"id": "sub\\b.png", "question": None, "answers": ["no"]},
    ]
    found = read(write(tmp_path / f"r.{suffix}", rows))
    assert found == {("a.png", "Why?"): ["so", "thus"], ("sub/b.png", None): ["no"]}


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_another_output_is_a_reference_without_its_error_rows(suffix: str, tmp_path: Path) -> None:
    output = tmp_path / f"out.{suffix}"
    with store(output) as opened:
        for made in (record(0, "corrected"), record(1, ""), failed(2)):
            opened.write(made)
    reference = read_reference(output, Columns())
    prompt = record(0).prompt
    assert content(reference) == {("00000.jpg", prompt): ["corrected"], ("00001.jpg", prompt): [""]}
    assert reference.without_answer == 1


def test_rows_of_the_same_id_and_question_add_up(tmp_path: Path) -> None:
    path = write(
        tmp_path / "r.csv",
        [
            {"image": "a", "caption": "one"},
            {"image": "a", "caption": "two"},
            {"image": "b", "caption": ""},
        ],
    )
    reference = read_reference(path, Columns())
    assert content(reference) == {("a", None): ["one", "two"]}
    assert reference.without_answer == 1
    assert reference.answers_per_row == (2, 2)


def test_columns_can_be_named_and_answers_come_from_several(tmp_path: Path) -> None:
    path = write(tmp_path / "r.csv", [{"key": "a", "asked": "Why?", "x": "1", "y": "2"}])
    assert read(path, id="key", prompt="asked", answers=("x", "y")) == {("a", "Why?"): ["1", "2"]}
    assert read(path, id="key", answers=("y",)) == {("a", None): ["2"]}


def test_the_answers_of_the_vqa_data_sets_and_numbers_are_read(tmp_path: Path) -> None:
    path = write(
        tmp_path / "r.jsonl",
        [{"id": 7, "prompt": "Q", "answers": [{"answer": "yes", "answer_id": 1}, 2]}],
    )
    assert read(path) == {("7", "Q"): ["yes", "2"]}


def test_a_prompt_can_be_ignored(tmp_path: Path) -> None:
    assert read(
        write(tmp_path / "r.jsonl", [{"id": "a", "prompt": "Q", "answer": "x"}]), ignore_prompt=True
    ) == {("a", None): ["x"]}


@pytest.mark.parametrize(
    "name, text, message",
    [
        (
            "r.csv",
            "file,content\na,b\n",
            (
                "no column named answers, answer, caption, text; there is file, content: choose "
                "with --answer-column"
            ),
        ),
        (
            "r.jsonl",
            '{"key": 1, "answer": "x"}\n',
            (
                "line 1: no column named id, image, video, file, path; there is key, answer: "
                "choose with --id-column"
            ),
        ),
        ("r.jsonl", '{"id": "a", "answer": "x"}\n{"id"\n', "line 2: not JSON"),
        ("r.jsonl", "[1]\n", "line 1: not an object"),
        ("r.jsonl", "[" * 100_000, "line 1: not JSON (nested too deeply)"),
        ("r.csv", "id,answer,answer\na,b,c\n", "two columns are named 'answer'"),
        (
            "r.jsonl",
            '{"id": "a", "answer": true}\n',
            "line 1: the answer true is neither a text nor a number",
        ),
        ("r.jsonl", '{"id": "a", "answers": [null]}\n', "line 1: the answer null is neither"),
        ("r.csv", 'id,answers\na,"[1, "\n', "line 2: 'answers' is not a JSON list"),
        ("r.csv", "id,answer\n,x\n", "line 2: an empty id"),
        ("r.csv", "id,answer\n", "no answers in it"),
        ("r.csv", "id,answer\na,\n", "all of its 1 rows have none"),
        ("r.txt", "a", "write it as .jsonl, .csv or .parquet"),
        ("r.parquet", "a", "it is not a Parquet file"),
        ("none.csv", None, "No such file"),
    ],
)
def test_what_cannot_be_understood_is_said(
    name: str, text: str | None, message: str, tmp_path: Path
) -> None:
    if text is not None:
        (tmp_path / name).write_text(text, encoding="utf-8")
    with pytest.raises(JobError) as caught:
        read_reference(tmp_path / name, Columns())
    assert message in str(caught.value)
    assert str(tmp_path / name) in str(caught.value)


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32"])
@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
def test_tables_of_spreadsheets_are_read(tmp_path: Path, encoding: str, delimiter: str) -> None:
    text = f"id{delimiter}answer\nä.jpg{delimiter}one, two\n"
    text = text.replace("one, two", '"one, two"')
    (tmp_path / "r.csv").write_text(text, encoding=encoding)
    assert read(tmp_path / "r.csv") == {("ä.jpg", None): ["one, two"]}


def test_json_lines_in_utf_16_are_read(tmp_path: Path) -> None:
    (tmp_path / "r.jsonl").write_text('{"id": "ä.jpg", "answer": "x"}\n', encoding="utf-16")
    assert read(tmp_path / "r.jsonl") == {("ä.jpg", None): ["x"]}


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=5,
)
KEYS = st.sampled_from(["id", "image", "prompt", "question", "answer", "answers", "text", "status"])


@given(rows=st.lists(st.dictionaries(KEYS, JSON, max_size=6), max_size=3))
def test_any_values_are_read_or_are_an_error(tmp_path: Path, rows: list[dict[str, object]]) -> None:
    path = tmp_path / "r.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    with contextlib.suppress(JobError):
        assert isinstance(read(path), dict)


@given(content=st.binary(max_size=200) | st.text(max_size=200).map(str.encode))
def test_any_bytes_are_read_or_are_an_error(tmp_path: Path, content: bytes) -> None:
    for name in ("r.jsonl", "r.csv", "r.parquet"):
        (tmp_path / name).write_bytes(content)
        with contextlib.suppress(JobError):
            assert isinstance(read(tmp_path / name), dict)


def test_text_that_is_not_utf8_is_said(tmp_path: Path) -> None:
    (tmp_path / "r.csv").write_bytes(b"id,answer\na,\xff\n")
    with pytest.raises(JobError, match="it is not UTF-8 text"):
        read_reference(tmp_path / "r.csv", Columns())


def test_a_named_column_that_is_not_there_is_said(tmp_path: Path) -> None:
    path = write(tmp_path / "r.parquet", [{"id": "a", "answer": "x", "picture": "…"}])
    with pytest.raises(
        JobError,
        match="no column named asked; there is id, answer, picture: choose with --prompt-column",
    ):
        read(path, prompt="asked")
