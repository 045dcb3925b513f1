"""Rows of DATA files."""

from __future__ import annotations

import contextlib
import csv
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.finetune.data import write_rows
from vlmbatch.errors import JobError
from vlmbatch.finetune.plan import split
from vlmbatch.finetune.rows import TrainingRow, read_data
from vlmbatch.job import Job

CLIPS = Job(inputs=("x",), media="video", per="clip")


def read_one(folder: Path, values: dict[str, Any]) -> TrainingRow:
    [row] = read_data(write_rows(folder / "data.jsonl", [values]), CLIPS).rows
    return row


def test_paths_are_relative_to_the_file(tmp_path: Path) -> None:
    row = read_one(
        tmp_path, {"image": "a/b.png", "prompt": "What?", "answer": " A cat.\n", "extra": 1}
    )
    assert (row.media, row.path, row.prompt, row.answer, row.error) == (
        "image",
        str(tmp_path / "a/b.png"),
        "What?",
        "A cat.",
        "",
    )
    assert read_one(
        tmp_path, {"video": "/v.mp4", "prompt": "What?", "answer": "A."}
    ) == TrainingRow("line 1", "clip", "/v.mp4", "What?", "A.")


def test_the_three_formats_give_the_same_rows(tmp_path: Path) -> None:
    rows = [
        {"image": "a.png", "prompt": "What?", "answer": "A cat, asleep.\nSecond line."},
        {"image": "b.png", "prompt": "Who?", "answer": "Nobody."},
    ]
    write_rows(tmp_path / "a.jsonl", rows)
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "a.parquet")
    with open(tmp_path / "a.csv", "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)
    read = [
        [row.key() for row in read_data(tmp_path / f"a.{suffix}", CLIPS).rows]
        for suffix in ("jsonl", "parquet", "csv")
    ]
    assert read[0] == read[1] == read[2]
    assert len(set(read[0])) == 2


@pytest.mark.parametrize(
    ("user", "extra"),
    [
        ([{"type": "image", "path": "a.png"}, {"type": "text", "text": "What?"}], {}),
        ([{"type": "image", "url": "a.png"}, {"type": "text", "text": "What?"}], {}),
        ([{"type": "image"}, {"type": "text", "text": "What?"}], {"images": ["a.png"]}),
        ([{"type": "image"}, {"type": "text", "text": "What?"}], {"image": "a.png"}),
    ],
)
def test_a_chat_of_one_turn_is_a_row(
    tmp_path: Path, user: list[dict[str, str]], extra: dict[str, Any]
) -> None:
    for said in ("A cat.", [{"type": "text", "text": "A cat."}]):
        row = read_one(
            tmp_path,
            {
                "messages": [
                    {"role": "user", "content": user},
                    {"role": "assistant", "content": said},
                ],
                **extra,
            },
        )
        assert (row.media, row.path, row.prompt, row.answer, row.error) == (
            "image",
            str(tmp_path / "a.png"),
            "What?",
            "A cat.",
            "",
        )


@pytest.mark.parametrize(
    ("values", "error"),
    [
        (
            {"prompt": "What?", "answer": "A."},
            "no path under image or video; there is prompt, answer",
        ),
        (
            {"image": {"bytes": "x"}, "prompt": "What?", "answer": "A."},
            "the value of image is not a path",
        ),
        ({"image": "a.png", "answer": "A."}, "no prompt"),
        ({"image": "a.png", "prompt": "What?"}, "no answer"),
        ({"image": "a.png", "prompt": "What?", "answer": " \n"}, "an empty answer"),
        ({"image": "a.png", "prompt": "What?", "answer": 3}, "answer is not text"),
        (
            {"messages": [{"role": "user", "content": "Hello"}]},
            "one of the user and one of the assistant, not user",
        ),
        (
            {
                "messages": [
                    {"role": "user", "content": "Hello"},
                    {"role": "assistant", "content": "Hi"},
                ]
            },
            "opens with one image or video, not 0",
        ),
        (
            {
                "messages": [
                    {
                        "role": "user",
                        "content": [{"type": "text", "text": "x"}, {"type": "image", "path": "a"}],
                    },
                    {"role": "assistant", "content": "y"},
                ]
            },
            "opens with one image or video",
        ),
        (
            {
                "messages": [
                    {"role": "user", "content": [{"type": "image"}]},
                    {"role": "assistant", "content": "y"},
                ]
            },
            "has no path",
        ),
    ],
)
def test_words_that_are_missing_make_a_bad_row_that_says_so(
    tmp_path: Path, values: dict[str, Any], error: str
) -> None:
    assert error in read_one(tmp_path, values).error


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("none.jsonl", None, "cannot read"),
        ("a.jsonl", b'{"image": 1}\nno json\n', "line 2: not JSON"),
        ("a.jsonl", b"[1]\n", "line 1: not an object"),
        ("a.jsonl", b"", "there is no row in it"),
        ("a.jsonl", b"[" * 100_000, "line 1: not JSON .nested too deeply"),
        ("a.csv", b"image,prompt,prompt\na,b,c\n", "two columns are named 'prompt'"),
        ("a.jsonl", b'{"image": "\xff"}\n', "not UTF-8"),
        ("a.parquet", b"PAR1 not really", "not a Parquet file"),
    ],
)
def test_a_file_that_cannot_be_read_is_an_error_that_names_it(
    tmp_path: Path, name: str, content: bytes | None, message: str
) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(JobError, match=message):
        read_data(tmp_path / name, CLIPS)


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
def test_tables_of_spreadsheets_are_read(tmp_path: Path, encoding: str, delimiter: str) -> None:
    lines = [["image", "prompt", "answer"], ["ä.png", "What?", "A cat"]]
    text = "".join(delimiter.join(line) + "\n" for line in lines)
    (tmp_path / "a.csv").write_text(text, encoding=encoding)
    [row] = read_data(tmp_path / "a.csv", CLIPS).rows
    assert (Path(row.path).name, row.prompt, row.answer) == ("ä.png", "What?", "A cat")


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=5,
)
PART = st.dictionaries(st.sampled_from(["type", "text", "path", "role", "content"]), JSON)
OUTPUT_KEYS = ("source", "status", "text", "prompt", "media", "time_seconds")


@given(
    rows=st.lists(
        st.dictionaries(st.sampled_from(["image", "video", "prompt", "answer"]), JSON)
        | st.fixed_dictionaries({"messages": JSON | st.lists(PART)})
        | st.fixed_dictionaries(
            dict.fromkeys(OUTPUT_KEYS, JSON)
            | {"status": st.just("ok") | JSON, "media": st.sampled_from(["frame", "clip"]) | JSON}
        ),
        min_size=1,
        max_size=3,
    )
)
def test_any_values_are_rows_good_or_bad(tmp_path: Path, rows: list[dict[str, Any]]) -> None:
    path = write_rows(tmp_path / "data.jsonl", rows)
    with contextlib.suppress(JobError):  # no row with status ok
        data = read_data(path, CLIPS)
        assert len(data.rows) + data.left_out == len(rows)
        assert all(row.error or (row.prompt and row.answer) for row in data.rows)


def test_an_output_gives_its_texts_and_leaves_out_rows_without(tmp_path: Path) -> None:
    base = {
        "id": "x",
        "task": "caption",
        "prompt": "What?",
        "status": "ok",
        "text": "A cat.",
        "media": "image",
        "time_seconds": None,
    }
    rows = [
        {**base, "source": "a.png"},
        {**base, "source": "v.mp4", "media": "frame", "time_seconds": 1.5},
        {**base, "source": "v.mp4", "media": "clip", "time_seconds": 0.0},
        {**base, "source": "b.png", "status": "error", "text": None},
        {**base, "source": "c.png", "text": " "},
    ]
    path = write_rows(tmp_path / "out.jsonl", rows)
    (tmp_path / "out.jsonl.summary.json").write_text(
        json.dumps(
            {"job": {"per": "window", "window": 2.0, "num_frames": 3, "detail": "low", "fps": None}}
        )
    )
    data = read_data(path, CLIPS)
    assert [(row.media, Path(row.path).name, row.time_seconds) for row in data.rows] == [
        ("image", "a.png", None),
        ("frame", "v.mp4", 1.5),
        ("clip", "v.mp4", 0.0),
        ("image", "c.png", None),
    ]
    assert [row.error for row in data.rows] == ["", "", "", "an empty text"]
    assert (data.left_out, data.detail, data.video_job.per, data.video_job.num_frames) == (
        1,
        "low",
        "window",
        3,
    )


def test_rows_about_one_picture_stay_on_one_side() -> None:
    rows = [
        TrainingRow(f"line {n}", "image", f"{n % 10}.png", f"Question {n}?", "A.")
        for n in range(40)
    ]
    trained, held_out = split(rows, 0.25, seed=1)
    assert len({row.path for row in held_out}) == 3
    assert not {row.path for row in trained} & {row.path for row in held_out}
    assert sorted([*trained, *held_out], key=rows.index) == rows
    assert split(rows, 0.25, seed=1) == (trained, held_out)
    assert split(rows, 0.25, seed=2) != (trained, held_out)
    assert split(rows, 0.0, seed=1) == (rows, [])
    assert split(rows[:1], 0.5, seed=1) == (rows[:1], [])
