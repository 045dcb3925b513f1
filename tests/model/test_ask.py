"""``Model.ask``: any kind of pictures lazily in, rows out."""

from __future__ import annotations

import base64
import dataclasses
import io
import json
import re
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import vlmbatch
from tests.media import picture
from vlmbatch import JobError
from vlmbatch.job import EngineOptions
from vlmbatch.model.options import ModelSettings

IMAGES = Path(__file__).parents[2] / "sample_data" / "images"
CIRCLE, STAR = IMAGES / "circle.png", IMAGES / "corner-star.png"


def rows(found: Iterator[vlmbatch.Record]) -> list[vlmbatch.Record]:
    """All rows, in the order of the pictures and questions."""
    return sorted(found, key=lambda record: record.index)


def test_rows_are_those_of_a_run(model: vlmbatch.Model, tmp_path: Path) -> None:
    output = tmp_path / "out.jsonl"
    job = vlmbatch.Job(
        inputs=IMAGES, task="vqa", questions=["What is this?"], model="demo", output=output
    )
    vlmbatch.run(job)
    table = vlmbatch.read(output, ["text", "status", "media", "width", "tiles", "new_tokens"])
    found = rows(model.ask(IMAGES, "What is this?"))
    assert [
        {name: getattr(record, name) for name in table.column_names} for record in found
    ] == table.to_pylist()
    assert {record.id for record in found} == {path.as_posix() for path in IMAGES.iterdir()}


def test_every_kind_of_picture_gets_the_same_answer(model: vlmbatch.Model) -> None:
    data = CIRCLE.read_bytes()
    with Image.open(CIRCLE) as opened, open(CIRCLE, "rb") as file:
        pictures: list[Any] = [
            str(CIRCLE),
            CIRCLE,
            opened,
            np.asarray(opened.convert("RGB")),
            np.asarray(opened.convert("RGBA")),
            data,
            file,
            io.BytesIO(data),
            f"data:image/png;base64,{base64.b64encode(data).decode()}",
        ]
        found = rows(model.ask(pictures, ("What is this?", "How many shapes are there?")))
    assert [record.index for record in found] == [n for n in range(9) for _ in range(2)]
    assert {record.text for record in found} == {"A red circle.", "1"}
    assert [record.id for record in found[::2]] == [
        *(str(CIRCLE), CIRCLE.as_posix()),
        *(f"picture-{number}" for number in range(2, 9)),
    ]


def test_a_picture_of_the_callers_is_turned_upright_and_left_as_it_is(
    model: vlmbatch.Model,
) -> None:
    path = IMAGES / "phone.jpg"  # it lies on its side, and says so
    with Image.open(path) as opened:
        info, size = dict(opened.info), opened.size
        by_path, by_picture = rows(model.ask([path, opened], "What is this?"))
        assert (opened.info, opened.size) == (info, size)
    assert by_path.text == by_picture.text
    assert (by_path.width, by_path.height) == (by_picture.width, by_picture.height) == size[::-1]


@pytest.mark.parametrize("value", [CIRCLE, str(CIRCLE), picture(), CIRCLE.read_bytes()])
def test_one_picture_needs_no_list(model: vlmbatch.Model, value: Any) -> None:
    (record,) = model.ask(value, "What is this?")
    assert record.status == "ok"


def test_an_open_file_is_one_picture(model: vlmbatch.Model) -> None:
    with open(CIRCLE, "rb") as file:
        (record,) = model.ask(file, "What is this?")
    assert (record.text, record.error) == ("A red circle.", None)
    (record,) = model.ask(file, "What is this?")
    assert "closed file" in (record.error or "")
    with open(CIRCLE) as text:
        (record,) = model.ask(text, "What is this?")  # type: ignore[arg-type]
    assert "mode 'rb'" in (record.error or "")


def test_a_stack_of_arrays_is_several_pictures(model: vlmbatch.Model) -> None:
    stack = np.stack([picture(seed=0), picture(seed=1)])
    assert [record.index for record in rows(model.ask(stack, "What?"))] == [0, 1]


def test_tasks_have_their_own_words_and_lengths(model: vlmbatch.Model) -> None:
    (caption,) = model.ask(CIRCLE, task="caption")
    assert (caption.task, caption.prompt) == ("caption", "Can you describe this image?")
    (cut,) = model.ask(CIRCLE, task="caption", max_new_tokens=2)
    assert (cut.finish_reason, cut.new_tokens) == ("length", 2)
    (stopped,) = model.ask(CIRCLE, task="caption", stop=" circle")
    assert (stopped.finish_reason, stopped.text) == ("stop", "A red")


def test_what_cannot_be_read_is_an_error_row(model: vlmbatch.Model, tmp_path: Path) -> None:
    (tmp_path / "broken.png").write_bytes(CIRCLE.read_bytes()[:100])
    (tmp_path / "empty.jpg").write_bytes(b"")
    with Image.open(tmp_path / "broken.png") as lazy:
        bad: list[Any] = [
            tmp_path / "missing.png",
            tmp_path / "broken.png",
            tmp_path / "empty.jpg",
            Path(__file__),
            lazy,
            b"no picture",
            np.zeros((4, 4, 3), np.float32),
            np.zeros((3, 8, 9), np.uint8),
            "data:image/png;base64,????",
            "data:image/png,1",
            "https://127.0.0.1/a.png",
            "nowhere/*.png",
            "-",
        ]
        found = rows(model.ask([*bad, CIRCLE], "What is this?"))
    assert [record.status for record in found] == ["error"] * len(bad) + ["ok"]
    assert all(record.error and record.text is None for record in found[:-1])
    assert {record.error_type for record in found[:-1]} == {"ReadError", "DecodeError"}
    assert found[0].id == str(tmp_path / "missing.png")


def test_pictures_are_taken_lazily(model: vlmbatch.Model) -> None:
    taken = []

    def endless() -> Iterator[Path]:
        while True:
            taken.append(CIRCLE)
            yield CIRCLE

    found = model.ask(endless(), "What is this?")
    assert not taken
    assert next(found).text == "A red circle."
    assert len(taken) <= 65
    found.close()  # type: ignore[attr-defined]
    (record,) = model.ask(STAR, "What is this?")  # nothing of it is left in the way
    assert record.text == "A yellow star."


def test_an_error_of_the_callers_iterable_is_the_callers(model: vlmbatch.Model) -> None:
    def failing() -> Iterator[Path]:
        yield CIRCLE
        raise OSError("the camera is gone")

    with pytest.raises(OSError, match="camera"):
        list(model.ask(failing(), "What is this?"))


def test_a_manifest_asks_its_own_questions(model: vlmbatch.Model, tmp_path: Path) -> None:
    shutil.copy(CIRCLE, tmp_path / "a.png")
    shutil.copy(STAR, tmp_path / "b.png")
    (tmp_path / "list.csv").write_text("path,question\na.png,How many shapes are there?\nb.png,\n")
    found = rows(model.ask(tmp_path / "list.csv", "What is this?"))
    assert [record.prompt for record in found] == ["How many shapes are there?", "What is this?"]


@pytest.mark.parametrize(
    ("questions", "options", "message"),
    [
        (None, {}, "give a question"),
        ([], {}, "give a question"),
        ("", {}, "empty question"),
        ([1], {}, "a question is text, not 1"),
        ("an <image>?", {}, "may not hold <image>"),
        ("?", {"task": "guess"}, "task must be one of caption, ocr, vqa, not 'guess'"),
        ("?", {"max_new_tokens": 0}, "max_new_tokens must be at least 1, not 0"),
        ("?", {"max_new_tokens": "9"}, "max_new_tokens must be a whole number, not '9'"),
        ("?", {"temperature": -1}, "temperature must be from 0 to 100"),
        ("?", {"top_p": 0}, "top_p must be above 0"),
        ("?", {"seed": True}, "seed must be a whole number"),
        ("?", {"stop": [""]}, "stop must be a text or several"),
        ("?", {"stop": 3}, "stop must be a text or several"),
        ("?", {"temprature": 1}, "no option is called temprature; did you mean temperature"),
        ("?", {"device": "cpu"}, "no option is called device"),
    ],
)
def test_options_are_checked_before_anything_is_asked(
    model: vlmbatch.Model, questions: Any, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(JobError, match=message):
        model.ask([], questions, **options)


def test_what_is_no_picture_at_all_is_refused(model: vlmbatch.Model) -> None:
    with pytest.raises(JobError, match=r"a picture is a path, .* not dict"):
        list(model.ask([{}], "?"))  # type: ignore[list-item]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"device": "gpu"}, "device must be auto, cpu"),
        ({"dtype": "int4"}, "dtype must be one of"),
        ({"detail": "high"}, "detail must be one of full, native, low"),
        ({"engine": "none"}, "engine must be one of"),
        ({"max_memory": "lots"}, "not a size"),
        ({"models": "demo"}, "no option is called models"),
    ],
)
def test_a_model_says_which_option_is_wrong(options: dict[str, Any], message: str) -> None:
    with pytest.raises(JobError, match=message):
        vlmbatch.Model("demo", **options)


def test_a_model_has_every_option_of_an_engine() -> None:
    names = {field.name for field in dataclasses.fields(EngineOptions)}
    assert names == {*ModelSettings.__annotations__, "model"}


def test_a_models_settings_are_those_of_its_answers(tmp_path: Path) -> None:
    with vlmbatch.Model("demo", detail="low", max_new_tokens=3, device="cpu") as small:
        (record,) = small.ask(IMAGES / "large.jpg", "What is this?")
        assert (record.tiles, record.new_tokens) == (1, 3)
        (record,) = small.ask(CIRCLE, "What is this?", max_new_tokens=9)
        assert record.text == "A red circle."


def test_threads_share_a_model(model: vlmbatch.Model) -> None:
    found: dict[int, list[str | None]] = {}

    def work(number: int) -> None:
        pictures = [CIRCLE, STAR] * 3
        if number % 2:
            asked = [
                {"role": "user", "content": [{"type": "image", "path": CIRCLE}, "What is this?"]}
            ]
            found[number] = ["".join(model.chat(asked, stream=True)) for _ in range(3)]
        else:
            found[number] = [record.text for record in rows(model.ask(pictures, "What is this?"))]

    threads = [threading.Thread(target=work, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(100)
    for number in range(6):
        expected = ["A red circle."] * 3 if number % 2 else ["A red circle.", "A yellow star."] * 3
        assert found[number] == expected


def test_a_closed_model_says_so() -> None:
    with vlmbatch.Model("demo", device="cpu") as small:
        waiting = small.ask([CIRCLE] * 100, "What is this?")
        next(waiting)
        assert "demo: torch, cpu" in repr(small)
    assert "closed" in repr(small)
    small.close()
    with pytest.raises(vlmbatch.EngineError, match="closed"):
        list(waiting)
    for call in (
        lambda: small.ask(CIRCLE, "?"),
        lambda: small.chat([{"role": "user", "content": "?"}]),
        lambda: list(small.ask([CIRCLE], "?")),
    ):
        with pytest.raises(vlmbatch.EngineError, match="closed"):
            call()


def test_answers_have_the_form_that_is_asked_for(model: vlmbatch.Model, tmp_path: Path) -> None:
    schema = {"type": "array", "items": {"enum": ["red", "blue"]}, "minItems": 2, "maxItems": 2}
    (tmp_path / "schema.json").write_text(json.dumps(schema))
    for given in (schema, tmp_path / "schema.json", str(tmp_path / "schema.json")):
        (found,) = model.ask(CIRCLE, "What is this?", schema=given)
        assert set(json.loads(found.text or "")) <= {"red", "blue"}
    (found,) = model.ask(CIRCLE, "What is this?", regex=" [0-9]{3}")
    assert re.fullmatch(" [0-9]{3}", found.text or "")
    assert {r.text for r in model.ask([CIRCLE, STAR], "What?", choices=["a", "b, c"])} <= {
        "a",
        "b, c",
    }
    (cut,) = model.ask(CIRCLE, "What is this?", schema=schema, max_new_tokens=2)
    assert (cut.status, cut.error_type, cut.text) == ("error", "IncompleteAnswer", None)
    message = [{"role": "user", "content": "What color is it?"}]
    assert model.chat(message, choices="red,green") in ("red", "green")
    with pytest.raises(vlmbatch.IncompleteAnswer):
        model.chat(message, schema=schema, max_new_tokens=2)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"regex": "a("}, "regex cannot be compiled: unclosed group"),
        ({"schema": {"type": "foo"}}, "Invalid type: foo"),
        ({"schema": "nowhere.json"}, "schema nowhere.json: No such file"),
        ({"schema": 3}, "schema must be text"),
        ({"choices": ["a"], "regex": "a"}, "give one of regex and choices"),
        ({"choices": ["a"], "stop": "a"}, "stop does not go with choices"),
    ],
)
def test_a_form_that_cannot_be_had_is_refused(
    model: vlmbatch.Model, settings: dict[str, Any], message: str
) -> None:
    with pytest.raises(JobError, match=re.escape(message)):
        model.ask(CIRCLE, "What is this?", **settings)


def test_an_engine_without_forms_of_answers_says_so(
    model: vlmbatch.Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(model.engine, "takes_constraints", False)
    with pytest.raises(JobError, match="engine torch has no regex"):
        model.ask(CIRCLE, "What is this?", regex="a")
