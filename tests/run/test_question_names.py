"""Questions with a name: asked by their text, named in OUTPUT."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.media import write_picture
from tests.run.jobs import job, rows, start
from vlmbatch.errors import JobError
from vlmbatch.questions import read_questions


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    for number in range(2):
        write_picture(tmp_path / "photos" / f"{number}.png", seed=number)
    return tmp_path / "photos"


@pytest.mark.parametrize("suffix", ["jsonl", "csv", "parquet"])
def test_a_name_is_a_column_and_no_part_of_the_question(photos: Path, suffix: str) -> None:
    asked = ["colour= Which colour?", "Is x = 5?", "=E=mc2?"]
    output = str(photos.parent / f"qa.{suffix}")
    named = job(photos, task="vqa", questions=asked, output=output)
    start(named)
    found = [(row["prompt"], row["question_name"]) for row in rows(named)[:3]]
    assert found == [("Which colour?", "colour"), ("Is x = 5?", None), ("E=mc2?", None)]


def test_rows_of_earlier_runs_get_the_names_that_are_given_now(photos: Path) -> None:
    plain = job(photos, task="vqa", questions=["Which colour?", "Is it round?"])
    start(plain)
    assert "question_name" not in rows(plain)[0]
    for name in ("colour", "color"):
        named = job(photos, task="vqa", questions=[f"{name}=Which colour?", "Is it round?"])
        _, engine = start(named)
        assert not engine.answered
        assert [row["question_name"] for row in rows(named)] == [name, None, name, None]
    start(plain)
    assert [row["question_name"] for row in rows(plain)] == ["color", None, "color", None]


def test_questions_of_a_file_may_share_a_name(photos: Path) -> None:
    file = photos.parent / "q.csv"
    file.write_text("id,question,question_name\n0.png,Who?,q\n1.png,Where?,q\n,Why?,\n")
    asked = job(photos, task="vqa", questions_file=str(file))
    start(asked)
    names = {(row["id"], row["prompt"]): row["question_name"] for row in rows(asked)}
    assert names == {
        ("0.png", "Who?"): "q",
        ("0.png", "Why?"): None,
        ("1.png", "Where?"): "q",
        ("1.png", "Why?"): None,
    }


@pytest.mark.parametrize(
    ("questions", "said"),
    [
        (["colour="], "an empty question or prompt"),
        (["text=What?"], "a question cannot be named 'text': every row has a column of that name"),
        (["a=What?", "b=What?"], "'What?' has two names, a and b: give one"),
    ],
)
def test_a_name_that_cannot_be_is_refused(photos: Path, questions: list[str], said: str) -> None:
    with pytest.raises(JobError, match=re.escape(said)):
        read_questions(job(photos, task="vqa", questions=questions))
