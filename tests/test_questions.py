"""Question files: forms, encodings, and faults that are one line with its number."""

from __future__ import annotations

import codecs
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vlmbatch.errors import JobError
from vlmbatch.job import Job
from vlmbatch.questions import Questions, read_questions

DEEP = "[" * 100_000 + "]" * 100_000


def read(path: Path) -> Questions:
    return read_questions(Job(inputs=("in",), task="vqa", questions_file=str(path)))


def write(path: Path, text: str, encoding: str = "utf-8") -> Path:
    marks = {"utf-16-le": codecs.BOM_UTF16_LE, "utf-16-be": codecs.BOM_UTF16_BE}
    path.write_bytes(marks.get(encoding, b"") + text.encode(encoding))
    return path


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16-le", "utf-16-be"])
@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("q.txt", "Größe?\r\nWhy?\r\n"),
        ("q.csv", "question\nGröße?\nWhy?\n"),
        ("q.jsonl", '"Größe?"\n{"question": "Why?"}\n'),
    ],
)
def test_a_byte_order_mark_says_the_encoding(
    tmp_path: Path, encoding: str, name: str, text: str
) -> None:
    assert read(write(tmp_path / name, text, encoding)).common == ("Größe?", "Why?")


@pytest.mark.parametrize(
    "text",
    [
        "id,question\na.png,Why so?\n",
        "id;question\na.png;Why so?\n",
        "id\tquestion\na.png\tWhy so?\n",
        'sep=;\nid;question\na.png;"Why so?"\n',
        'image;question;"note, of a kind, or two"\na.png;Why so?;x\n',
    ],
)
def test_the_header_decides_the_delimiter(tmp_path: Path, text: str) -> None:
    assert read(write(tmp_path / "q.csv", text)).about("a.png") == ("Why so?",)


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("q.jsonl", DEEP, "line 1: not JSON .nested too deeply"),
        ("q.jsonl", '{"question": "a", "id": [1]}', "line 1: the id is neither a text"),
        ("q.jsonl", '"\\ud800"', "line 1: a question or prompt is not valid text"),
        ("q.jsonl", '"Why?"\n"a <image>"', "line 2: a question or prompt may not hold <image>"),
        ("q.jsonl", "1" * 10_000, "line 1: not JSON"),
        ("q.csv", "id,question,question\na,b,c\n", "two columns are named 'question'"),
        ("q.csv", "id,question\na.png,What is it, really?\n", "line 2: more fields than the head"),
        ("q.csv", 'id,question\na.png,"Why?\nb.png,Who?\n', "line 2: unexpected end of data"),
        ("q.csv", "id,question\na.png\n", "line 2: no text under question"),
        ("q.csv", "", "no questions in it"),
        ("q.txt", "\n\n", "no questions in it"),
    ],
)
def test_a_fault_is_one_line_with_its_number(
    tmp_path: Path, name: str, text: str, message: str
) -> None:
    with pytest.raises(JobError, match=message) as caught:
        read(write(tmp_path / name, text))
    assert str(tmp_path / name) in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1


def test_bytes_that_are_no_text_are_refused(tmp_path: Path) -> None:
    for data in (b"caf\xe9?", codecs.BOM_UTF16_LE + b"\x00\xd8a"):
        (tmp_path / "q.txt").write_bytes(data)
        with pytest.raises(JobError, match="it is not UTF-8 text"):
            read(tmp_path / "q.txt")


@pytest.mark.parametrize("name", ["gone.txt", "folder.csv", "a\0.txt"])
def test_what_cannot_be_opened_is_named(tmp_path: Path, name: str) -> None:
    (tmp_path / "folder.csv").mkdir()
    with pytest.raises(JobError, match="question file"):
        read(tmp_path / name)


@pytest.mark.parametrize("suffix", ["txt", "csv", "jsonl"])
@given(
    data=st.one_of(
        st.binary(max_size=300),
        st.text(max_size=300).map(lambda t: t.encode("utf-8", "surrogatepass")),
    )
)
@settings(max_examples=100)
def test_no_file_raises_anything_but_a_job_error(tmp_path: Path, suffix: str, data: bytes) -> None:
    (tmp_path / f"q.{suffix}").write_bytes(data)
    message = "one"
    questions = Questions()
    try:
        questions = read(tmp_path / f"q.{suffix}")
    except JobError as error:
        message = str(error)
    assert len(message.splitlines()) == 1
    asked = (*questions.common, *(text for texts in questions.by_item.values() for text in texts))
    assert all(text.strip() and text.encode() for text in asked)
