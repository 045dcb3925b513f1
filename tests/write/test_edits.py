"""Texts that somebody edited in OUTPUT, and files that were touched but not changed."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.write.rows import failed, is_done, record, store, texts
from vlmbatch.core import Record
from vlmbatch.errors import OutputError
from vlmbatch.write import CommitPolicy
from vlmbatch.write.formats import find_format
from vlmbatch.write.records import read_records

EAGER = CommitPolicy(rows=1, seconds=0, publish_seconds=0, publish_share=float("inf"))


def write(output: Path, *records: Record, fingerprint: str = "1:1", **options: object) -> None:
    with store(output, **options) as rows:
        for each in records:
            rows.write(each, fingerprint, content="c1")


def edit(output: Path, number: int, text: str | None) -> None:
    """Change a text as another program does, which writes the whole file anew."""
    rows = list(read_records(output))
    rows[number]["text"] = text
    with open(output, "wb") as file:
        find_format(output).write_rows(file, iter(rows), {}, {})


def test_an_edited_text_is_kept_whatever_its_file_is_now(output: Path) -> None:
    write(output, *map(record, range(4)))
    edit(output, 2, "a red barn")
    for _ in range(2):  # the second time OUTPUT is as the journal says
        with store(output) as rows:
            assert rows.edited() == 1
            assert [is_done(rows, record(n), "2:2") for n in range(4)] == [
                False,
                False,
                True,
                False,
            ]
            rows.keep(*record(2).key, 2)
    assert texts(output)[2] == "a red barn"


def test_what_was_edited_back_is_the_model_s_again(output: Path) -> None:
    write(output, *map(record, range(2)))
    edit(output, 0, "something else")
    store(output).close()
    edit(output, 0, "picture 0  \n")
    with store(output) as rows:
        assert rows.edited() == 0
        assert not is_done(rows, record(0), "2:2")


def test_a_text_for_an_error_row_makes_it_a_good_one(output: Path) -> None:
    write(output, record(0), failed(1))
    edit(output, 1, "what I see in it")
    with store(output, retry_errors=True) as rows:
        assert is_done(rows, failed(1), "1:1")
        rows.write(record(5))
        assert rows.totals() == {"rows": 3, "errors": 0}
    row = list(read_records(output))[1]
    assert (row["status"], row["text"], row["error"]) == ("ok", "what I see in it", None)


def test_an_edit_after_a_kill_is_kept(output: Path) -> None:
    """OUTPUT was published early, and the journal still has the rows."""
    write(output, record(0))
    running = store(output, policy=EAGER)
    running.write(record(0, text="the second answer"), "2:2")
    running.write(record(1), "1:1")
    running.write(record(2), "1:1")
    running.abandon()
    assert texts(output) == ["the second answer", "picture 1", "picture 2"]
    edit(output, 1, "corrected")
    with store(output) as rows:
        assert rows.edited() == 1
    assert texts(output) == ["the second answer", "corrected", "picture 2"]


def test_an_older_row_in_output_is_no_edit(output: Path) -> None:
    """The run was killed after a commit and before OUTPUT was published."""
    write(output, record(0), record(1))
    edit(output, 1, "corrected")
    running = store(output)
    running.write(record(0, text="the second answer"), "2:2")
    running.commit()
    running.abandon()
    with store(output) as rows:
        assert rows.edited() == 1
    assert texts(output) == ["the second answer", "corrected"]


def test_an_edit_beside_a_lost_journal_is_kept_from_then_on(output: Path) -> None:
    write(output, record(0), record(1))
    Path(f"{output}.journal").unlink()
    running = store(output)
    running.write(record(0, text="the second answer"))
    running.commit()
    running.abandon()
    edit(output, 1, "corrected")
    with store(output) as rows:
        assert rows.edited() == 1
    assert texts(output) == ["the second answer", "corrected"]


def test_a_row_of_a_frame_that_is_no_more_stays_when_it_was_edited(tmp_path: Path) -> None:
    output = tmp_path / "out.jsonl"
    frames = [record(n, id=f"a.mp4#t={n}.000", source="/a.mp4") for n in range(3)]
    write(output, *frames)
    edit(output, 2, "corrected")
    with store(output) as rows:
        assert not is_done(rows, frames[0], "2:2")
        rows.write(frames[0], "2:2", content="c2")
    assert texts(output) == ["picture 0", "corrected"]


def test_a_copied_folder_is_not_asked_again(output: Path) -> None:
    write(output, *map(record, range(3)))
    copied = output.parent / "copy" / output.name
    copied.parent.mkdir()
    for path in (output, Path(f"{output}.journal")):
        shutil.copy(path, copied.parent)
    asked = []

    def digest() -> str:
        asked.append(1)
        return "c1"

    for _ in range(2):
        with store(copied) as rows:
            assert all(rows.done(*record(n).key, "/new", "1:2", digest) for n in range(3))
    assert len(asked) == 3, "the new time is remembered"
    with store(copied) as rows:
        assert not rows.done(*record(0).key, "/new", "1:3", lambda: "c2")


def test_a_journal_without_digests_is_read(output: Path) -> None:
    write(output, record(0), failed(1))
    journal = Path(f"{output}.journal")
    lines = journal.read_text("utf-8").splitlines()
    old = [re.sub(r"/\S+", "", line[9:]) if n else line[9:] for n, line in enumerate(lines)]
    import zlib

    journal.write_bytes(b"".join(b"%08x %s\n" % (zlib.crc32(t.encode()), t.encode()) for t in old))
    with store(output) as rows:
        assert [is_done(rows, record(n), "1:1") for n in range(2)] == [True, True]
        assert not rows.done(*record(0).key, "", "2:2", lambda: "c1")
        rows.write(record(2), "1:1", content="c1")
    edit(output, 2, "corrected")
    os.utime(output)
    with store(output) as rows:
        assert rows.edited() == 1


@pytest.mark.parametrize(
    ("suffix", "broken", "why"),
    [
        ("jsonl", lambda line: line.replace(b'"text": "', b'"text": '), "not valid JSON at char"),
        ("jsonl", lambda line: line.replace(b'"task"', b'"tusk"'), "it has no key 'task'"),
        ("jsonl", lambda line: line.replace(b"picture", b"\xff"), "not UTF-8"),
        ("jsonl", lambda line: b"7\n", "not a JSON object"),
        ("csv", lambda line: line.replace(b"picture", b"a,b"), "36 values for 35 columns"),
    ],
)
@pytest.mark.parametrize("number", [0, 2])
def test_a_line_that_an_edit_has_broken_is_named_and_nothing_else_is_lost(
    tmp_path: Path, suffix: str, broken: Callable[[bytes], bytes], why: str, number: int
) -> None:
    output = tmp_path / f"out.{suffix}"
    write(output, *map(record, range(4)))
    lines = output.read_bytes().splitlines(keepends=True)
    at = number + (suffix == "csv")
    lines[at] = broken(lines[at])
    output.write_bytes(b"".join(lines))
    said = (
        f"{output} has a row that was not written by vlmbatch (line {at + 1} is not a record: {why}"
    )
    for read in (store, lambda path: list(read_records(path))):
        with pytest.raises(OutputError) as found:
            read(output)
        assert str(found.value).startswith(said)
        assert "repair or delete this line; what is deleted is asked about again" in str(
            found.value
        )
    output.write_bytes(b"".join(lines[:at] + lines[at + 1 :]))
    with store(output) as rows:
        done = [is_done(rows, record(n), "1:1") for n in range(4)]
    assert done == [n != number for n in range(4)]


def test_another_file_beside_a_journal_is_not_said_to_be_worthless(tmp_path: Path) -> None:
    output = tmp_path / "out.parquet"
    write(output, record(0))
    output.write_bytes(output.read_bytes()[:-9])
    with pytest.raises(OutputError, match=r"in out.parquet.journal: put that file back in its pl"):
        store(output)
