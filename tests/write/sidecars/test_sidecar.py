"""Sidecars: names, what is replaced and what is not."""

from __future__ import annotations

import dataclasses
import json
import os
from pathlib import Path
from typing import Any

import pytest

from tests.write.rows import failed, record
from vlmbatch.core import Record
from vlmbatch.errors import OutputError
from vlmbatch.write.columns import row_of
from vlmbatch.write.records import file_name
from vlmbatch.write.sidecars.sidecar import Sidecars, make_content


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    (tmp_path / "photos").mkdir()
    return tmp_path / "photos"


def about(path: Path, text: str | None = "a dog", **changes: Any) -> Record:
    """A row about a file, which is there."""
    path.touch()
    made = record(0, text, id=path.name, source=str(path), **changes)
    return made if text is not None else failed(0)


def write(photos: Path, rows: list[Record], kind: str = "txt", **options: Any) -> dict[str, int]:
    """What a run writes whose OUTPUT has these rows; without the counts that are 0."""
    sidecars = Sidecars(kind, photos.parent / "out.jsonl.sidecars", **options)
    files: dict[str, list[dict[str, Any]]] = {}
    for made in rows:
        files.setdefault(file_name(made.id), []).append(row_of(made))
    return {name: count for name, count in sidecars.write(files.items()).items() if count}


def frame(video: Path, start: float, end: float, text: str, **changes: Any) -> Record:
    video.touch()
    return record(
        0,
        text,
        id=f"{video.name}#t={start:.3f}",
        source=str(video),
        media="frame",
        time_seconds=start,
        end_seconds=end,
        **changes,
    )


def test_a_picture_has_a_text_of_its_name_in_utf8_with_one_newline(photos: Path) -> None:
    assert write(photos, [about(photos / "a.b.jpg", "naïve\nlines")]) == {"written": 1}
    assert (photos / "a.b.txt").read_bytes() == "naïve\nlines\n".encode()
    assert write(photos, [about(photos / "a.b.jpg", "naïve\nlines")]) == {"unchanged": 1}
    assert sorted(path.name for path in photos.iterdir()) == [
        ".vlmbatch-sidecars",
        "a.b.jpg",
        "a.b.txt",
    ]


def test_answers_to_several_questions_stand_one_below_the_other(photos: Path) -> None:
    write(photos, [about(photos / "a.jpg", text, prompt=text) for text in ("yes", "no", "yes")])
    assert (photos / "a.txt").read_text() == "yes\nno\nyes\n"


def test_error_rows_have_none_and_an_empty_answer_has_an_empty_line(photos: Path) -> None:
    (photos / "00001.jpg").touch()
    bad = failed(1)
    bad.source = str(photos / "00001.jpg")
    assert write(photos, [bad, about(photos / "b.jpg", "")]) == {"written": 1}
    assert not (photos / "00001.txt").exists()
    assert (photos / "b.txt").read_bytes() == b"\n"  # a trainer stops at a file without a line


def test_files_of_others_stay_and_ours_follow_the_answer(photos: Path) -> None:
    (photos / "hand.txt").write_text("by hand")
    (photos / "empty.txt").touch()
    rows = [about(photos / name) for name in ("hand.jpg", "empty.jpg", "new.jpg")]
    assert write(photos, rows) == {"written": 2, "kept": 1}
    assert (photos / "hand.txt").read_text() == "by hand"
    (photos / "new.txt").write_text("a dog, corrected")
    rows = [about(photos / name, "a cat") for name in ("hand.jpg", "empty.jpg", "new.jpg")]
    assert write(photos, rows) == {"written": 1, "kept": 2}
    assert [(photos / name).read_text() for name in ("hand.txt", "empty.txt", "new.txt")] == [
        "by hand",
        "a cat\n",
        "a dog, corrected",
    ]
    assert write(photos, rows, overwrite=True) == {"unchanged": 1, "kept": 2}
    assert write(photos, rows, overwrite_all=True) == {"written": 2, "unchanged": 1}
    assert (photos / "hand.txt").read_text() == "a cat\n"


def test_files_that_were_written_from_another_output_are_known(photos: Path) -> None:
    rows = [about(photos / name) for name in ("a.jpg", "edited.jpg")]
    other = Sidecars("txt", photos.parent / "other.jsonl.sidecars")
    other.write([(made.id, [row_of(made)]) for made in rows])
    (photos / "edited.txt").write_text("corrected")
    (photos / "b.txt").write_text("by hand")
    rows = [about(photos / name, "a cat") for name in ("a.jpg", "b.jpg", "edited.jpg")]
    assert write(photos, rows) == {"kept": 2, "kept_ours": 1}
    assert (photos / "a.txt").read_text() == "a dog\n"
    assert write(photos, rows, overwrite=True) == {"written": 1, "kept": 2}
    assert {path.name: path.read_text() for path in photos.glob("*.txt")} == {
        "a.txt": "a cat\n",
        "b.txt": "by hand",
        "edited.txt": "corrected",
    }
    assert write(photos, rows, overwrite_all=True) == {"written": 2, "unchanged": 1}


@pytest.mark.parametrize("damage", [b"", b"not JSON\n", b'["a"]\n{"name": "a.txt"}\n'])
def test_a_damaged_index_makes_files_those_of_others(photos: Path, damage: bytes) -> None:
    row = about(photos / "a.jpg")
    Sidecars("txt", photos.parent / "other.jsonl.sidecars").write([(row.id, [row_of(row)])])
    (photos / ".vlmbatch-sidecars").write_bytes(damage)
    assert write(photos, [about(photos / "a.jpg", "a cat")], overwrite=True) == {"kept": 1}
    assert write(photos, [about(photos / "b.jpg")]) == {"written": 1}
    assert b'"b.txt"' in (photos / ".vlmbatch-sidecars").read_bytes()


def test_without_the_record_nothing_that_says_something_else_is_replaced(photos: Path) -> None:
    write(photos, [about(photos / "a.jpg")])
    (photos.parent / "out.jsonl.sidecars").unlink()
    assert write(photos, [about(photos / "a.jpg", "a cat")]) == {"kept_ours": 1}
    assert write(photos, [about(photos / "a.jpg")]) == {"unchanged": 1}
    assert write(photos, [about(photos / "a.jpg", "a cat")]) == {"written": 1}


def test_two_pictures_with_one_stem_keep_their_names_whatever_comes_later(
    photos: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write(photos, [about(photos / "a.png", "png")])
    assert not caplog.records
    rows = [
        about(photos / "a.png", "png"),
        about(photos / "a.jpg", "jpg"),
        about(photos / "a.webp", None),
    ]
    rows[2].id, rows[2].source = "a.webp", str(photos / "a.webp")
    assert write(photos, rows) == {"written": 1, "unchanged": 1, "renamed": 1}
    assert {path.name: path.read_text() for path in photos.glob("*.txt")} == {
        "a.txt": "png\n",
        "a.jpg.txt": "jpg\n",
    }
    assert "a.jpg: another one has the sidecar" in caplog.text
    assert write(photos, [about(photos / "a.jpg", "jpg")]) == {"unchanged": 1, "renamed": 1}
    (photos / "a.png").unlink()
    assert write(photos, [about(photos / "a.bmp", "bmp")]) == {"written": 1}
    assert (photos / "a.txt").read_text() == "bmp\n"


def test_of_many_with_one_name_the_first_has_it_and_all_have_one(photos: Path) -> None:
    suffixes = ("png", "jpg", "jpg.png", "jpg.txt.png")
    rows = [about(photos / f"a.{suffix}", suffix) for suffix in suffixes]
    for folder, ordered in (("one", rows), ("two", rows[::-1])):
        (photos.parent / "out.jsonl.sidecars").unlink(missing_ok=True)
        write(photos, ordered, folder=photos / folder)
        found = {path.name: path.read_text() for path in (photos / folder).glob("*.txt")}
        assert sorted(found.values()) == ["jpg\n", "jpg.png\n", "jpg.txt.png\n", "png\n"]
    assert (photos / "one" / "a.txt").read_text() == "png\n"
    assert (photos / "two" / "a.txt").read_text() == "jpg\n"


@pytest.mark.parametrize("source", ["https://host/a.png", "{}/d.zip/x/a.png", "{}/t.parquet#3"])
def test_a_source_that_is_no_file_of_a_folder_keeps_its_name(photos: Path, source: str) -> None:
    for bundle in ("d.zip", "t.parquet"):
        (photos / bundle).touch()
    options = {"folder": photos / "texts"}
    first = record(0, "first", id="x/a.png", source=source.format(photos))
    write(photos, [first], **options)
    other = about(photos / "x.jpg", "other")
    other.id = "x/a.jpg"
    assert write(photos, [other, first], **options) == {"written": 1, "unchanged": 1, "renamed": 1}
    assert (photos / "texts" / "x" / "a.txt").read_text() == "first\n"


def test_a_folder_of_their_own_has_the_tree_of_the_ids_and_nothing_leaves_it(photos: Path) -> None:
    rows = [
        record(number, str(number), id=id, source="https://nowhere/x")
        for number, id in enumerate(["x/y/a.jpg", "../../b.jpg", "/etc/c.jpg", "d.zip/d.jpg"])
    ]
    assert write(photos, rows) == {"no_place": 4}
    assert write(photos, rows, folder=photos / "texts" / "here") == {"written": 4}
    found = sorted(
        str(path.relative_to(photos / "texts" / "here")) for path in photos.rglob("*.txt")
    )
    assert found == ["b.txt", "d.zip/d.txt", "etc/c.txt", "x/y/a.txt"]


def test_a_name_that_is_not_utf8_has_its_sidecar_beside_it(photos: Path) -> None:
    path = Path(os.fsdecode(os.fsencode(photos) + b"/caf\xe9.jpg"))
    path.touch()
    row = record(0, "x", id="caf\\xe9.jpg", source=f"{photos}/caf\\xe9.jpg")
    assert write(photos, [row]) == {"written": 1}
    assert path.with_suffix(".txt").read_text() == "x\n"
    assert write(photos, [row]) == {"unchanged": 1}
    row.text = "y"
    assert write(photos, [row]) == {"written": 1}


def test_a_video_has_one_file_of_all_its_frames_in_order_of_time(photos: Path) -> None:
    video = photos / "v.mp4"
    rows = [
        frame(video, 2, 3, "c"),
        frame(video, 0, 1, "a"),
        frame(photos / "w.mov", 0, 5, "w"),
        frame(video, 1, 2, "a"),
    ]
    lost = failed(5)
    lost.id, lost.source = "v.mp4", str(video)
    assert write(photos, [*rows, lost], "srt") == {"written": 2}
    assert (
        photos / "v.srt"
    ).read_text() == "1\n00:00:00,000 --> 00:00:02,000\na\n\n2\n00:00:02,000 --> 00:00:03,000\nc\n"
    write(photos, rows, "vtt")
    write(photos, rows, "txt")
    assert (
        photos / "v.txt"
    ).read_text() == "[00:00:00.000 --> 00:00:02.000] a\n[00:00:02.000 --> 00:00:03.000] c\n"
    assert sorted(path.name for path in photos.glob("[vw]*")) == [
        "v.mp4",
        "v.srt",
        "v.txt",
        "v.vtt",
        "w.mov",
        "w.srt",
        "w.txt",
        "w.vtt",
    ]


def test_what_cannot_be_written_is_said_and_the_rest_is_there(photos: Path) -> None:
    (photos / "a.txt").mkdir()
    rows = [about(photos / "a.jpg"), about(photos / "b.jpg"), about(photos / ("n" * 252 + ".p"))]
    with pytest.raises(
        OutputError, match=r"cannot write sidecars \(.*a.txt: Is a directory and 1 more\)"
    ):
        write(photos, rows)
    assert (photos / "b.txt").read_text() == "a dog\n"
    assert [
        json.loads(line)["id"]
        for line in (photos.parent / "out.jsonl.sidecars").read_text().splitlines()
    ] == ["b.jpg"]
    assert not [path for path in photos.iterdir() if path.suffix == ".tmp"]
    longest = photos / ("l" * 251 + ".jpg")
    assert write(photos, [about(longest)]) == {"written": 1}


def test_a_pipe_in_the_place_of_a_sidecar_stays_and_is_not_waited_for(photos: Path) -> None:
    os.mkfifo(photos / "a.txt")
    assert write(photos, [about(photos / "a.jpg")]) == {"kept": 1}
    assert (photos / "a.txt").is_fifo()
    assert write(photos, [about(photos / "a.jpg")], overwrite_all=True) == {"written": 1}
    assert (photos / "a.txt").read_text() == "a dog\n"


def test_a_folder_that_cannot_be_made_is_said_at_once(photos: Path) -> None:
    (photos / "file").touch()
    with pytest.raises(OutputError, match="cannot write sidecars to"):
        write(photos, [], folder=photos / "file")


def test_a_damaged_record_is_said(photos: Path) -> None:
    (photos.parent / "out.jsonl.sidecars").write_text("{}\n")
    with pytest.raises(OutputError, match="sidecars is damaged"):
        write(photos, [about(photos / "a.jpg")])


def rows_of(*changes: dict[str, Any]) -> list[dict[str, Any]]:
    return [row_of(dataclasses.replace(record(0), status="ok", **each)) for each in changes]


def test_subtitles_say_the_question_where_there_are_several() -> None:
    at: dict[str, Any] = {"id": "a.mp4#t=0.000", "time_seconds": 0.0, "end_seconds": 2.0}
    asked = rows_of({**at, "prompt": "Who?", "text": "A cat."}, {**at, "prompt": "Why?"})
    assert b"\nWho?\nA cat.\n" in (make_content("srt", asked) or b"")
    assert b"Who?" not in (make_content("srt", asked[:1]) or b"")
    assert b"] Who? A cat. Why? " in (make_content("txt", asked) or b"")


def test_the_text_of_a_whole_clip_has_no_time() -> None:
    whole: dict[str, Any] = {"media": "clip", "time_seconds": 0.0, "end_seconds": 2.0}
    clip = rows_of({**whole, "id": "a.mp4", "text": "A cat runs."})
    assert make_content("txt", clip) == b"A cat runs.\n"
    assert b"00:00:00.000 --> 00:00:02.000" in (make_content("vtt", clip) or b"")
    window = rows_of({**whole, "id": "a.mp4#t=0.000-2.000", "text": "A cat runs."})
    assert make_content("txt", window) == b"[00:00:00.000 --> 00:00:02.000] A cat runs.\n"


def test_the_text_of_a_document_marks_its_pages() -> None:
    still: dict[str, Any] = {"time_seconds": None, "end_seconds": None}
    pages = rows_of(
        {**still, "id": "d.pdf#page=1", "text": "One"},
        {**still, "id": "d.pdf#page=1", "text": "More", "prompt": "Else?"},
        {**still, "id": "d.pdf#page=2", "text": "Two"},
    )
    assert make_content("txt", pages) == b"[page 1]\nOne\nMore\n[page 2]\nTwo\n"
    assert make_content("txt", pages[:1]) == b"One\n"
