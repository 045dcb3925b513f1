"""Manifests: which columns are what, ids, questions, carried columns, pictures inside tables, and
bad rows.
"""

from __future__ import annotations

import base64
import csv
import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.media import write_picture, write_video
from tests.read.loading import error, seed_of
from vlmbatch.core import Item
from vlmbatch.errors import JobError
from vlmbatch.job import Job
from vlmbatch.read import open_reader
from vlmbatch.sample import make_sampler


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for number in range(4):
        write_picture(tmp_path / f"pics/{number}.png", seed=number)
    return tmp_path


def write_jsonl(path: Path, rows: Iterable[Any]) -> Path:
    path.write_text(
        "".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows)
    )
    return path


def write_csv(path: Path, *rows: list[Any]) -> Path:
    with open(path, "w", newline="", encoding="utf-8") as file:
        csv.writer(file, delimiter="\t" if path.suffix == ".tsv" else ",").writerows(rows)
    return path


def items(*inputs: Path, **options: Any) -> list[Item]:
    return list(open_reader(Job(inputs=tuple(map(str, inputs)), **options)))


def test_a_list_of_paths_counts_from_its_own_folder(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir("/")
    (folder / "list.txt").write_bytes(
        b"\xef\xbb\xbfpics/1.png\r\n\r\n./pics/0.png\n"
        + os.fsencode(folder / "pics/2.png")
        + b"\npics/1.png\npics/gone.png"
    )
    reader = open_reader(Job(inputs=(str(folder / "list.txt"),)))
    found = list(reader)
    assert [item.id for item in found] == [
        "pics/1.png",
        "pics/0.png",
        f"{folder}/pics/2.png",
        "pics/gone.png",
    ]
    assert [seed_of(item) for item in found[:3]] == [1, 0, 2]
    assert error(found[3]) == "No such file or directory"
    assert reader.counts.duplicates == 1


def test_a_file_given_as_such_and_in_a_list_is_taken_once(folder: Path) -> None:
    (folder / "list.txt").write_text("pics/0.png\npics/1.png\n")
    assert [item.id for item in items(folder / "list.txt", folder / "pics")] == [
        "pics/0.png",
        "pics/1.png",
        "2.png",
        "3.png",
    ]


@pytest.mark.parametrize("name", ["path", "file_name", "Image", "image_path", "filename"])
def test_the_column_of_paths_is_known_by_its_name(folder: Path, name: str) -> None:
    found = items(write_csv(folder / "t.csv", ["label", name], ["a", "pics/3.png"]))
    assert [(item.id, seed_of(item)) for item in found] == [("pics/3.png", 3)]


def test_columns_can_be_chosen(folder: Path) -> None:
    table = write_csv(
        folder / "t.tsv", ["path", "where", "name", "ask"], ["x", "pics/1.png", "one", "Why?"]
    )
    (item,) = items(table, path_column="where", id_column="name", question_column="ask", task="vqa")
    assert (item.id, item.questions, seed_of(item)) == ("one", ("Why?",), 1)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, r"t\.csv: no column has a path.*--path-column \(columns: a, b\)"),
        ({"path_column": "c"}, r"it has no column 'c' \(columns: a, b\)"),
        ({"path_column": "a", "keep": ("d",)}, r"it has no column 'd'"),
        ({"path_column": "a", "task": "vqa"}, r"no column has questions.*--question-column"),
        ({"path_column": "a", "keep": ("b=text",)}, r"every record has a key 'text' of its own"),
    ],
)
def test_columns_that_cannot_be_understood_are_listed(
    folder: Path, options: dict[str, Any], message: str
) -> None:
    table = write_csv(folder / "t.csv", ["a", "b"], ["pics/0.png", "1"])
    with pytest.raises(JobError, match=message):
        items(table, **options)


@pytest.mark.parametrize(
    ("name", "content"),
    [("t.csv", b""), ("t.jsonl", b"[1]\n"), ("t.parquet", b"PAR1 no"), ("t.parquet", b"")],
)
def test_what_is_no_table_is_refused_by_name(tmp_path: Path, name: str, content: bytes) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(JobError, match=name):
        items(tmp_path / name)


def test_a_line_of_json_is_taken_for_what_it_is(folder: Path) -> None:
    text = base64.b64encode((folder / "pics/3.png").read_bytes()).decode()
    rows = [
        {"image": "pics/2.png", "id": "two"},
        '"pics/1.png"',
        {"file_name": "pics/0.png", "label": "x"},
        {"base64": text},
        {"label": "y"},
    ]
    found = items(write_jsonl(folder / "t.jsonl", rows))
    assert [item.id for item in found] == [
        "two",
        "pics/1.png",
        "pics/0.png",
        "t.jsonl#row=3",
        "t.jsonl#row=4",
    ]
    assert [seed_of(item) for item in found[:4]] == [2, 1, 0, 3]
    assert error(found[4]).startswith("the row has nothing in its column")
    later = [{"image": f"pics/{number % 3}.png", "id": f"{number}"} for number in range(150)]
    assert (
        seed_of(items(write_jsonl(folder / "t.jsonl", [*later, {"path": "pics/3.png"}]))[-1]) == 3
    )
    asked = [
        {"image": "pics/0.png", "question": "Who?"},
        {"path": "pics/1.png", "prompt": "Why?"},
        '"pics/2.png"',
    ]
    found = items(write_jsonl(folder / "t.jsonl", asked), task="vqa", questions=("What?",))
    assert [item.questions for item in found] == [("Who?",), ("Why?",), ()]


def test_a_column_that_is_chosen_is_that_of_every_row(folder: Path) -> None:
    rows = [{"image": "pics/0.png"}, {"path": "pics/1.png"}, '"pics/2.png"']
    found = items(write_jsonl(folder / "t.jsonl", rows), path_column="image")
    assert seed_of(found[0]) == 0
    assert [error(item) for item in found[1:]] == ["the row has nothing in its column 'image'"] * 2


def test_a_bad_row_is_an_error_in_its_place(folder: Path) -> None:
    rows = [
        {"path": "pics/0.png"},
        "{broken",
        {"path": None},
        {"path": 7},
        {},
        "[]",
        {"path": "pics/1.png"},
        {"path": "v.mp4"},
        {"path": "pics"},
    ]
    found = items(write_jsonl(folder / "t.jsonl", rows))
    assert [item.id for item in found[1:6]] == [f"t.jsonl#row={number}" for number in range(1, 6)]
    assert [error(found[number])[:24] for number in (1, 2, 3, 5)] == [
        "not JSON: Expecting prop",
        "the row has nothing in i",
        "the column 'path' holds ",
        "neither an object nor a ",
    ]
    assert error(found[7]).endswith("v.mp4 is a video: use `vlmbatch video`")
    assert error(found[8]) == "a folder, not a file"
    assert [seed_of(found[0]), seed_of(found[6])] == [0, 1]


def test_a_row_of_another_length_than_the_header_is_an_error(folder: Path) -> None:
    found = items(
        write_csv(
            folder / "t.csv",
            ["path", "a"],
            ["pics/0.png"],
            ["pics/1.png", "1", "2"],
            ["pics/2.png", "3"],
        )
    )
    assert error(found[0]) == "the row has 1 fields, the header has 2"
    assert error(found[1]) == "the row has 3 fields, the header has 2"
    assert seed_of(found[2]) == 2


def test_ids_are_unique_whatever_the_column_says(
    folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    table = write_csv(
        folder / "t.csv",
        ["path", "id"],
        *([f"pics/{number}.png", name] for number, name in enumerate(("a", "a", "", "a#row=1"))),
    )
    found = [item.id for item in items(table)]
    assert found == ["a", "a#row=1", "pics/2.png", "a#row=1#row=3"]
    assert "2 ids were there before and got another one, as a is a#row=1 now: --id" in caplog.text
    assert [item.id for item in items(table)] == found


def test_rows_with_their_own_questions_about_one_picture_share_its_id(folder: Path) -> None:
    rows = [
        {"image": "pics/0.png", "question": question}
        for question in ("Why?", ["Who?", "Where?", "Who?"], "Why?", None)
    ]
    found = items(write_jsonl(folder / "t.jsonl", rows), task="vqa", questions=("What?",))
    assert [(item.id, item.questions) for item in found] == [
        ("pics/0.png", ("Why?",)),
        ("pics/0.png", ("Who?", "Where?")),
        ("pics/0.png#row=2", ("Why?",)),
        ("pics/0.png", ()),
    ]


def test_a_row_without_a_question_is_an_error_when_the_job_has_none(folder: Path) -> None:
    found = items(
        write_jsonl(
            folder / "t.jsonl",
            [{"image": "pics/0.png", "question": " "}, {"image": "pics/1.png", "question": 3}],
        ),
        task="vqa",
    )
    assert [error(item) for item in found] == [
        "it has no question, and the job has none",
        "the row's question is not a text",
    ]


def test_a_prompt_column_means_nothing_to_other_tasks(folder: Path) -> None:
    (item,) = items(
        write_jsonl(folder / "t.jsonl", [{"image": "pics/0.png", "prompt": "a cat, 4k"}])
    )
    assert item.questions == ()


def struct_table(folder: Path, name: str = "t.parquet", **columns: list[Any]) -> Path:
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    cells = [
        {"bytes": (folder / f"pics/{number}.png").read_bytes(), "path": f"{number}.png"}
        for number in range(2)
    ]
    cells += [
        {"bytes": None, "path": "pics/2.png"},
        {"bytes": (folder / "pics/3.png").read_bytes(), "path": None},
        None,
    ]
    pq.write_table(
        pa.table({"path": ["x"] * 5, "image": pa.array(cells, kind), **columns}),
        folder / name,
        row_group_size=2,
    )
    return folder / name


def test_pictures_of_a_hub_dataset_are_taken_from_its_struct(folder: Path) -> None:
    found = items(struct_table(folder))
    assert [item.id for item in found] == [
        "0.png",
        "1.png",
        "pics/2.png",
        "t.parquet#row=3",
        "t.parquet#row=4",
    ]
    assert [seed_of(item) for item in found[:4]] == [0, 1, 2, 3]
    assert error(found[4]) == "the row has nothing in its column 'image'"
    assert len({item.fingerprint for item in found[:4]}) == 4
    assert found[0].held_bytes == (folder / "pics/0.png").stat().st_size


def test_counting_does_not_read_the_pictures(folder: Path) -> None:
    found = list(
        open_reader(
            Job(inputs=(str(struct_table(folder)),), include=("0.png", "1.png")), names_only=True
        )
    )
    assert [(item.id, item.held_bytes) for item in found] == [("0.png", 0), ("1.png", 0)]


def test_a_column_of_bytes_needs_no_special_name(folder: Path) -> None:
    data = [(folder / f"pics/{number}.png").read_bytes() for number in range(2)]
    pq.write_table(pa.table({"page": data, "id": [10, 11]}), folder / "t.parquet")
    assert [(item.id, seed_of(item)) for item in items(folder / "t.parquet")] == [
        ("10", 0),
        ("11", 1),
    ]


def test_base64_and_data_urls_hold_pictures(folder: Path) -> None:
    text = base64.b64encode((folder / "pics/2.png").read_bytes()).decode()
    rows = [
        {"image": text},
        {"image": f"data:image/png;base64,{text}"},
        {"image": "data:image/png;base64,?"},
        {"image": f"{text[:200]}"},
    ]
    found = items(write_jsonl(folder / "t.jsonl", rows))
    assert [seed_of(item) for item in found[:2]] == [2, 2]
    assert error(found[2]).startswith("the column 'image' does not hold base64")
    assert error(found[3]).startswith("broken PNG")


def test_a_picture_in_a_table_is_held_to_the_size_limit(folder: Path) -> None:
    assert error(items(struct_table(folder), max_file_size="1KB")[0]).endswith(
        "bytes are more than --max-file-size allows (1,000)"
    )


def test_a_url_goes_to_the_remote_reader(folder: Path) -> None:
    store = fsspec.filesystem("memory")
    store.pipe("/bucket/a.png", (folder / "pics/1.png").read_bytes())
    urls = ["memory://bucket/a.png", "memory://bucket/gone", f"file://{folder}/pics/3.png"]
    found = items(write_csv(folder / "t.csv", ["url"], *([url] for url in urls)))
    assert [item.id for item in found[:2]] == ["memory://bucket/a.png", "memory://bucket/gone"]
    assert seed_of(found[0]) == 1
    assert error(found[1]) == "no such file"
    assert seed_of(found[2]) == 3
    store.rm("/bucket", recursive=True)


def test_carried_columns_come_along_and_change_the_fingerprint(folder: Path) -> None:
    def carried(label: int) -> Item:
        return items(
            write_jsonl(folder / "t.jsonl", [{"path": "pics/0.png", "label": label, "more": [1]}]),
            keep=("label", "more=rest"),
        )[0]

    assert carried(1).extra == {"label": 1, "rest": [1]}
    assert carried(1).fingerprint == carried(1).fingerprint != carried(2).fingerprint


def test_keep_needs_something_to_keep_from(folder: Path) -> None:
    with pytest.raises(JobError, match="no INPUT is one"):
        items(folder / "pics", keep=("label",))


def test_manifests_in_folders_are_left_alone_and_globs_name_their_suffix(folder: Path) -> None:
    (folder / "pics/list.txt").write_text("0.png\n")
    write_csv(folder / "pics/bad.csv", ["a"], ["b"])
    assert (
        [item.id for item in items(folder / "pics")]
        == [item.id for item in items(folder / "pics/*")]
        == [f"{number}.png" for number in range(4)]
    )
    assert [item.id for item in items(folder / "pics/*.txt")] == ["0.png"]
    (item,) = items(folder / "pics/*.csv")
    assert item.id == "bad.csv"
    assert "no column has a path" in error(item)


def test_a_video_job_takes_the_questions_and_columns_of_its_rows(tmp_path: Path) -> None:
    write_video(tmp_path / "a.mp4", 10)
    table = write_jsonl(
        tmp_path / "t.jsonl",
        [
            {"video": "a.mp4", "question": "Who?", "label": 3},
            {"video": "https://host.invalid/b.mp4", "question": "x", "label": 4},
        ],
    )
    job = Job(inputs=(str(table),), media="video", task="vqa", keep=("label",))
    first, second = open_reader(job, sampler=make_sampler(job))
    assert (first.id, first.questions, first.extra) == ("a.mp4#t=0.000", ("Who?",), {"label": 3})
    assert second.extra == {"label": 4}
    assert error(second) == "no such host: host.invalid"
