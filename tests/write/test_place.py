"""The place of OUTPUT: no pipe, no device, no name without room for the files beside it."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.write.rows import ids, record, store
from vlmbatch.errors import JobError, OutputError
from vlmbatch.job import Job
from vlmbatch.write import open_output, write_summary
from vlmbatch.write.place import LONGEST_SUFFIX


def link_to_device(path: Path) -> None:
    path.symlink_to("/dev/null")


def link_to_pipe(path: Path) -> None:
    os.mkfifo(path.with_name("pipe"))
    path.symlink_to("pipe")


def listen(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(os.path.relpath(path))


@pytest.mark.parametrize(
    ("make", "kind"),
    [
        (os.mkfifo, "a named pipe"),
        (link_to_pipe, "a named pipe"),
        (link_to_device, "a device"),
        (listen, "a socket"),
    ],
)
@pytest.mark.parametrize("overwrite", [False, True])
def test_what_is_no_file_is_refused_and_left_alone(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    make: Callable[[Path], None],
    kind: str,
    overwrite: bool,
) -> None:
    monkeypatch.chdir(tmp_path)
    make(tmp_path / "out.jsonl")
    before = sorted(os.listdir(tmp_path))
    with pytest.raises(JobError, match=rf"out\.jsonl: it is {kind}, .* give a file, or `-`"):
        store(tmp_path / "out.jsonl", overwrite=overwrite)
    assert sorted(os.listdir(tmp_path)) == before


@pytest.mark.parametrize("letter", ["n", "é", "🦊"])
def test_the_longest_name_has_room_for_every_file_beside_it(tmp_path: Path, letter: str) -> None:
    room = os.pathconf(tmp_path, "PC_NAME_MAX") - len(f".parquet{LONGEST_SUFFIX}")
    fits = room // len(letter.encode())
    output = tmp_path / f"{letter * fits}.parquet"
    with store(output) as rows:
        rows.write(record(0))
    write_summary(output, {})
    assert ids(output) == ["00000.jpg"]
    before = sorted(os.listdir(tmp_path))
    for length in (fits + 1, 300):
        with pytest.raises(JobError, match="too long"):
            store(tmp_path / f"{letter * length}.parquet")
    assert sorted(os.listdir(tmp_path)) == before


def test_the_name_of_a_url_must_fit_into_the_staging_folder_too(tmp_path: Path) -> None:
    url = f"memory://bucket/{'n' * 240}.jsonl"
    job = Job(inputs=("x",), output=url, staging_dir=str(tmp_path))
    with pytest.raises(JobError, match=r"memory://bucket/n.* is too long by"):
        open_output(job, job.identity())


def test_links_that_lead_in_a_circle_are_one_line(tmp_path: Path) -> None:
    (tmp_path / "out.jsonl").symlink_to("out.jsonl")
    with pytest.raises(OutputError, match="Too many levels of symbolic links"):
        store(tmp_path / "out.jsonl")


def test_a_link_to_a_place_that_is_not_there_makes_it(tmp_path: Path) -> None:
    (tmp_path / "out.jsonl").symlink_to("far/away/rows.jsonl")
    with store(tmp_path / "out.jsonl") as rows:
        rows.write(record(0))
    assert ids(tmp_path / "far" / "away" / "rows.jsonl") == ["00000.jpg"]


@pytest.mark.parametrize("suffix", [".lock", ".tmp", ".journal", ".journal.tmp"])
def test_a_folder_in_the_place_of_a_file_beside_output_is_one_line(
    tmp_path: Path, suffix: str
) -> None:
    (tmp_path / f"out.jsonl{suffix}").mkdir()
    with pytest.raises(OutputError, match=r"Is a directory|is a folder"):
        store(tmp_path / "out.jsonl")
    assert os.listdir(tmp_path) == [f"out.jsonl{suffix}"]
