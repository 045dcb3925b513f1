"""A folder of ``.txt`` files, or the corrected OUTPUT itself, as the reference."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.media import write_picture
from tests.write.rows import record, store
from vlmbatch.correct import correct_output
from vlmbatch.errors import JobError
from vlmbatch.evaluate.options import EvalOptions
from vlmbatch.evaluate.score import Evaluation, evaluate_files

EXACT = EvalOptions(metrics=("exact",), resamples=100)


@pytest.fixture
def output(tmp_path: Path) -> Path:
    """An OUTPUT about three pictures in two folders."""
    with store(tmp_path / "out.jsonl") as rows:
        for number, name in enumerate(("a.jpg", "2019/b.png", "2019/c.png")):
            rows.write(record(number, f"about {name}", id=name, source=f"photos/{name}"))
    return tmp_path / "out.jsonl"


def texts(folder: Path, **by_name: str) -> Path:
    for name, text in by_name.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    return folder


def score(found: Evaluation) -> tuple[int, float | None]:
    return found.counts.scored, found.overall.scores["exact"].here.value


def test_texts_beside_pictures_are_right_answers(output: Path, tmp_path: Path) -> None:
    folder = tmp_path / "photos"
    for name in ("a.jpg", "2019/b.png", "2019/c.png", "2019/d.png"):
        write_picture(folder / name)
    wanted = {"a.txt": "about a.jpg\r\n", "2019/b.png.txt": "a barn", "2019/d.txt": "a dog"}
    texts(folder, **wanted, **{"2019/c.txt": " \n", "notes.txt": "for myself"})
    found = evaluate_files(str(output), folder, EXACT)
    assert score(found) == (2, 0.5)
    assert found.missing.first == ["2019/d.png"]
    assert found.reference.without_answer == 1
    assert found.counts.extra.first == ["2019/c.png"]
    above = texts(tmp_path)  # ids are joined by the end of the path
    (folder / "notes.txt").unlink()
    assert score(evaluate_files(str(output), above, EXACT)) == (2, 0.5)


def test_texts_may_stand_in_a_folder_of_their_own(output: Path, tmp_path: Path) -> None:
    folder = texts(tmp_path / "texts", **{"a.txt": "about a.jpg", "2019/b.png.txt": "a barn"})
    assert score(evaluate_files(str(output), folder, EXACT)) == (2, 0.5)


def test_a_text_is_one_answer(output: Path, tmp_path: Path) -> None:
    with store(tmp_path / "qa.jsonl") as rows:
        rows.write(record(0, "red", id="a.jpg", task="vqa", prompt="Which colour?"))
        rows.write(record(0, "no", id="a.jpg", task="vqa", prompt="Is it round?"), question=1)
    folder = texts(tmp_path / "texts", **{"a.txt": "red"})
    with pytest.raises(JobError, match=r"several answers about 'a.jpg'.* a \.txt file is one"):
        evaluate_files(str(tmp_path / "qa.jsonl"), folder, EXACT)
    empty = texts(tmp_path / "empty", **{"x/readme.txt": "hello"})
    with pytest.raises(JobError, match=r"no \.txt file in it is about a picture .* 'a.jpg'"):
        evaluate_files(str(output), empty, EXACT)


def test_a_corrected_output_is_a_reference_for_what_the_model_said(
    output: Path, tmp_path: Path
) -> None:
    with pytest.raises(JobError, match="at once, and has no corrections"):
        evaluate_files(str(output), output, EXACT)
    fixed: Any = {"id": "a.jpg", "text": "a red barn"}
    (tmp_path / "fixed.jsonl").write_text(json.dumps(fixed) + "\n")
    correct_output(str(output), tmp_path / "fixed.jsonl")
    found = evaluate_files(str(output), output, EXACT)
    assert score(found) == (3, pytest.approx(2 / 3))
    assert found.worst[0].pair.text == "about a.jpg"
    assert found.worst[0].pair.answers == ["a red barn"]
